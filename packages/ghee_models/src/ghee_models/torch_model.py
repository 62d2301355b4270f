"""Training by gradient: the loop that every torch model shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ghee_models.contract import Batch, Epochs, Model
from ghee_models.errors import TrainingError
from ghee_models.run import Checkpoint, TrainingRun

C = TypeVar("C")


@dataclass
class Place:
    """Where in its epochs a training is: the epoch, the steps since the beginning, the losses since the epoch's."""

    epoch: int = 0
    steps: int = 0
    total: torch.Tensor | float = 0.0
    count: int = 0

    def add(self, loss: torch.Tensor) -> None:
        """One more step; the loss stays where it is, for fetching it from a GPU would wait for the step."""
        self.total = self.total + loss
        self.steps, self.count = self.steps + 1, self.count + 1

    def mean_loss(self) -> float:
        """Of the epoch's steps; 0 before the first."""
        return float(self.total) / max(self.count, 1)

    def begin_epoch(self) -> None:
        """The next epoch begins."""
        self.epoch, self.total, self.count = self.epoch + 1, 0.0, 0


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
        """The mean loss of one batch, which lies on the training's device. Calls `network` exactly once."""
        raise NotImplementedError

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Adam with the config's `lr` and `weight_decay`."""
        decay = getattr(self.config, "weight_decay", 0.0)
        lr = self.config.lr  # type: ignore[attr-defined]
        return torch.optim.Adam(network.parameters(), lr=lr, weight_decay=decay, fused=True)

    def prepare(self, batch: dict[str, torch.Tensor], run: TrainingRun) -> dict[str, torch.Tensor]:
        """What `loss` gets of a batch, still in main memory: drawn negatives are added here."""
        return batch

    def train(self, batches: Epochs, run: TrainingRun) -> None:
        """Adam over the stream's batches, an epoch's end after each pass; the weights of the best epoch stay.

        Raises TrainingError without a single batch, or when a loss is not finite.
        """
        self.network = self.build().to(run.device)
        optimizer = self.optimizer(self.network)
        at = self._go_on(optimizer, run.go_on())
        parallel = run.parallel(self.network)
        for epoch in () if run.stopped else batches.epochs():
            parallel.train()
            for batch in epoch:
                share, filled = _share(batch, run)
                loss = self.loss(parallel, run.place(self.prepare(tensors(filled), run)), run)
                optimizer.zero_grad()
                (loss * share).backward()
                optimizer.step()
                at.add(loss.detach() * share)
                if run.trainer.checkpoint_steps and at.steps % run.trainer.checkpoint_steps == 0:
                    run.checkpoint(self._checkpoint(optimizer, at))
            parallel.eval()
            stop = run.end_epoch(self, at.epoch, at.mean_loss())
            at.begin_epoch()
            if run.checkpoint_due:
                run.checkpoint(self._checkpoint(optimizer, at))
            if stop:
                break
        if at.steps == 0:
            raise TrainingError("Training saw no batch: the training part is empty, or smaller than one step of all ranks.")
        run.restore_best(self)
        self.network.to("cpu").eval()

    def _checkpoint(self, optimizer: torch.optim.Optimizer, at: Place) -> Checkpoint:
        assert self.network is not None, "train() has built it"
        return {"network": self.network.state_dict(), "optimizer": optimizer.state_dict(), "at": at}

    def _go_on(self, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint | None) -> Place:
        """Where training begins: at the start, or at the checkpoint, whose weights are put back."""
        if checkpoint is None:
            return Place()
        assert self.network is not None, "train() has built it"
        self.network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        at: Place = checkpoint["at"]
        return at

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
    everyone = torch.tensor([rows], dtype=torch.float64, device=run.device)
    dist.all_reduce(everyone)
    share = rows * run.world.size / max(float(everyone), 1.0)
    if rows:
        return share, batch
    return 0.0, {name: np.zeros((1, *values.shape[1:]), values.dtype) for name, values in batch.items()}


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """The arrays as tensors that share their memory where it can be written to."""
    return {name: torch.as_tensor(values if values.flags.writeable else values.copy()) for name, values in batch.items()}
