"""The content id: a hash of schema and rows that the order, the file layout and the engine do not change.

Pure. Each row has a 128-bit hash (`rowhash`); a dataset's is the sum of its rows' (AdHash, Bellare and Micciancio
1997), modulo 2**64 in each lane, with the number of rows. A sum, because xor would cancel equal pairs; and because
sums of files, partitions and machines add up. It guards against accidents, not against a forger: the manifest's
BLAKE3 of every file does that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

from cumin import rowhash
from cumin.encoding import digest
from cumin.errors import RecipeError

_MASK = (1 << 64) - 1
_SHIFT = np.uint64(29)


def schema_form(schema: pa.Schema) -> list[Any]:
    """The canonical form of a schema: names with their case and types, in order. Refuses two equal names."""
    doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubled:
        raise RecipeError(f"Two columns are called {name!r}; give each its own name with AS." for name in doubled)
    return [[each.name, rowhash.type_form(each.type)] for each in schema]


@dataclass
class RowSum:
    """The sum of the hashes of rows seen so far. Add batches with `update`, other sums with `merge`.

    `digits` rounds floating point to so many significant digits before hashing (the `tolerant` mode).
    """

    digits: int | None = None
    rows: int = 0
    a: int = 0
    b: int = 0
    columns: dict[str, int] = field(default_factory=dict)  # per column: 64 bits, to show what differs, never as proof

    def update(self, batch: pa.RecordBatch) -> None:
        """Add the rows of `batch`."""
        for start in range(0, batch.num_rows, rowhash.CHUNK_ROWS):
            self._add(batch.slice(start, rowhash.CHUNK_ROWS))

    def _add(self, batch: pa.RecordBatch) -> None:
        a = np.zeros(batch.num_rows, np.uint64)
        b = np.zeros(batch.num_rows, np.uint64)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            path = (name, repr(rowhash.type_form(column.type)))
            lane_a, lane_b = rowhash.column_lanes(column, path, self.digits)
            a += lane_a
            b += lane_b
            total = int((lane_a ^ (lane_a >> _SHIFT)).sum(dtype=np.uint64))
            self.columns[name] = (self.columns.get(name, 0) + total) & _MASK
        lanes = rowhash.finish((a, b))
        self.rows += batch.num_rows
        self.a = (self.a + int(lanes[0].sum(dtype=np.uint64))) & _MASK
        self.b = (self.b + int(lanes[1].sum(dtype=np.uint64))) & _MASK

    def merge(self, other: "RowSum") -> None:
        """Add the rows that `other` has seen."""
        self.rows += other.rows
        self.a, self.b = (self.a + other.a) & _MASK, (self.b + other.b) & _MASK
        for name, total in other.columns.items():
            self.columns[name] = (self.columns.get(name, 0) + total) & _MASK

    def content_id(self, schema: pa.Schema) -> str:
        """``c1:`` and 32 hex digits (``c1~N:`` where floats were rounded to N digits)."""
        label = "c1:" if self.digits is None else f"c1~{self.digits}:"
        return label + digest("cumin/content", [schema_form(schema), self.rows, self.a, self.b])[:32]

    def to_json(self) -> dict[str, Any]:
        """Rows, sum and column digests as a manifest keeps them."""
        columns = {name: f"{total:016x}" for name, total in self.columns.items()}
        return {"rows": self.rows, "rowsum": f"{self.a:016x}{self.b:016x}", "columns": columns}

    @classmethod
    def from_json(cls, data: dict[str, Any], *, digits: int | None = None) -> Self:
        """The inverse of `to_json`."""
        columns = {name: int(total, 16) for name, total in data["columns"].items()}
        return cls(digits, data["rows"], int(data["rowsum"][:16], 16), int(data["rowsum"][16:], 16), columns)


def content_id(data: pa.Table | Iterable[pa.RecordBatch], schema: pa.Schema | None = None) -> str:
    """The content id of a table, or of batches of one schema."""
    total = RowSum()
    if isinstance(data, pa.Table):
        schema = data.schema
        data = data.to_batches()
    for batch in data:
        schema = schema or batch.schema
        total.update(batch)
    if schema is None:
        raise ValueError("No batch and no schema: pass schema= for data that may be empty.")
    return total.content_id(schema)
