"""What a training of the Factorization Machine is made of; where its batches come from is not known here.

`plain.py` gives it batches from a loop in the same process, `pipeline.py` from ghee, `benchmarks/` from other systems.
The settings were chosen on the last tenth of the training rows (`python plain.py --validate`), never on the test rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from features import SIZE
from fm import FactorizationMachine
from torch import Tensor, nn

SEED = 1
BATCH = 1_000  # rows
EPOCHS = 15
FACTORS = 16
LEARNING_RATE = 0.01
L2_WEIGHTS = 0.02
L2_FACTORS = 0.12
MEAN_RATING = 3.53

Batch = Mapping[str, Any]  # what `features.preprocess` returns, as numpy arrays or tensors


class Loss(nn.Module):
    """The mean squared error of a model on a batch, and the penalty on its parameters."""

    def __init__(self, model: FactorizationMachine) -> None:
        super().__init__()
        self.model = model

    def forward(self, index: Tensor, value: Tensor, rating: Tensor) -> tuple[Tensor, Tensor]:
        terms, squares = self.model.sums(index, value)
        error = (self.model.combine(terms, squares) - rating).square().mean()
        # The penalty falls on the parameters that the batch uses, as in stochastic gradient descent for FMs
        # (Rendle, "Factorization Machines with libFM", ACM TIST 2012, section 4.1): rare features shrink no more
        # often than they are seen.
        penalty = L2_WEIGHTS * squares[:, 0] + L2_FACTORS * squares[:, 1:].sum(1)
        return error, penalty.mean()


class Training:
    """A model, Adam, and a learning rate that falls with a half cosine from epoch to epoch.

        training = Training(seed=1)
        for epoch in ...:
            for batch in epoch:
                training.step(batch)
            training.end_epoch()

    A seed gives the same first parameters everywhere; the order of the batches is the caller's. `wrap` is put around what
    computes the loss: DistributedDataParallel where several ranks train one model.
    """

    def __init__(
        self, seed: int = SEED, epochs: int = EPOCHS, wrap: Callable[[nn.Module], nn.Module] = lambda loss: loss
    ) -> None:
        torch.manual_seed(seed)
        self.model = FactorizationMachine(SIZE, FACTORS, bias=MEAN_RATING)
        self._loss = wrap(Loss(self.model))
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda epoch: 0.5 * (1 + math.cos(math.pi * min(epoch, epochs) / epochs))
        )

    def step(self, batch: Batch) -> float:
        """One step on one batch; the batch's mean squared error before it."""
        error, penalty = self._loss(*(torch.as_tensor(batch[name]) for name in ("index", "value", "rating")))
        self._optimizer.zero_grad(set_to_none=True)
        (error + penalty).backward()
        self._optimizer.step()
        return float(error.item())

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, with the learning rate of a beginning."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])

    def end_epoch(self) -> None:
        """The next epoch's learning rate."""
        self._schedule.step()


def predict(model: FactorizationMachine, batch: Batch) -> Tensor:
    """The predicted rating of each row, within the scale of 1 to 5 stars."""
    with torch.inference_mode():
        return model(torch.as_tensor(batch["index"]), torch.as_tensor(batch["value"])).clamp(1, 5)
