"""One rank's writer: batches to part files in the staging folder, closed at so many rows or bytes, one per partition."""

from __future__ import annotations

import datetime
import posixpath
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from ghee.errors import BatchError, GheeError, SinkError
from ghee.io.arrays import from_numpy
from ghee.io.contract import PartFile
from ghee.io.listing import HIVE_NULL
from ghee.io.schema import conform, promote
from ghee.io.sinks.formats import WRITERS
from ghee.io.sinks.stream import HashingStream
from ghee.io.sinks.table import as_table
from ghee.io.stores.patience import PATIENCE, first_line, patiently

# Batches are small and row groups should not be: rows are gathered up to so many per file, bytes per writer.
GATHER_ROWS = 1 << 17
GATHER_BYTES = 64 << 20
STORE_SECONDS = 300.0  # what is open for so long is closed: a run that dies does not write it again
MAX_OPEN = 64  # part files of different partitions; beyond it the one that was not used for longest is closed


class FileWriter:
    """Writes a rank's batches. What `write` was given may be changed or freed by the caller afterwards.

    All batches have the same columns; types may differ as `schema.promote` allows (a new file begins where the type of
    a column widens).
    """

    def __init__(
        self, filesystem: Any, folder: str, rank: int, format: str, rows_per_file: int, partition_by: tuple[str, ...],
        clock: Callable[[], float] = time.monotonic, file_size: int | None = None, patience: float = PATIENCE,
    ) -> None:  # fmt: skip
        self._filesystem = filesystem
        self._folder = folder
        self._prefix = f"part-{rank:05}-{uuid.uuid4().hex[:8]}"
        self._kind = WRITERS[format]
        self._rows_per_file = rows_per_file
        self._file_size = file_size or sys.maxsize
        self._patience = patience
        self._keys = partition_by
        self._schema: Any = None
        self._open: OrderedDict[str, _Part] = OrderedDict()
        self._done: list[PartFile] = []
        self._stored: list[PartFile] = []
        self._is_full = False
        self._clock = clock
        self._since = clock()
        self._count = 0
        self._closed = False

    def write(self, batch: object) -> None:
        if self._closed:
            raise RuntimeError("the writer is closed")
        table = as_table(batch)
        # Everything that can be wrong with the batch is found before a row of it is written.
        pieces = list(self._partitioned(table))
        schema = self._common([f for f in table.schema if f.name not in self._keys])
        if (
            schema != self._schema
            or self._is_full
            or not self._has_room(pieces)
            or self._clock() - self._since > STORE_SECONDS
        ):
            self._store()
            self._schema = schema
        for folder, rows in pieces:
            if rows.num_rows:
                self._append(folder, rows)

    def _has_room(self, pieces: Sequence[tuple[str, Any]]) -> bool:
        """Whether the files that a batch goes to can take it whole. One that is empty takes any."""
        for folder, rows in pieces:
            part = self._open.get(folder)
            if part is not None and part.rows + rows.num_rows > self._rows_per_file:
                return False
        return True

    def _store(self) -> None:
        """Close the files of all partitions: together they hold what was written since this was done last, and no more."""
        self._close_all()
        self._stored += self._done
        self._done.clear()
        self._is_full = False
        self._since = self._clock()

    def stored(self) -> list[PartFile]:
        """Parts that were closed together since this was asked last: they hold every batch but the last whole."""
        stored, self._stored = self._stored, []
        return stored

    def store(self) -> list[PartFile]:
        """Close what is open; the parts since `stored` was asked last."""
        self._store()
        return self.stored()

    def close(self) -> list[PartFile]:
        """The parts that `stored` and `store` have not returned."""
        self._closed = True
        return self.store()

    def abort(self) -> None:
        self._closed = True
        for part in self._open.values():
            part.abandon()
        paths = [part.path for part in self._open.values()] + [part.path for part in self._done + self._stored]
        self._open.clear()
        self._done.clear()
        self._stored.clear()
        for path in paths:
            with suppress(OSError):
                self._filesystem.delete_file(posixpath.join(self._folder, path))

    def _common(self, fields: list[Any]) -> Any:
        """The schema of the batches so far and this one; raises BatchError where there is none."""
        if not fields:
            raise BatchError(
                f"The batch has no columns besides those of partition_by={self._keys}; nothing would be stored."
            )
        found = pa.schema(fields).remove_metadata()
        if len(set(found.names)) != len(found.names):
            raise BatchError(f"A column name is there twice: {found.names}.")
        if self._schema is None:
            return _checked(self._kind, found)
        if set(found.names) != set(self._schema.names):
            raise BatchError(f"The batch has the columns {found.names}; the batches before it had {self._schema.names}.")
        kinds = {field.name: promote(field.type, found.field(field.name).type) for field in self._schema}
        wrong = [
            f"{name!r} is {found.field(name).type}, before it was {self._schema.field(name).type}"
            for name, kind in kinds.items()
            if kind is None
        ]
        if wrong:
            raise BatchError("The batch has other types than those before it: column " + "; column ".join(wrong) + ".")
        return pa.schema(list(kinds.items()))

    def _append(self, folder: str, rows: Any) -> None:
        at = 0
        while at < rows.num_rows:
            part = self._part(folder)
            taken = rows.slice(at, self._rows_per_file - part.rows)
            at += taken.num_rows
            with self._storing(part.path):
                part.add(taken, self._schema)
                if part.gathered_rows >= GATHER_ROWS or part.gathered_bytes >= self._file_size:
                    part.flush()
            if part.rows >= self._rows_per_file or part.stream.tell() >= self._file_size:
                self._close(folder)
                self._is_full = True
        while sum(part.gathered_bytes for part in self._open.values()) > GATHER_BYTES:
            largest = max(self._open.values(), key=lambda part: part.gathered_bytes)
            with self._storing(largest.path):
                largest.flush()

    def _part(self, folder: str) -> _Part:
        if folder in self._open:
            self._open.move_to_end(folder)
            return self._open[folder]
        if len(self._open) >= MAX_OPEN:
            self._close(next(iter(self._open)))
        path = posixpath.join(folder, f"{self._prefix}-{self._count:05}{self._kind.suffix}")
        self._count += 1
        with self._storing(path):
            if folder:
                below = posixpath.join(self._folder, folder)
                patiently(lambda: self._filesystem.create_dir(below, recursive=True), self._patience, below)
            stream = HashingStream(self._filesystem, posixpath.join(self._folder, path), self._patience)
            self._open[folder] = _Part(path, stream, self._kind(stream, self._schema))
        return self._open[folder]

    def _close(self, folder: str) -> None:
        part = self._open[folder]
        with self._storing(part.path):
            self._done.append(part.close())
        del self._open[folder]

    def _close_all(self) -> None:
        for folder in list(self._open):
            self._close(folder)

    @contextmanager
    def _storing(self, path: str) -> Iterator[None]:
        try:
            yield
        except GheeError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise SinkError(f"{posixpath.join(self._folder, path)} cannot be written: {first_line(error)}") from error

    def _partitioned(self, table: Any) -> Iterator[tuple[str, Any]]:
        """(folder, rows) per combination of the partition columns' values, rows in their order."""
        if not self._keys:
            yield "", table
            return
        missing = [key for key in self._keys if key not in table.schema.names]
        if missing:
            raise BatchError(f"partition_by: the batch has no column {missing}; it has {table.schema.names}.")
        code = np.zeros(table.num_rows, dtype=np.int64)
        texts = []
        for key in self._keys:
            column = table[key].combine_chunks()
            column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            encoded = column.dictionary_encode(null_encoding="encode")
            encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
            texts.append([f"{quote(key, safe='')}={_segment(key, v)}" for v in encoded.dictionary.to_pylist()])
            code = code * max(len(texts[-1]), 1) + encoded.indices.to_numpy(zero_copy_only=False)
            # Kept small, so that many columns of many values do not overflow: only the combinations that are there.
            combinations, code = np.unique(code, return_inverse=True)
            texts = [_combined(texts, combinations)]
        rest = table.drop_columns(list(self._keys))
        order = np.argsort(code, kind="stable")
        edges = np.flatnonzero(np.diff(code[order])) + 1
        for rows in np.split(order, edges) if len(order) else []:
            yield texts[0][code[rows[0]]], rest.take(from_numpy(rows))


def _combined(texts: list[list[str]], combinations: Any) -> list[str]:
    if len(texts) == 1:
        return [texts[0][code] for code in combinations]
    before, now = texts
    return [f"{before[code // len(now)]}/{now[code % len(now)]}" for code in combinations]


def _segment(key: str, value: Any) -> str:
    if value is None:
        return HIVE_NULL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, datetime.date)) and not isinstance(value, datetime.datetime):
        return str(value)
    if not isinstance(value, str):
        raise BatchError(
            f"partition_by: {key!r} holds {type(value).__name__} {value!r}; "
            "allowed are strings, whole numbers, booleans, dates."
        )
    if value == HIVE_NULL:
        raise BatchError(f"partition_by: {key!r} holds {value!r}, which stands for null in a path.")
    return quote(value, safe="")


def _checked(kind: Any, schema: Any) -> Any:
    """The schema, if the format can hold it."""
    try:
        kind(pa.BufferOutputStream(), schema).close()
    except (pa.ArrowException, TypeError) as error:
        raise BatchError(f"The batch cannot be written: {error}") from error
    return schema


class _Part:
    """An open part file, and the rows that are gathered for its next row group."""

    def __init__(self, path: str, stream: HashingStream, tables: Any) -> None:
        self.path = path
        self.stream = stream
        self.rows = 0
        self.gathered_rows = 0
        self.gathered_bytes = 0
        self._tables = tables
        self._gathered: list[Any] = []

    def add(self, table: Any, schema: Any) -> None:
        for batch in table.to_batches():
            copied, size = _copied(conform(batch.replace_schema_metadata(None), schema))
            self._gathered.append(copied)
            self.gathered_bytes += size
        self.gathered_rows += table.num_rows
        self.rows += table.num_rows

    def flush(self) -> None:
        if self._gathered:
            self._tables.write(pa.concat_tables(self._gathered).combine_chunks())
        self._gathered.clear()
        self.gathered_rows = self.gathered_bytes = 0

    def close(self) -> PartFile:
        self.flush()
        self._tables.close()
        size, digest = self.stream.finish()
        return PartFile(self.path, self.rows, size, digest)

    def abandon(self) -> None:
        self.stream.abandon()
        with suppress(OSError, pa.ArrowException):
            self._tables.close()


def _copied(batch: Any) -> tuple[Any, int]:
    """A copy in memory of its own, and its bytes: the caller's arrays may be views of memory that is used again."""
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    data = buffer.getvalue()
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all(), data.size
