"""Writing the rows of a build: Parquet files, their rows summed while they are written, one unit per partition.

A *unit* is what is published and shared: the rows of one partition (or of the whole dataset) in one or more files.
Its rows' sum is taken in a second thread while pyarrow writes.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from cumin.content import RowSum, schema_form
from cumin.encoding import digest
from cumin.errors import EngineError
from cumin.layout import Target
from cumin.partitions import partition_key


@dataclass
class UnitFile:
    """A finished file in staging."""

    path: Path
    size: int
    blake3: str
    rows: int
    row_groups: list[int]

    def to_json(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        return {"path": str(self.path), "size": self.size, "blake3": self.blake3, "rows": self.rows,
                "row_groups": self.row_groups}  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "UnitFile":
        """The inverse of `to_json`."""
        return cls(Path(data["path"]), data["size"], data["blake3"], data["rows"], list(data["row_groups"]))


@dataclass
class Unit:
    """The rows of one partition, written and summed."""

    partition: str
    schema: pa.Schema
    sum: RowSum
    files: list[UnitFile] = field(default_factory=list)

    @property
    def content_id(self) -> str:
        """The content id of the unit's rows."""
        return self.sum.content_id(self.schema)

    def key(self, target: Target) -> str:
        """The name of the unit's folder in the store: its content, its order and its layout. Where the rows have an order
        of their own, which their content does not say, its files' bytes too."""
        form = [self.content_id, list(target.order_key), target.layout.form()]
        if target.ordered:
            form.append([file.blake3 for file in self.files])
        return digest("cumin/unit", form)[:32]


def _blake3_of(path: Path) -> str:
    """BLAKE3 of a file that was just written, from the page cache. The interpreter's lock is not held."""
    return blake3().update_mmap(path).hexdigest()


class UnitWriter:
    """Writes the batches of one unit. `close` gives the Unit; `abort` closes without one. Not for several threads."""

    def __init__(self, partition: str, schema: pa.Schema, target: Target) -> None:
        self._unit = Unit(partition, schema, RowSum(target.digits))
        self._target, self._schema = target, schema
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._open: tuple[pq.ParquetWriter, Path] | None = None
        self._groups: list[int] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cumin-rowsum")

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows of the unit."""
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        if self._waiting_rows >= self._target.layout.rows_per_group:
            self._flush(whole=False)

    def _flush(self, *, whole: bool) -> None:
        if not self._waiting_rows:
            return
        table = pa.Table.from_batches(self._waiting).combine_chunks()
        self._waiting, self._waiting_rows = [], 0
        size = self._target.layout.rows_per_group
        end = table.num_rows if whole else table.num_rows - table.num_rows % size
        for start in range(0, end, size):
            group = table.slice(start, min(size, end - start))
            batch = group.to_batches()[0]
            summing = self._pool.submit(self._unit.sum.update, batch)
            self._write(group)
            summing.result()
        if end < table.num_rows:
            self._waiting = table.slice(end).to_batches()
            self._waiting_rows = table.num_rows - end

    def _write(self, group: pa.Table) -> None:
        if self._open is None:
            path = (
                self._target.folder
                / f"{blake3(self._unit.partition.encode()).hexdigest()[:12]}-{len(self._unit.files):05}.parquet"
            )
            # pyarrow writes the file itself: through a Python file each page would wait for the lock that the sum holds.
            writer = pq.ParquetWriter(
                path, self._schema, compression=self._target.layout.compression, write_page_checksum=True
            )
            self._open = (writer, path)
        self._open[0].write_table(group, row_group_size=self._target.layout.rows_per_group)
        self._groups.append(group.num_rows)
        if sum(self._groups) >= self._target.layout.rows_per_file:
            self._finish_file()

    def _finish_file(self) -> None:
        if self._open is None:
            return
        writer, path = self._open
        self._open = None
        writer.close()
        rows, self._groups = self._groups, []
        self._unit.files.append(UnitFile(path, path.stat().st_size, _blake3_of(path), sum(rows), rows))

    def close(self) -> Unit:
        """Write what waits and finish the last file."""
        try:
            self._flush(whole=True)
            self._finish_file()
        finally:
            self.abort()
        return self._unit

    def abort(self) -> None:
        """Close without finishing. Nothing happens after `close`."""
        self._pool.shutdown(wait=True)
        if self._open is not None:
            writer, _ = self._open
            self._open = None
            writer.close()


def write_units(batches: Iterable[pa.RecordBatch], schema: pa.Schema, target: Target) -> list[Unit]:
    """Write a stream of batches, sorted by the partition columns, as one unit per partition."""
    schema_form(schema)
    if not target.partition_by:
        writer = UnitWriter("", schema, target)
        try:
            for batch in batches:
                writer.add(batch)
            return [writer.close()]
        finally:
            writer.abort()
    return list(_write_partitions(batches, schema, target))


def _write_partitions(batches: Iterable[pa.RecordBatch], schema: pa.Schema, target: Target) -> Iterator[Unit]:
    writer: UnitWriter | None = None
    current, done = None, set()
    try:
        for batch in batches:
            for key, piece in split(batch, target.partition_by):
                if key != current:
                    if writer is not None:
                        yield writer.close()
                    if key in done:
                        raise EngineError(
                            f"The engine gave rows of {key} in two runs; it must sort by {target.partition_by}."
                        )
                    done.add(key)
                    writer, current = UnitWriter(key, schema, target), key
                assert writer is not None
                writer.add(piece)
        if writer is not None:
            yield writer.close()
    finally:
        if writer is not None:
            writer.abort()


def split(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The runs of equal partition values in a batch, each with its partition's key."""
    if batch.num_rows == 0:
        return
    import pyarrow.compute as pc

    cuts = {batch.num_rows}
    for name in columns:
        column = batch.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        cuts.update(np.asarray(pc.run_end_encode(column).run_ends).tolist())
    start = 0
    for end in sorted(cuts):
        values = [_partition_value(batch.column(name)[start].as_py(), name) for name in columns]
        yield partition_key(columns, values), batch.slice(start, end - start)
        start = end


def _partition_value(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, str)) or type(value) is date:
        return str(value)
    raise EngineError(
        f"partition_by={name!r}: a {type(value).__name__} cannot name a partition. "
        "Allowed: whole numbers, text, dates, booleans."
    )
