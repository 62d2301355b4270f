"""Runs the published protocol of a model and holds our figures against the references."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ghee_models import registry
from ghee_models.card import Reference
from ghee_models.composition import compose
from ghee_models.errors import ModelsError
from ghee_models.training import TrainResult, train_configured


@dataclass(frozen=True)
class Reproduced:
    """One reference beside our figure. passed: the gate is met on the very split that the reference names.

    results: of the training, or of one per fold.
    """

    model: str
    reference: Reference
    results: tuple[TrainResult, ...]

    @property
    def value(self) -> float:
        """Our figure: the metric on the test part, or its mean over the folds. NaN where it was not measured."""
        return sum(r.metrics.get(self.reference.metric, float("nan")) for r in self.results) / len(self.results)

    @property
    def split_digest(self) -> str:
        """Of the test part; of several folds, the first 16 hex digits of the SHA-256 of their digests, a line each."""
        digests = [result.digests.get("test", "") for result in self.results]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]

    @property
    def epochs(self) -> int:
        """Epochs trained, over all folds."""
        return sum(len(result.history) for result in self.results)

    @property
    def seconds_per_epoch(self) -> float:
        """Mean seconds of an epoch's training."""
        return sum(result.seconds_per_epoch for result in self.results) / len(self.results)

    @property
    def same_split(self) -> bool:
        return not self.reference.split_digest or self.reference.split_digest == self.split_digest

    @property
    def passed(self) -> bool:
        return self.same_split and self.reference.met(self.value)


def reproduce(id: str, overrides: Sequence[str] = (), *, track: bool = False, on: Any = "local") -> list[Reproduced]:
    """Trains the model by the protocol of each of its references and measures it on the test part, once.

    track: keep the run in MLflow. Raises ModelsError for a model without a reference.
    """
    card = registry.card(id)
    if not card.references:
        raise ModelsError(f"The model {id!r} names no reference figure, so there is nothing to reproduce.")
    results: dict[str, tuple[TrainResult, ...]] = {}
    found = []
    for reference in card.references:
        if reference.protocol not in results:
            folds = [[f"split.fold={fold}"] for fold in range(reference.folds)] or [[]]
            results[reference.protocol] = tuple(
                _train([f"experiment={reference.protocol}", *fold, *overrides], track, on) for fold in folds
            )
        found.append(Reproduced(id, reference, results[reference.protocol]))
    return found


def _train(overrides: list[str], track: bool, on: Any) -> TrainResult:
    composed = compose(overrides)
    settings = replace(composed.settings, tracking=replace(composed.settings.tracking, enabled=track))
    with tempfile.TemporaryDirectory(prefix="ghee-reproduce-") as folder:
        target = None if track else Path(folder) / "model"
        return train_configured(composed.model, composed.config, settings, save_to=target, on=on)
