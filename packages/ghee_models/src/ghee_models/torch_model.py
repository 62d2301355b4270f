"""Training by gradient: the loop that every torch model shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ghee_models.contract import Batch, Epochs, Model
from ghee_models.errors import TrainingError
from ghee_models.run import TrainingRun

C = TypeVar("C")


class TorchModel(Model[C]):
    """A model with a network that learns by Adam. A subclass gives `build` and `loss`.

    The config should have `lr` (learning rate) and may have `weight_decay` (L2 added to the gradient, as torch's Adam
    does it). On several ranks DistributedDataParallel averages the gradients: a step is one over all ranks' rows.
    """

    network: nn.Module | None = None

    def build(self) -> nn.Module:
        """The network with its first weights."""
        raise NotImplementedError

    def loss(self, network: nn.Module, batch: dict[str, torch.Tensor], run: TrainingRun) -> torch.Tensor:
        """The mean loss of one batch. Calls `network` exactly once."""
        raise NotImplementedError

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Adam with the config's `lr` and `weight_decay`."""
        decay = getattr(self.config, "weight_decay", 0.0)
        return torch.optim.Adam(network.parameters(), lr=self.config.lr, weight_decay=decay)  # type: ignore[attr-defined]

    def train(self, batches: Epochs, run: TrainingRun) -> None:
        self.network = self.build()
        parallel = run.parallel(self.network)
        optimizer = self.optimizer(self.network)
        steps = 0
        for number, epoch in enumerate(batches.epochs()):
            parallel.train()
            total, count = torch.zeros(()), 0
            for batch in epoch:
                share, filled = _share(batch, run)
                loss = self.loss(parallel, tensors(filled), run)
                optimizer.zero_grad()
                (loss * share).backward()
                optimizer.step()
                total += loss.detach() * share
                count += 1
            steps += count
            parallel.eval()
            if run.end_epoch(self, number, float(total) / max(count, 1)):
                break
        if steps == 0:
            raise TrainingError("Training saw no batch: the training part is empty, or smaller than one step of all ranks.")
        run.restore_best(self)
        self.network.eval()

    def weights(self) -> Mapping[str, torch.Tensor]:
        assert self.network is not None, "weights() before train() or load_weights()"
        state: dict[str, Any] = self.network.state_dict()
        return state

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        if self.network is None:
            self.network = self.build()
        self.network.load_state_dict(weights)
        self.network.eval()


def _share(batch: Batch, run: TrainingRun) -> tuple[float, Batch]:
    """The weight of this rank's mean loss, so that the average over ranks is the mean over all their rows.

    A rank whose batch has no rows takes part with one row of zeros and the weight 0: the others wait for its gradient.
    """
    rows = len(next(iter(batch.values())))
    if run.world.size == 1:
        return 1.0, batch
    everyone = torch.tensor([rows], dtype=torch.float64)
    dist.all_reduce(everyone)
    share = rows * run.world.size / max(float(everyone), 1.0)
    if rows:
        return share, batch
    return 0.0, {name: np.zeros((1, *values.shape[1:]), values.dtype) for name, values in batch.items()}


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """The arrays as tensors that share their memory where it can be written to."""
    return {name: torch.as_tensor(values if values.flags.writeable else values.copy()) for name, values in batch.items()}
