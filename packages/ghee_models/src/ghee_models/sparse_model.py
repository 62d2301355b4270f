"""Models of sparse rows: click-through rate, several classes, ratings. A subclass gives its network, and that is all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from ghee_models import metrics
from ghee_models.card import DataFormat
from ghee_models.contract import Batch, Predictions, column
from ghee_models.errors import ConfigError, DataError, TrainingError
from ghee_models.run import TrainingRun, World
from ghee_models.schema import Field, Schema
from ghee_models.settings import DataConfig, sparse_schema
from ghee_models.sparse import Slot, SparseLayout
from ghee_models.state import binary_label
from ghee_models.torch_model import TorchModel

C = TypeVar("C")


class SparseModel(TorchModel[C]):
    """A network of (ids, values) -> (rows, outputs) logits; the label's kind decides the loss.

    binary: one output, logistic loss; class: one per class, softmax; rating: one, squared error around the mean.
    Result columns: the inputs' scalar columns, then `probability`; or `class` and `probability`; or `rating`. Where there
    are lists of categories, `values_cut` says how many values of a row did not fit: a list longer than any of training is
    cut to that length.
    """

    data_format = DataFormat.SPARSE_ROWS

    @staticmethod
    def make_schema(data: DataConfig) -> Schema:
        return sparse_schema(data)

    def make_network(self, layout: SparseLayout, outputs: int) -> nn.Module:
        """The network; it is called with ids (rows, width) int64 and values (rows, width) float32."""
        raise NotImplementedError

    @cached_property
    def layout(self) -> SparseLayout:
        """Where each field lies; follows from schema and state alone."""
        slots, start, offset = [], 0, 0
        for f in self.schema.inputs:
            width = max(self.state.widths[f.name], 1) if f.kind == "categories" else 1
            rows = 1 if f.kind == "numeric" else self.state.vocabularies[f.name].size
            slots.append(Slot(f.name, f.kind, start, width, offset, rows))
            start, offset = start + width, offset + rows
        return SparseLayout(tuple(slots))

    @property
    def label(self) -> Field:
        found = self.schema.label
        assert found is not None, "sparse_schema always declares a label"
        return found

    @property
    def outputs(self) -> int:
        return self.state.vocabularies[self.label.name].size - 1 if self.label.kind == "class" else 1

    @property
    def _mean(self) -> float:
        return self.state.statistics[self.label.name].mean

    def build(self) -> nn.Module:
        """The subclass's network. Raises TrainingError when all training rows have one label."""
        if self.label.kind != "rating" and len(self.state.labels) and sum(n > 0 for n in self.state.labels.values()) < 2:
            raise TrainingError(
                f"All {self.state.rows} training rows have one label ({self.label.name}: {dict(self.state.labels)}); "
                "a classifier needs at least two. Check data.label and data.positive_from."
            )
        return self.make_network(self.layout, self.outputs)

    def train_preprocess(self, rows: pa.RecordBatch) -> Batch | None:
        """`ids` (rows, width) int64, `values` (rows, width) float32, `label` (rows,): 0 or 1, a class's index, or a rating.

        Rows of a class that training has not seen are left out; None when no row is left.
        """
        if rows.num_rows == 0:
            return None
        batch = self._inputs(rows)
        values = column(rows, self.label.name)
        if self.label.kind == "class":
            encoded = self.state.vocabularies[self.label.name].encode(values) - 1
            known = encoded >= 0  # a class that training has never seen cannot be scored
            batch = {name: array[known] for name, array in batch.items()}
            batch["label"] = encoded[known]
        elif self.label.kind == "binary":
            batch["label"] = binary_label(self.label, values)
        else:
            batch["label"] = values.cast(pa.float32()).to_numpy(zero_copy_only=False)
        return batch if len(batch["label"]) else None

    def predict_preprocess(self, rows: pa.RecordBatch) -> Batch:
        """`ids` and `values` as for training; of each row `unknown`, the categorical fields with a value never seen, and
        `cut`, the values of lists that did not fit.

        Raises DataError for such a value where `data.unknown` is "error".
        """
        batch = self._inputs(rows)
        unknown = np.zeros(rows.num_rows, dtype=np.int64)
        for slot in self.layout.slots:
            if slot.kind == "categorical":
                unknown += batch["ids"][:, slot.start] == slot.offset
        if self.data.unknown == "error" and unknown.any():
            raise DataError(_unknown_report(int((unknown > 0).sum()), int(np.argmax(unknown > 0))))
        return {**batch, "unknown": unknown, "cut": self._cut(rows)}

    def _cut(self, rows: pa.RecordBatch) -> npt.NDArray[np.int32]:
        cut = np.zeros(rows.num_rows, dtype=np.int32)
        for slot in self.layout.slots:
            if slot.kind == "categories":
                cut += np.maximum(_lengths(column(rows, slot.name)) - slot.width, 0).astype(np.int32)
        return cut

    def _inputs(self, rows: pa.RecordBatch) -> Batch:
        layout = self.layout
        ids = np.zeros((rows.num_rows, layout.width), dtype=np.int64)
        values = np.ones((rows.num_rows, layout.width), dtype=np.float32)
        for slot in layout.slots:
            cells = column(rows, slot.name)
            if slot.kind == "numeric":
                moments = self.state.statistics[slot.name]
                numbers = cells.cast(pa.float64()).fill_null(moments.mean).to_numpy(zero_copy_only=False)
                ids[:, slot.start] = slot.offset
                values[:, slot.start] = (numbers - moments.mean) / moments.std
            elif slot.kind == "categorical":
                cells = cells.cast(pa.int8()) if pa.types.is_boolean(cells.type) else cells
                ids[:, slot.start] = self.state.vocabularies[slot.name].encode(cells) + slot.offset
            else:
                places = slice(slot.start, slot.start + slot.width)
                ids[:, places], values[:, places] = self._lists(slot, cells)
        return {"ids": ids, "values": values}

    def _lists(self, slot: Slot, cells: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Lists as padded rows; a list longer than any of training is cut to that length."""
        lengths = _lengths(cells)
        flat = self.state.vocabularies[slot.name].encode(pc.list_flatten(cells))
        row = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        fits = place < slot.width
        ids = np.full((len(lengths), slot.width), slot.offset, dtype=np.int64)
        values = np.zeros((len(lengths), slot.width), dtype=np.float32)
        ids[row[fits], place[fits]] = flat[fits] + slot.offset
        values[row[fits], place[fits]] = 1
        return ids, values

    def loss(self, network: nn.Module, batch: dict[str, torch.Tensor], run: TrainingRun) -> torch.Tensor:
        """The mean over the rows: cross-entropy, logistic loss, or squared error of the rating less the training's mean."""
        logits = network(batch["ids"], batch["values"])
        if self.label.kind == "class":
            return nn.functional.cross_entropy(logits, batch["label"])
        if self.label.kind == "binary":
            return nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1), batch["label"])
        return nn.functional.mse_loss(logits.squeeze(1), batch["label"] - self._mean)

    def predict(self, batch: Batch) -> Predictions:
        """`score`: (rows,) probabilities or ratings, or (rows, classes) probabilities; and the batch's `unknown`, `cut`."""
        assert self.network is not None, "predict() before train() or load_weights()"
        with torch.inference_mode():
            device = next(self.network.parameters()).device  # the training's, while it validates
            ids, values = (torch.as_tensor(batch[name]).to(device) for name in ("ids", "values"))
            logits = self.network(ids, values).cpu()
            if self.label.kind == "class":
                found = torch.softmax(logits, 1).numpy()
            elif self.label.kind == "binary":
                found = torch.sigmoid(logits.squeeze(1)).numpy()
            else:
                found = logits.squeeze(1).numpy() + np.float32(self._mean)
        none = np.zeros(len(found), dtype=np.int32)  # a batch of training carries neither
        return {"score": found, "unknown": batch.get("unknown", none), "cut": batch.get("cut", none)}

    def postprocess(self, predictions: Predictions, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The result columns of this class; null in rows with an unknown value where `data.unknown` is "empty"."""
        scores = predictions["score"]
        hidden = (predictions["unknown"] > 0) if self.data.unknown == "empty" else np.zeros(len(scores), dtype=np.bool_)
        kept = [f.name for f in self.schema.inputs if f.kind != "categories" and f.name in rows.schema.names]
        columns = {name: column(rows, name) for name in kept}
        if self.label.kind == "class":
            best = scores.argmax(1) + 1
            columns["class"] = self.state.vocabularies[self.label.name].decode(np.where(hidden, 0, best))
            columns["probability"] = pa.array(scores.max(1), pa.float32(), mask=hidden)
        else:
            name = "probability" if self.label.kind == "binary" else "rating"
            columns[name] = pa.array(scores, pa.float32(), mask=hidden)
        if any(slot.kind == "categories" for slot in self.layout.slots):
            columns["values_cut"] = pa.array(predictions["cut"], pa.int32())
        return pa.record_batch(columns)

    @property
    def monitor(self) -> str:
        return {"binary": "auc", "class": "accuracy", "rating": "rmse"}[self.label.kind]

    def evaluate(self, batches: Iterable[Batch], world: World, **known: Any) -> dict[str, float]:
        """auc, gauc (by the first field, if categorical), logloss, accuracy; of classes the last two; of ratings rmse."""
        labels, scores, groups = [], [], []
        for batch in batches:
            labels.append(batch["label"])
            scores.append(self.predict(batch)["score"])
            groups.append(batch["ids"][:, 0])
        if labels:
            mine = np.concatenate(labels), np.concatenate(scores), np.concatenate(groups)
        else:
            mine = None
        parts = [part for part in world.gather(mine) if part is not None]
        if not parts:
            return {}
        y, p, g = (np.concatenate([part[n] for part in parts]) for n in range(3))
        if self.label.kind == "rating":
            return {"rmse": metrics.rmse(y, p)}
        found = {"accuracy": metrics.accuracy(y, p), "logloss": metrics.logloss(y, p)}
        if self.label.kind == "binary":
            found["auc"] = metrics.auc(y, p)
            if self.layout.slots[0].kind == "categorical":
                found["gauc"] = metrics.gauc(g, y, p)
        return found

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        if self.network is None:
            self.network = self.make_network(self.layout, self.outputs)
        super().load_weights(weights)


def _lengths(cells: pa.Array) -> npt.NDArray[np.int64]:
    """The length of every list; 0 for a null."""
    found: npt.NDArray[np.int64] = (
        pc.fill_null(pc.list_value_length(cells), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    )
    return found


def single_output(id: str, outputs: int) -> None:
    """Raises ConfigError for a label of several classes, which the model `id` cannot have."""
    if outputs != 1:
        raise ConfigError(f"The model {id!r} has one output, the label has {outputs} classes; use mlp or logreg.")


def _unknown_report(count: int, row: int) -> Any:
    from ghee_models.checker import Report, Violation

    fix = "Train with these values, or set data.unknown to fallback or empty."
    return Report([Violation("(inputs)", "unknown value", count, row=row, fix=fix)], rows=count)
