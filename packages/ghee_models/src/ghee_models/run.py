"""One training as its ranks see it: the world of ranks, early stopping, the best weights, what is logged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from ghee_models.errors import ConfigError, TrainingError
from ghee_models.settings import SamplerConfig, TrainerConfig

if TYPE_CHECKING:
    from ghee_models.contract import Model

Metrics = dict[str, float]


@dataclass(frozen=True)
class World:
    """The ranks that train or evaluate together. A size above 1 needs an initialised torch process group."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def sum(self, value: np.ndarray[Any, Any] | float) -> Any:
        """The sum of every rank's array or number, on every rank, added in the order of ranks."""
        values = self.gather(value)
        total = values[0]
        for other in values[1:]:
            total = total + other
        return total


@dataclass
class EarlyStopping:
    """Decides after each epoch whether it is the best, and whether to stop. Pure: no clock, no weights."""

    patience: int
    min_epochs: int
    larger_is_better: bool
    best: float = float("nan")
    best_epoch: int = -1
    worse: int = 0

    def see(self, epoch: int, value: float) -> tuple[bool, bool]:
        """(is it the best so far, should training stop) for the epoch's value; NaN is never the best."""
        better = not math.isnan(value) and (
            self.best_epoch < 0 or (value > self.best if self.larger_is_better else value < self.best)
        )
        if better:
            self.best, self.best_epoch, self.worse = value, epoch, 0
        elif epoch + 1 > self.min_epochs:
            self.worse += 1
        return better, bool(self.patience) and self.worse > self.patience


SMALLER_IS_BETTER = ("logloss", "rmse", "loss")


Checkpoint = dict[str, Any]


@dataclass
class TrainingRun:
    """What `Model.train` is given beside the batches.

    log: called on rank 0 with metrics and the epoch; validate: metrics of the model on the validation rows (the same
    on each rank), or None when there are none; save: keeps a checkpoint together with the place in the stream, called on
    all ranks after the same batch; restored: the checkpoint that this training goes on from.
    """

    trainer: TrainerConfig
    sampler: SamplerConfig
    world: World = field(default_factory=World)
    monitor: str = ""
    validate: Callable[[Model[Any]], Metrics] | None = None
    log: Callable[[Metrics, int], None] = lambda metrics, epoch: None
    save: Callable[[Checkpoint], None] | None = None
    restored: Checkpoint | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    history: list[Metrics] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.trainer.seed)  # the same first weights on each rank
        self.generator = torch.Generator().manual_seed(self.trainer.seed * 1_000_003 + self.world.rank)
        name = self.monitor.partition("@")[0]
        self._stopping = EarlyStopping(
            self.trainer.patience, self.trainer.min_epochs, larger_is_better=name not in SMALLER_IS_BETTER
        )
        self._best: Mapping[str, torch.Tensor] | None = None
        self.stopped = self.checkpoint_due = False
        self._began = self._saved = time.perf_counter()

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights are kept, from 0; -1 before the first validation."""
        return self._stopping.best_epoch

    def parallel(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network, averaging gradients over the ranks when there are several."""
        if self.world.size == 1:
            return network
        return torch.nn.parallel.DistributedDataParallel(network)

    def place(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch on the device of this training."""
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def end_epoch(self, model: Model[Any], epoch: int, loss: float) -> bool:
        """Validates, logs, keeps the best weights; True when training should stop. Every rank gets the same answer.

        Raises TrainingError when the mean loss of any rank is not finite.
        """
        seconds = time.perf_counter() - self._began
        gathered = self.world.gather((loss, time.perf_counter() - self._saved))
        losses = [value for value, _ in gathered]
        if not all(math.isfinite(value) for value in losses):
            raise TrainingError(
                f"The loss of epoch {epoch + 1} is not finite ({losses}). Usual reasons: a learning rate that is too "
                "high (model.lr), or numeric columns with huge values. No model was kept."
            )
        metrics = {"loss": sum(losses) / len(losses), "seconds": seconds}
        if self.validate is not None:
            found = self.validate(model)
            if self.monitor not in found:
                raise ConfigError(
                    f"trainer.monitor is {self.monitor!r}, which validation does not give; "
                    f"it gives {', '.join(found) or 'nothing (no usable validation row)'}."
                )
            better, self.stopped = self._stopping.see(epoch, found[self.monitor])
            if better:
                self._best = model.snapshot()
            metrics.update({f"valid_{name}": value for name, value in found.items()})
        self.history.append(metrics)
        if self.world.rank == 0:
            self.log(metrics, epoch)
        self.checkpoint_due = 0 <= self.trainer.checkpoint_seconds <= gathered[0][1]  # rank 0's clock is everybody's
        self._began = time.perf_counter()
        return self.stopped

    def checkpoint(self, training: Checkpoint) -> None:
        """Keeps where training is: `training` (weights, optimiser, epoch) and what this run knows. All ranks call it.

        A training that is killed later goes on from here, and ends as if it had not been.
        """
        if self.save is None:
            return
        began = time.perf_counter()
        own = {
            "stopping": self._stopping, "best": self._best, "stopped": self.stopped, "history": self.history,
            "negatives": self.generator.get_state(), "random": torch.get_rng_state(),
        }  # fmt: skip
        self.save({"training": training, "run": own})
        self._saved = time.perf_counter()
        self._began += self._saved - began  # an epoch's seconds are those of training

    def go_on(self) -> Checkpoint | None:
        """What `checkpoint` was given last, if this training goes on from it; None at a beginning.

        To be called when the first weights have been drawn: the random numbers too go on where they were.
        """
        if self.restored is None:
            return None
        own, training = self.restored["run"], self.restored["training"]
        self._stopping, self._best, self.stopped = own["stopping"], own["best"], own["stopped"]
        self.history.extend(own["history"])
        self.generator.set_state(own["negatives"])
        torch.set_rng_state(own["random"])
        return dict(training)

    def restore_best(self, model: Model[Any]) -> None:
        """Puts the weights of the best epoch back; without validation the last ones stay."""
        if self._best is not None:
            model.load_weights(self._best)
