"""A model's card: all that can be said about a model without importing it. Nothing here, nor in a card, imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any, get_type_hints

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")


class Task(StrEnum):
    """What a model is for."""

    RECOMMENDATION = "recommendation"  # items for a user, and vectors of both
    CTR = "ctr"  # the probability of a yes
    CLASSIFICATION = "classification"  # the probabilities of several classes
    RATING = "rating"  # a number


class DataFormat(StrEnum):
    """What a model reads."""

    INTERACTIONS = "interactions"  # (user, item) rows
    SPARSE_ROWS = "sparse-rows"  # categorical, multi-valued and numeric fields, and a label


@dataclass(frozen=True)
class Reference:
    """A figure that the model must reach: on which protocol, by whom, and what we demand.

    `at_least` or `at_most` is the gate; `figure` is the published (or measured) figure that it is held against.
    """

    protocol: str  # the name of an experiment configuration
    metric: str
    figure: float
    source: str
    at_least: float | None = None
    at_most: float | None = None
    split_digest: str = ""  # of the test part; with folds, of all their digests
    folds: int = 0  # cross-validation: the figure is the mean over so many trainings, each with its own fold as test part

    def met(self, value: float) -> bool:
        """Whether a measured value passes the gate."""
        over = self.at_least is None or value >= self.at_least
        return over and (self.at_most is None or value <= self.at_most)

    @property
    def gate(self) -> str:
        """The gate in words."""
        low = "" if self.at_least is None else f">= {self.at_least}"
        high = "" if self.at_most is None else f"<= {self.at_most}"
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True)
class ModelCard:
    """A model's id, purpose, settings and references.

    `implementation` is `module:Class`, imported when the model is used and not before.
    """

    id: str
    tasks: tuple[Task, ...]
    data: DataFormat
    summary: str
    paper: str
    config: type
    implementation: str
    references: tuple[Reference, ...] = ()
    closed_form: bool = False  # one pass, no gradient: the trainer's epochs do not apply

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.id):
            raise ValueError(
                f"The model id {self.id!r} is not allowed: lower-case letters, digits and '-', a letter first, "
                "63 characters at most (MLflow's strictest names allow no more)."
            )
        if not is_dataclass(self.config):
            raise TypeError(f"The config of model {self.id!r} must be a dataclass, got {self.config!r}.")

    def config_fields(self) -> list[dict[str, Any]]:
        """Name, type and default of every setting of the model."""
        hints = get_type_hints(self.config)
        found = []
        for f in fields(self.config):
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            kind = hints[f.name]
            name = kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", None) else str(kind)
            found.append({"name": f.name, "type": name, "default": None if default is MISSING else default})
        return found

    def describe(self) -> dict[str, Any]:
        """The card as plain values."""
        return {
            "id": self.id,
            "tasks": [str(task) for task in self.tasks],
            "data": str(self.data),
            "summary": self.summary,
            "paper": self.paper,
            "config": self.config_fields(),
            "schema": SCHEMAS[self.data],
            "references": [
                {"protocol": r.protocol, "metric": r.metric, "figure": r.figure, "source": r.source, "gate": r.gate}
                for r in self.references
            ],
            "implementation": self.implementation,
        }


SCHEMAS: Mapping[DataFormat, Mapping[str, str]] = {
    DataFormat.INTERACTIONS: {
        "data.user": "user ids: integers or text, not null",
        "data.item": "item ids: integers or text, not null; to predict, users alone are enough",
    },
    DataFormat.SPARSE_ROWS: {
        "data.fields": "column -> categorical (integers or text), categories (a list of them) or numeric",
        "data.label": "binary (0/1, or a number with data.positive_from), class (integers or text) or rating (a number)",
    },
}
