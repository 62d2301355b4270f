"""Runs the published protocol of a model and holds our figures against the references."""

from __future__ import annotations

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
    """One reference beside our figure. passed: the gate is met on the very split that the reference names."""

    model: str
    reference: Reference
    value: float
    split_digest: str
    result: TrainResult

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
    results: dict[str, TrainResult] = {}
    found = []
    for reference in card.references:
        if reference.protocol not in results:
            composed = compose([f"experiment={reference.protocol}", *overrides])
            settings = composed.settings
            settings = replace(settings, tracking=replace(settings.tracking, enabled=track))
            with tempfile.TemporaryDirectory(prefix="ghee-reproduce-") as folder:
                target = None if track else Path(folder) / "model"
                results[reference.protocol] = train_configured(
                    composed.model, composed.config, settings, save_to=target, on=on
                )
        result = results[reference.protocol]
        value = result.metrics.get(reference.metric, float("nan"))
        found.append(Reproduced(id, reference, value, result.digests.get("test", ""), result))
    return found
