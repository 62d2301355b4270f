"""The contract of a model: five functions, a typed config, a declared schema. Everything else is supplied.

training rows ─► train_preprocess ─► train ─► weights ┐
                                                      ├─► artifact
state (vocabularies, statistics), gathered beforehand ┘
rows to predict ─► predict_preprocess ─► predict ─► postprocess ─► rows of results
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ghee_models.card import DataFormat, ModelCard
from ghee_models.schema import Schema
from ghee_models.settings import DataConfig, PredictOptions
from ghee_models.state import State

if TYPE_CHECKING:
    import torch

    from ghee_models.run import TrainingRun, World

C = TypeVar("C")

Batch = dict[str, npt.NDArray[Any]]
Predictions = dict[str, npt.NDArray[Any]]


class Epochs(Protocol):
    """A stream of batches, epoch by epoch: what a ghee loop stage gives."""

    def epochs(self) -> Iterator[Iterable[Batch]]:
        """Every epoch in turn; each is iterated once."""
        ...


class Model(ABC, Generic[C]):
    """A model of one data format: base of the base classes (`Recommender`, `SparseModel`), which supply most of it.

    config: the model's settings, an instance of `card.config`; schema: the data's columns; state: what the scan of the
    training rows found. None of the five functions may change schema or state.
    """

    card: ClassVar[ModelCard]
    data_format: ClassVar[DataFormat]

    def __init__(self, config: C, schema: Schema, state: State, data: DataConfig) -> None:
        self.config, self.schema, self.state, self.data = config, schema, state, data
        self.options = PredictOptions()

    @staticmethod
    @abstractmethod
    def make_schema(data: DataConfig) -> Schema:
        """The schema that the data settings declare. Raises ConfigError when they declare too little."""

    @abstractmethod
    def train_preprocess(self, rows: pa.RecordBatch) -> Batch | None:
        """Rows with labels to arrays; None when no row is of use (they are counted as dropped)."""

    @abstractmethod
    def predict_preprocess(self, rows: pa.RecordBatch) -> Batch:
        """Rows without labels to arrays, as many as there are rows."""

    @abstractmethod
    def train(self, batches: Epochs, run: TrainingRun) -> None:
        """Learns the weights from the stream. Called once on every rank of the training stage.

        Raises TrainingError when the data cannot give a model.
        """

    @abstractmethod
    def predict(self, batch: Batch) -> Predictions:
        """Arrays of results, one entry per row of the batch."""

    @abstractmethod
    def postprocess(self, predictions: Predictions, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Results as rows, in the caller's own ids. `rows` are the rows that `predict_preprocess` was given."""

    @abstractmethod
    def evaluate(self, batches: Iterable[Batch], world: World, **known: Any) -> dict[str, float]:
        """Metrics over the batches of `train_preprocess` of all ranks; the same values on each rank."""

    @abstractmethod
    def weights(self) -> Mapping[str, torch.Tensor]:
        """What training learned, as named tensors: all that has to be stored beside schema, state and config."""

    @abstractmethod
    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Takes over what `weights` gave, perhaps in another process."""

    @property
    def predict_schema(self) -> Schema:
        """The columns that `predict_preprocess` reads: by default all but the label."""
        return Schema(self.schema.inputs)

    @property
    @abstractmethod
    def monitor(self) -> str:
        """The metric that chooses the best epoch, unless the settings name another."""

    def snapshot(self) -> Mapping[str, torch.Tensor]:
        """A copy of the weights that later training steps do not change."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.weights().items()}


def column(rows: pa.RecordBatch, name: str) -> pa.Array:
    """A column by name. Raises KeyError that names the columns that are there."""
    at = rows.schema.get_field_index(name)
    if at < 0:
        raise KeyError(f"The rows have no column {name!r}; they have {', '.join(rows.schema.names)}.")
    return rows.column(at)


def slices(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of at most `size` rows."""
    n = len(next(iter(batch.values()))) if batch else 0
    for start in range(0, n, size):
        yield {name: values[start : start + size] for name, values in batch.items()}


def concatenate(batches: Iterable[Batch]) -> Batch:
    """All rows of the batches as one. Empty when there is no batch."""
    parts = list(batches)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
