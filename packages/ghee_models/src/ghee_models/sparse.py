"""Networks for sparse rows: how a row's fields lie in a tensor, and the layers that read it.

A row is `ids` (width,) and `values` (width,): one place for a categorical or numeric field, several for a field of
many categories (unused places have the value 0). Every id is a row of one shared table.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ghee_models.embeddings import make_embedding


@dataclass(frozen=True)
class Slot:
    """Where one field lies: places `start` to `start + width`, ids `offset` to `offset + rows`."""

    name: str
    kind: str  # categorical, categories or numeric
    start: int
    width: int
    offset: int
    rows: int


@dataclass(frozen=True)
class SparseLayout:
    """The places of all fields: the single ones first, then those of many categories."""

    slots: tuple[Slot, ...]

    @property
    def width(self) -> int:
        return sum(slot.width for slot in self.slots)

    @property
    def rows(self) -> int:
        return sum(slot.rows for slot in self.slots)

    @property
    def singles(self) -> int:
        return sum(slot.width for slot in self.slots if slot.kind != "categories")

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(slot) for slot in self.slots]


POOLINGS = {"sum": 0.0, "mean": 1.0, "sqrt": 0.5}


class FieldEmbedding(nn.Module):
    """(ids, values) to one vector per field: (batch, fields, dim).

    pooling: what several categories of one field give: their mean, their sum, or sqrt, the sum over the root of their
    number (a row of n ones has the length 1 then).
    """

    def __init__(
        self,
        layout: SparseLayout,
        dim: int,
        *,
        pooling: str = "mean",
        kind: str = "full",
        buckets: int = 0,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; allowed: {', '.join(POOLINGS)}.")
        self.layout, self.power = layout, POOLINGS[pooling]
        self.scaled = any(slot.kind == "numeric" for slot in layout.slots)
        self.table = make_embedding(kind, layout.rows, dim, buckets, std)
        if kind == "full":
            unknown = [slot.offset for slot in layout.slots if slot.kind != "numeric"]
            with torch.no_grad():  # what was never seen in training adds nothing, unless training says so
                self.table.weight[unknown] = 0

    def forward(self, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Vectors times values, pooled by field: (rows, width) int64 and float32 to (rows, fields, dim)."""
        singles = self.layout.singles
        vectors = self.table(ids[:, :singles])
        if self.scaled:  # the value of a category is always 1
            vectors = vectors * values[:, :singles, None]
        fields = [vectors]
        for slot in self.layout.slots:
            if slot.kind == "categories":
                places = slice(slot.start, slot.start + slot.width)
                total = torch.bmm(values[:, None, places], self.table(ids[:, places]))
                if self.power:
                    total = total / values[:, places].sum(1).clamp(min=1).pow(self.power)[:, None, None]
                fields.append(total)
        return torch.cat(fields, 1) if len(fields) > 1 else fields[0]


class Linear(nn.Module):
    """The first-order part: bias + sum over the fields of w_id * value; (batch, outputs)."""

    def __init__(self, layout: SparseLayout, outputs: int = 1, pooling: str = "sum") -> None:
        super().__init__()
        self.weights = FieldEmbedding(layout, outputs, pooling=pooling, std=0.0)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.weights(ids, values).sum(1) + self.bias


def pairwise(vectors: torch.Tensor) -> torch.Tensor:
    """The sum of the inner products of all pairs of fields, in linear time (Rendle 2010, lemma 3.1): (batch, 1)."""
    return 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(-1, keepdim=True)


def perceptron(inputs: int, hidden: list[int], outputs: int, dropout: float) -> nn.Sequential:
    """ReLU layers of the given widths with dropout after each, then a linear layer."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
