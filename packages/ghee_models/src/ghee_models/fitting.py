"""Trains one model on one rank: a stream of batches in, a fitted model and its metrics out. Knows no ghee, no MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ghee_models.contract import Batch, Epochs, Model, slices
from ghee_models.errors import ConfigError
from ghee_models.parts import Part, Parts
from ghee_models.run import Checkpoint, Metrics, TrainingRun, World
from ghee_models.settings import Settings
from ghee_models.state import Pairs


@dataclass(frozen=True)
class Fitted:
    """What training gave: test metrics (or those of validation, where there is no test part) and the curve."""

    metrics: Metrics
    valid: Metrics
    history: list[Metrics]
    best_epoch: int
    seconds: float


def fit(
    model: Model[Any],
    batches: Epochs,
    settings: Settings,
    parts: Parts,
    world: World,
    log: Callable[[Metrics, int], None],
    *,
    device: torch.device | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    restored: Checkpoint | None = None,
) -> Fitted:
    """Trains `model` in place, chooses its epoch on validation only, then measures it once on the test part.

    Called on every rank of the world with its own share of the batches. `save` keeps a checkpoint with the place in the
    stream; `restored` is the one that this training goes on from.
    """
    torch.set_num_threads(settings.trainer.threads)
    began = time.perf_counter()
    valid = _hold(model, parts.valid, settings, world)
    known: dict[str, Any] = {"ks": settings.eval.k, "block": settings.eval.block}
    train_pairs = [] if model.state.pairs is None else [model.state.pairs]

    def validate(current: Model[Any]) -> Metrics:
        return current.evaluate(_blocks(valid, settings), world, exclude=train_pairs, **known)

    monitor = monitor_of(model, settings)
    run = TrainingRun(
        settings.trainer, settings.sampler, world, monitor, validate if parts.valid else None, log,
        save=save, restored=restored, device=device or torch.device("cpu"),
    )  # fmt: skip
    model.train(batches, run)
    of_valid = validate(model) if parts.valid else {}
    of_test = dict(of_valid)
    if parts.test is not None:
        exclude = [*train_pairs, *_pairs(model, valid, world)]
        test = _hold(model, parts.test, settings, world)
        of_test = model.evaluate(_blocks(test, settings), world, exclude=exclude, **known)
    return Fitted(of_test, of_valid, run.history, run.best_epoch, time.perf_counter() - began)


def monitor_of(model: Model[Any], settings: Settings) -> str:
    """The metric that chooses the epoch: the settings' one, else the model's usual one at a length that is measured."""
    if settings.trainer.monitor:
        return settings.trainer.monitor
    name, at, _ = model.monitor.partition("@")
    k = 10 if 10 in settings.eval.k else max(settings.eval.k)
    return f"{name}@{k}" if at else name


def _hold(model: Model[Any], part: Part | None, settings: Settings, world: World) -> list[Batch]:
    """This rank's share of a part, encoded. Every epoch is validated on it, so it is read once and held."""
    if part is None:
        return []
    held, rows = [], 0
    for batch in part.batches(model.schema.names, share=(world.rank, world.size)):
        encoded = model.train_preprocess(batch)
        if encoded is not None:
            held.append(encoded)
            rows += batch.num_rows
        if rows > settings.eval.max_rows:
            raise ConfigError(
                f"The {part.name} part has more than eval.max_rows = {settings.eval.max_rows} rows per rank. "
                "Make the part smaller (split.ratios), raise the limit, or use more trainer.ranks."
            )
    return held


def _blocks(held: list[Batch], settings: Settings) -> list[Batch]:
    return [block for batch in held for block in slices(batch, 16 * settings.eval.block)]


def _pairs(model: Model[Any], held: list[Batch], world: World) -> list[Pairs]:
    """The held interactions of every rank: in the final test nobody is recommended what validation has shown."""
    if model.state.pairs is None:
        return []
    empty = np.empty(0, dtype=np.int64)
    users = np.concatenate([empty, *(batch["user"] for batch in held)])
    items = np.concatenate([empty, *(batch["item"] for batch in held)])
    everyone = world.gather((users, items))
    users, items = (np.concatenate([part[n] for part in everyone]) for n in (0, 1))
    return [Pairs.of(users, items, model.items.size)]  # type: ignore[attr-defined]
