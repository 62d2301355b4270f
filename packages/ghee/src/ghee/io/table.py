"""The source of what lies in memory already: an Arrow table, a frame, a dict of numpy arrays. Cut like files are.

On one machine it is written once into the run's folder (Arrow IPC, or one .npy file a column) and every reading rank maps
it; where ranks have machines of their own it travels to each with its task.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ghee.errors import PipelineError
from ghee.io import plan
from ghee.io.contract import Split
from ghee.io.rebatch import interleaved, rebatch, shuffled

_FILE = plan.FileRef("memory", None, None)

MOST_UNITS = 1 << 14
"""Of so many pieces at the most a table is mixed."""


class Arrays:
    """Columns of numpy arrays with as many rows each, which are sliced, taken from and put together as one."""

    def __init__(self, columns: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self.columns = dict(columns)

    @property
    def num_rows(self) -> int:
        """The rows of each."""
        return len(next(iter(self.columns.values())))

    @property
    def nbytes(self) -> int:
        """Of all columns."""
        return sum(array.nbytes for array in self.columns.values())

    def slice(self, offset: int, length: int | None = None) -> Arrays:
        """Rows from one on: views."""
        stop = None if length is None else offset + length
        return Arrays({name: array[offset:stop] for name, array in self.columns.items()})

    def take(self, rows: Any) -> Arrays:
        """These rows, copied."""
        numbers = np.asarray(rows)
        return Arrays({name: array[numbers] for name, array in self.columns.items()})

    def select(self, names: Sequence[str]) -> Arrays:
        """These columns, in this order."""
        return Arrays({name: self.columns[name] for name in names})

    @staticmethod
    def concat(parts: Sequence[Arrays]) -> Arrays:
        """The rows of several."""
        return Arrays({name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns})


@dataclass(frozen=True)
class TableOptions:
    """How a table is read; units as `open_source` has them. `content` tells two tables from each other."""

    batch_size: int = 4096
    shuffle: int | None = None
    shuffle_buffer: int | None = None
    drop_last: bool = False
    split_rows: int | None = None
    content: str = ""


@dataclass
class TableSource:
    """A table in memory. Order of rows as in the table; shuffled, splits and buffers are those of `FileSource`.

        source = TableSource(pa.table({"x": range(1000)}), TableOptions(batch_size=64))
        for split in source.order(source.splits(), epoch=0):
            for batch in source.read(split, epoch=0):
                ...

    Batches are Arrow record batches, or dicts of arrays where that was given.
    """

    table: Any
    options: TableOptions
    hosted: bool = field(default=False, init=False)
    _step: int = field(default=1, init=False, repr=False)
    _buffer: int = field(default=1, init=False, repr=False)
    _laid_down: Path | None = field(default=None, init=False, repr=False)

    @property
    def least_rows(self) -> int:
        """A batch of fewer rows is not given to any function."""
        return self.options.batch_size if self.options.drop_last else 0

    def check_epochs(self, epochs: int) -> None:
        """A table can be read any number of times."""

    def splits(self) -> list[Split]:
        """Cut at whole batches."""
        if not self.options.content:  # a run that goes on must be given the same rows
            self.options = replace(self.options, content=_content(self.table))
        rows, size, batch_size = self.table.num_rows, self.table.nbytes, self.options.batch_size
        if self.options.shuffle is None:
            self._step = max(rows, 1)
            parts = _parts(rows, size, self._step)
            goal = plan.target(parts, batch_size=batch_size, split_rows=self.options.split_rows)
            return plan.even(parts, replace(goal, cut_groups=True), batch_size=batch_size) if parts else []
        buffer = plan.buffer_of(_parts(rows, size, max(rows, 1)), batch_size=batch_size)
        self._buffer = self.options.shuffle_buffer or buffer
        self._step = max(1, self._buffer // plan.MIXED, -(-rows // MOST_UNITS))
        parts = _parts(rows, size, self._step)
        return plan.unmixed(parts, buffer=self._buffer, batch_size=batch_size) if parts else []

    def order(self, splits: Sequence[Split], epoch: int) -> list[Split]:
        """As of files."""
        if self.options.shuffle is None:
            return plan.ordered(splits)
        return plan.mixed(splits, self.options.shuffle, epoch, buffer=self._buffer)

    def read(self, split: Split, *, epoch: int) -> Iterator[Any]:
        """The split's batches."""
        table, batch_size = self._opened(), self.options.batch_size
        pieces = (self._rows(table, piece) for piece in split.pieces)
        if self.options.shuffle is None:
            batches = rebatch((batch for piece in pieces for batch in piece), batch_size)
        else:
            if plan.fits(split.rows, self._buffer):
                rows: Iterator[Any] = (batch for piece in pieces for batch in piece)
            else:
                rows = interleaved(pieces, width=plan.MIXED, rows=max(self._buffer // plan.MIXED, 1))
            key = (self.options.shuffle, epoch, split.index)
            batches = shuffled(rows, key, buffer=self._buffer, batch_size=batch_size)
        if isinstance(table, Arrays):  # a function may write into what it is given, and must not into the table
            return ({name: np.array(array) for name, array in batch.columns.items()} for batch in batches)
        return iter(batches)

    def _rows(self, table: Any, piece: plan.Piece) -> Iterator[Any]:
        part = table.slice(piece.start * self._step + piece.skip, piece.rows)
        yield from part.to_batches() if isinstance(part, pa.Table) else (part,)

    # ── how it travels ───────────────────────────────────────────────────────────────────────────────────────────

    def lay_down(self, folder: Path) -> None:
        """In the driver: write the table into a folder that every reading rank sees; from then on its path travels."""
        place = folder / "source"
        if isinstance(self.table, Arrays):
            if any(array.dtype.hasobject for array in self.table.columns.values()):
                return  # objects cannot be mapped
            place.mkdir(exist_ok=True)
            for number, array in enumerate(self.table.columns.values()):
                beside = place / f"{number}.tmp.npy"
                np.save(beside, array)
                beside.replace(place / f"{number}.npy")
        else:
            beside = folder / "source.tmp"
            with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, self.table.schema) as writer:
                writer.write_table(self.table.unify_dictionaries())  # of which a file has one a column
            beside.replace(place)
        self._laid_down = place

    def pick_up(self) -> None:
        """In the driver: no rank reads any more."""
        place, self._laid_down = self._laid_down, None
        if place is not None and place.is_dir():
            shutil.rmtree(place)
        elif place is not None:
            place.unlink()

    def _opened(self) -> Any:
        if self.table is None:
            assert self._laid_down is not None
            self.table = pa.ipc.open_file(pa.memory_map(str(self._laid_down))).read_all()
        elif isinstance(self.table, list):
            assert self._laid_down is not None
            names: list[str] = self.table
            self.table = Arrays({name: _mapped(self._laid_down / f"{n}.npy") for n, name in enumerate(names)})
        return self.table

    def __getstate__(self) -> dict[str, Any]:
        if self._laid_down is None:
            return self.__dict__
        names = list(self.table.columns) if isinstance(self.table, Arrays) else None
        return {**self.__dict__, "table": names}


def _parts(rows: int, size: int, step: int) -> list[plan.Part]:
    """Units of `step` rows, numbered from 0."""
    parts = []
    for unit, begin in enumerate(range(0, rows, step)):
        number = min(step, rows - begin)
        parts.append(plan.Part(plan.Piece(_FILE, unit, unit + 1, number), number, size * number // rows, True))
    return parts


def _mapped(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:  # an array without a byte cannot be mapped
        return np.load(path)


def table_of(source: object) -> Any:
    """The table that an object is, as an Arrow table or Arrays; None if it is none. Raises PipelineError."""
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    if type(source) is dict and source and all(isinstance(value, np.ndarray) for value in source.values()):
        rows = {name: len(array) if array.ndim else None for name, array in source.items()}
        if len(set(rows.values())) > 1 or None in rows.values():
            raise PipelineError(f"a dict of arrays as a source needs arrays of equal length, got lengths {rows}")
        return Arrays(source)
    if isinstance(source, pa.RecordBatchReader) or not hasattr(type(source), "__arrow_c_stream__"):
        return None
    try:
        table = pa.table(source)
        return table.cast(pa.schema([f.with_type(_plain(f.type)) for f in table.schema], table.schema.metadata))
    except (pa.ArrowException, TypeError, ValueError) as error:
        kind = type(source).__name__
        raise PipelineError(f"the {kind} could not be made an Arrow table: {error}; give one that you have made") from error


def _plain(kind: Any) -> Any:
    """A type without views of strings, which polars gives and most functions of Arrow do not take."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    return kind


def _content(table: Any) -> str:
    """A checksum of names, types and bytes."""
    sums = 0
    if isinstance(table, Arrays):
        said = str([(name, str(a.dtype), a.shape) for name, a in table.columns.items()])
        for array in table.columns.values():
            data = repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes()
            sums = zlib.crc32(data, sums)
        return f"{said} {sums:08x}"
    sink = _Checksum()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as writer:
        writer.write_table(table)
    return f"{table.num_rows} {sink.sum:08x}"


class _Checksum:
    """A file that keeps a checksum of what is written to it, and nothing else."""

    closed = False

    def __init__(self) -> None:
        self.sum, self._at = 0, 0

    def write(self, data: Any) -> int:
        self.sum = zlib.crc32(data, self.sum)
        size = memoryview(data).nbytes
        self._at += size
        return size

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        self.closed = True
