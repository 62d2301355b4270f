"""What training learns from the data before any weight: vocabularies, statistics, and who interacted with what.

The state is all that preprocessing carries from training to prediction. It is gathered in one streaming pass (`Scan`,
whose parts merge), frozen, and stored with the model as Arrow and JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ghee_models.schema import Field, Schema

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Vocabulary:
    """The values of a field that training has seen, ordered. Value `values[i]` has index i + 1; index 0 is "unknown"."""

    values: pa.Array

    @property
    def size(self) -> int:
        """How many indices there are, the unknown one included."""
        return len(self.values) + 1

    @cached_property
    def _integers(self) -> Indices | None:
        if pa.types.is_integer(self.values.type):
            return self.values.to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]
        return None

    @cached_property
    def _lookup(self) -> dict[Any, int]:
        return {value: n + 1 for n, value in enumerate(self.values.to_pylist())}

    def encode(self, column: pa.Array) -> Indices:
        """The index of every value; nulls and values that training has not seen are 0."""
        if isinstance(column, pa.DictionaryArray) and pa.types.is_integer(column.type.value_type):
            column = column.dictionary_decode()
        if self._integers is not None and pa.types.is_integer(column.type):
            known = self._integers
            if not len(known):
                return np.zeros(len(column), dtype=np.int64)
            wanted = pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64)
            at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
            found = (known[at] == wanted) & pc.is_valid(column).to_numpy(zero_copy_only=False)
            return np.where(found, at + 1, 0).astype(np.int64)
        # Text repeats itself: only distinct values are looked up in Python
        packed = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
        get = self._lookup.get
        found = np.array([get(value, 0) for value in packed.dictionary.to_pylist()] + [0], dtype=np.int64)
        return found[pc.fill_null(packed.indices, len(packed.dictionary)).to_numpy(zero_copy_only=False)]

    def decode(self, indices: Indices) -> pa.Array:
        """The values of indices; 0 and negative ones are null."""
        flat = np.asarray(indices).reshape(-1)
        return self.values.take(pa.array(np.where(flat > 0, flat - 1, -1), pa.int64(), mask=flat <= 0))


@dataclass(frozen=True)
class Statistics:
    """Moments of a numeric field."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # the sum of squared differences from the mean
    minimum: float = float("inf")
    maximum: float = float("-inf")

    @property
    def std(self) -> float:
        """The standard deviation; 1 where it would be 0, so that it can divide."""
        deviation = float(np.sqrt(self.squares / self.count)) if self.count else 0.0
        return deviation if deviation > 0 else 1.0

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Statistics:
        if not len(values):
            return cls()
        mean = float(values.mean())
        return cls(len(values), mean, float(((values - mean) ** 2).sum()), float(values.min()), float(values.max()))

    def merge(self, other: Statistics) -> Statistics:
        """Exact up to rounding (Chan et al. 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        return Statistics(
            count,
            self.mean + delta * other.count / count,
            self.squares + other.squares + delta**2 * self.count * other.count / count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )


@dataclass(frozen=True)
class Pairs:
    """Distinct (user index, item index) pairs, ordered by user then item: 8 bytes per pair, never a dense matrix."""

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]

    @classmethod
    def of(cls, users: Indices, items: Indices, n_items: int) -> Pairs:
        keys = np.unique(users * np.int64(n_items) + items)
        return cls((keys // n_items).astype(np.int32), (keys % n_items).astype(np.int32))

    def of_users(self, users: Indices) -> tuple[Indices, Indices]:
        """(position in `users`, item) of every pair of these users."""
        first = np.searchsorted(self.users, users, side="left")
        n = np.searchsorted(self.users, users, side="right") - first
        row = np.repeat(np.arange(len(users)), n)
        inside = np.arange(len(row)) - np.repeat(np.cumsum(n) - n, n)
        return row, self.items[np.repeat(first, n) + inside].astype(np.int64)


@dataclass(frozen=True)
class State:
    """The frozen outcome of a scan of the training rows."""

    rows: int = 0
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)  # categories: the longest list
    types: Mapping[str, str] = field(default_factory=dict)  # column -> Arrow type
    labels: Mapping[str, int] = field(default_factory=dict)  # label's value, as text -> rows
    pairs: Pairs | None = None  # interactions only
    item_counts: Indices | None = None  # interactions only: rows per item index


class Scan:
    """Gathers the state from record batches; scans of parts of the data merge into the scan of all of it."""

    def __init__(self, schema: Schema, min_count: int = 1) -> None:
        self.schema, self.min_count = schema, min_count
        self.rows = 0
        self.counts: dict[str, Counter[Any]] = {f.name: Counter() for f in schema.fields if _is_counted(f)}
        self.statistics: dict[str, Statistics] = {
            f.name: Statistics() for f in schema.fields if f.kind in ("numeric", "rating")
        }
        self.widths: dict[str, int] = {f.name: 0 for f in schema.fields if f.kind == "categories"}
        self.types: dict[str, str] = {}
        self.labels: Counter[str] = Counter()
        self.pairs: list[pa.RecordBatch] = []

    def add(self, rows: pa.RecordBatch) -> Scan:
        """Counts one batch."""
        self.rows += rows.num_rows
        for f in self.schema.fields:
            column = rows.column(rows.schema.get_field_index(f.name))
            self.types.setdefault(f.name, str(column.type))
            if f.kind == "categories":
                lengths = pc.max(pc.list_value_length(column)).as_py() if len(column) else None
                self.widths[f.name] = max(self.widths[f.name], lengths or 0)
                column = pc.list_flatten(column)
            if f.name in self.counts:
                self.counts[f.name].update(_value_counts(column))
            elif f.name in self.statistics:
                values = column.drop_null().cast(pa.float64()).to_numpy(zero_copy_only=False)
                self.statistics[f.name] = self.statistics[f.name].merge(Statistics.of(values))
            elif f.kind == "binary":
                ones = int(binary_label(f, column).sum())
                self.labels.update({"1": ones, "0": len(column) - ones})
        if self._has_pairs:
            self.pairs.append(rows.select([self.schema.one("user").name, self.schema.one("item").name]))
        return self

    @property
    def _has_pairs(self) -> bool:
        return {"user", "item"} <= {f.kind for f in self.schema.fields}

    def merge(self, other: Scan) -> Scan:
        """Adds what another scan has counted."""
        self.rows += other.rows
        for name, counter in other.counts.items():
            self.counts[name].update(counter)
        for name, moments in other.statistics.items():
            self.statistics[name] = self.statistics[name].merge(moments)
        for name, width in other.widths.items():
            self.widths[name] = max(self.widths[name], width)
        self.types = {**other.types, **self.types}
        self.labels.update(other.labels)
        self.pairs += other.pairs
        return self

    def state(self) -> State:
        """The state of what was counted; the same whatever the order of the batches."""
        vocabularies = {name: self._vocabulary(name, counter) for name, counter in self.counts.items()}
        labels = Counter(self.labels)
        label = self.schema.label
        if label is not None and label.kind == "class":
            labels = Counter({str(value): n for value, n in self.counts[label.name].items()})
        pairs, item_counts = None, None
        if self._has_pairs:
            user, item = self.schema.one("user").name, self.schema.one("item").name
            empty = np.empty(0, dtype=np.int64)
            users = np.concatenate([empty, *(vocabularies[user].encode(b.column(0)) for b in self.pairs)])
            items = np.concatenate([empty, *(vocabularies[item].encode(b.column(1)) for b in self.pairs)])
            known = (users > 0) & (items > 0)
            item_counts = np.bincount(items[known], minlength=vocabularies[item].size)
            pairs = Pairs.of(users[known], items[known], vocabularies[item].size)
        return State(
            rows=self.rows,
            vocabularies=vocabularies,
            statistics=dict(self.statistics),
            widths=dict(self.widths),
            types=dict(self.types),
            labels=dict(labels),
            pairs=pairs,
            item_counts=item_counts,
        )

    def _vocabulary(self, name: str, counter: Counter[Any]) -> Vocabulary:
        kept = sorted(value for value, n in counter.items() if n >= self.min_count)
        whole = not kept or isinstance(kept[0], int)
        return Vocabulary(pa.array(kept, pa.int64() if whole and kept else pa.string()))


def _is_counted(f: Field) -> bool:
    return f.kind in ("user", "item", "categorical", "categories", "class")


def _value_counts(column: pa.Array) -> dict[Any, int]:
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    counted = pc.value_counts(column.drop_null())
    values, counts = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
    return dict(zip(values, counts, strict=True))


def binary_label(f: Field, column: pa.Array) -> npt.NDArray[np.float32]:
    """1 where the row is positive, else 0."""
    numbers = column.cast(pa.float64()) if not pa.types.is_boolean(column.type) else column.cast(pa.int8())
    values = numbers.to_numpy(zero_copy_only=False)
    return (values >= (1 if f.positive_from is None else f.positive_from)).astype(np.float32)


def scan(schema: Schema, batches: Iterable[pa.RecordBatch], min_count: int = 1) -> State:
    """The state of the rows of `batches`."""
    gathered = Scan(schema, min_count)
    for batch in batches:
        gathered.add(batch)
    return gathered.state()
