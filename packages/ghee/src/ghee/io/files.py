"""The source of files: lists, checks and cuts them in the driver, and reads a split in a rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from ghee.errors import GheeError, PipelineError, SchemaError, SourceCorruptError, SourceError
from ghee.io import plan
from ghee.io.contract import Split
from ghee.io.formats import FORMATS, FileInfo, ReadOptions, format_of
from ghee.io.formats.parquet import pruned, read_filtered
from ghee.io.listing import Listing, in_threads, list_files, stat_problem, with_etags
from ghee.io.location import Place
from ghee.io.rebatch import interleaved, rebatch, shuffled, sliced
from ghee.io.schema import check_columns, conform, listed, unify
from ghee.io.stores.patience import FIRST_PATIENCE, PATIENCE, Patience, first_line, is_passing, patiently

DROP_LAST_ADVICE = "Write .rebatch(rows, drop_last=True) before the loop or sink, which counts what comes to it."

SAMPLE_TOTAL = 64 << 20  # bytes of text that the driver reads to decide types, over all files
SAMPLE_LEAST = 256 << 10
SAMPLE_MOST = 8 << 20


@dataclass(frozen=True)
class FileOptions:
    """What `open_source` was asked for; units and defaults are described there."""

    columns: tuple[str, ...] | None = None
    filter: Any = None  # pyarrow.compute.Expression
    batch_size: int = 4096
    shuffle: int | None = None
    shuffle_buffer: int | None = None
    limit: int | None = None
    drop_last: bool = False
    format: str | None = None
    split_rows: int | None = None
    schema: Any = None
    patience: float = PATIENCE


@dataclass(frozen=True)
class Expected:
    """What the maker of a dataset said about it: rows in total, or per path as it was given."""

    rows: int | Mapping[str, int] | None = None
    digest: str | None = None


@dataclass
class FileSource:
    """Files of one format. Pickles; `splits` decides the schema, so it comes before the source travels to the ranks.

        source = FileSource((locate("ratings/*.parquet"),), FileOptions(batch_size=1024))
        for split in source.order(source.splits(), epoch=0):
            for batch in source.read(split, epoch=0):
                ...

    Order of rows: files in the order of the places (within a folder or glob by path), rows as they are in the file.
    With a seed: pieces of all files permuted by (seed, epoch), rows permuted by (seed, epoch, split) within a buffer.
    `limit` takes the first rows in source order; what is shuffled is those. Where rows can be counted before they are read
    (Parquet and Arrow files without a filter, and whatever has a limit), every batch but an epoch's last is full.
    """

    places: tuple[Place, ...]
    options: FileOptions
    expected: Expected = Expected()
    partitioning: str | None = None
    hosted: bool = field(default=False, init=False)
    _state: _Inspected | None = field(default=None, init=False, repr=False)
    _buffer: int = field(default=1, init=False, repr=False)  # rows; decided with the splits

    @property
    def schema(self) -> Any:
        """The schema of the batches (pyarrow.Schema); lists and inspects the files at the first use."""
        return self._inspected().output

    @property
    def digest(self) -> str | None:
        """The dataset's content id, where its maker gave one."""
        return self.expected.digest

    @property
    def least_rows(self) -> int:
        """A batch of fewer rows is not given to any function."""
        return self.options.batch_size if self.options.drop_last else 0

    def check_epochs(self, epochs: int) -> None:
        """Files can be read any number of times."""

    def splits(self) -> list[Split]:
        self._state = None  # what changed since the last run is seen
        state = self._inspected()
        options, batch_size = self.options, self.options.batch_size
        files = [(file, info.units) for file, info in zip(state.files, state.infos, strict=True)]
        parts = plan.parts_of(files, filtered=options.filter is not None)
        if options.limit is not None:
            parts = plan.limited(self._counted(parts), options.limit)
        if options.drop_last and not plan.are_counted(parts):
            raise PipelineError(
                "drop_last=True: nobody knows which batch is an epoch's last where rows cannot be counted before they are "
                f"read (text, a filter), unless limit= is given. {DROP_LAST_ADVICE}"
            )
        if options.shuffle is not None:
            self._buffer = options.shuffle_buffer or plan.buffer_of(parts, batch_size=batch_size)
            return plan.unmixed(parts, buffer=self._buffer, batch_size=batch_size)
        size = plan.target(parts, batch_size=batch_size, split_rows=options.split_rows)
        if plan.are_counted(parts):
            return plan.even(parts, size, batch_size=batch_size)
        return plan.packed(parts, size)

    def order(self, splits: Sequence[Split], epoch: int) -> list[Split]:
        if self.options.shuffle is None:
            return plan.ordered(splits)
        return plan.mixed(splits, self.options.shuffle, epoch, buffer=self._buffer)

    def read(self, split: Split, *, epoch: int) -> Iterator[Any]:
        state, batch_size = self._state, self.options.batch_size
        if state is None:
            raise RuntimeError("FileSource.read needs the schema that splits() decides; call splits() before it travels")
        if self.options.shuffle is None:
            return rebatch(self._rows(state, split), batch_size)
        if plan.fits(split.rows, self._buffer):
            rows = self._rows(state, split)
        else:  # a part of each of many pieces is in the buffer at any time
            pieces = (self._patiently(state, piece, many=True) for piece in split.pieces)
            rows = interleaved(pieces, width=plan.MIXED, rows=max(self._buffer // plan.MIXED, 1))
        return shuffled(rows, (self.options.shuffle, epoch, split.index), buffer=self._buffer, batch_size=batch_size)

    def _rows(self, state: _Inspected, split: Split) -> Iterator[Any]:
        for piece in split.pieces:
            yield from self._patiently(state, piece)

    def _patiently(self, state: _Inspected, piece: plan.Piece, *, many: bool = False) -> Iterator[Any]:
        """A piece's rows; where its store goes away in the middle, the rows after those that are out already."""
        patience, done = Patience(self.options.patience, piece.file.path), 0
        while True:
            try:
                for batch in self._unchanged(state, piece, done, many):
                    patience.back()
                    done += batch.num_rows
                    yield batch
                patience.back()  # it may have been away after the last row, when the file was looked at once more
                return
            except (GheeError, OSError) as error:
                patience.wait_or_raise(error)

    def _unchanged(self, state: _Inspected, piece: plan.Piece, done: int, many: bool) -> Iterator[Any]:
        """A piece's rows but for the first `done`, of the file as it was listed or not at all."""
        _check_unchanged(state.filesystem, piece.file)
        try:
            left = None if piece.take is None else piece.take - done
            yield from sliced(self._piece(state, piece, many=many), piece.skip + done, left)
        except GheeError as error:
            # A file that was replaced looks corrupt to a reader; say what happened rather than what it looks like.
            _check_unchanged(state.filesystem, piece.file, error)
            raise
        _check_unchanged(state.filesystem, piece.file)

    def _piece(self, state: _Inspected, piece: plan.Piece, *, many: bool = False) -> Iterator[Any]:
        kind = FORMATS[state.format]
        filter = self.options.filter
        full = state.full if filter is not None else state.output
        stored = pa.schema([f for f in full if f.name not in state.partitions.names])
        read = ReadOptions(stored, self.options.batch_size, strict=self.options.columns is None, many=many)
        # A scan decodes a row group as a whole, which is too much for many pieces that are read side by side.
        if filter is not None and state.format == "parquet" and not many:
            scan = (state.full, state.output.names, filter)
            batches = read_filtered(state.filesystem, piece, state.partition(piece.file), scan, self.options.batch_size)
            for batch in batches:
                yield _conformed(batch, state.output, piece.file.path)
            return
        for batch in kind.read(state.filesystem, piece, read):
            batch = _conformed(_with_partitions(batch, piece.file, state.partitions, full), full, piece.file.path)
            if filter is not None:
                yield from _passing(batch, filter, state.output)
            else:
                yield batch

    def _counted(self, parts: Sequence[plan.Part]) -> Iterator[plan.Part]:
        """The parts with the rows of each; reads where a format does not say them."""
        state = self._inspected()
        for part in parts:
            if part.piece.rows is None:
                rows = sum(batch.num_rows for batch in self._piece(state, part.piece))
                part = replace(part, piece=replace(part.piece, rows=rows))
            yield part

    def _inspected(self) -> _Inspected:
        if self._state is None:
            # The first answer of a store is not waited for long, what comes after it is.
            where, patience = self.places[0].given, self.options.patience
            first = min(FIRST_PATIENCE, patience)
            listing = patiently(lambda: list_files(self.places, partitioning=self.partitioning), first, where)
            self._state = patiently(lambda: self._inspect(listing), patience, where)
        return self._state

    def _inspect(self, listing: Listing) -> _Inspected:
        name = self.options.format or _format(listing)
        kind = FORMATS[name]
        listing = replace(listing, files=with_etags(listing.filesystem, listing.files))
        if self.options.schema is not None and not kind.text:
            raise PipelineError(f"schema= decides the types of CSV and JSON lines; {name} files carry theirs. Leave it out.")
        sample = min(max(SAMPLE_TOTAL // len(listing.files), SAMPLE_LEAST), SAMPLE_MOST)
        unit_bytes = plan.target_bytes(sum(file.size or 0 for file in listing.files))
        if self.options.shuffle is not None:
            unit_bytes = max(unit_bytes // plan.MIXED, plan.MIN_SPLIT_BYTES)

        def inspect(file: plan.FileRef) -> FileInfo | SourceError:
            try:
                return kind.inspect(
                    listing.filesystem, file, schema=self.options.schema, sample=sample, unit_bytes=unit_bytes
                )
            except SourceError as error:
                return error

        results = in_threads(inspect, listing.files)
        broken = [result for result in results if isinstance(result, SourceError)]
        away = next((error for error in broken if is_passing(error)), None)
        if away is not None:
            raise away
        good = [(f, info) for f, info in zip(listing.files, results, strict=True) if isinstance(info, FileInfo)]
        state, problems = self._unified(name, listing, good)
        if broken:
            corrupt = any(isinstance(error, SourceCorruptError) for error in broken)
            raise (SourceCorruptError if corrupt else SourceError)(
                "Files that cannot be read:" + listed([*map(str, broken), *problems])
            )
        if problems:
            raise SchemaError("The files do not have one schema:" + listed(problems))
        if self.options.columns is not None:
            there = [name for _, info in good for name in info.schema.names]
            check_columns(self.options.columns, [*dict.fromkeys(there), *listing.partitions.names], self.places[0].given)
        self._check_rows(state)
        return self._pruned(state)

    def _unified(
        self, name: str, listing: Listing, good: list[tuple[plan.FileRef, FileInfo]]
    ) -> tuple[_Inspected, list[str]]:
        kind = FORMATS[name]
        # A filter may use columns that are not returned, and no API says which: all are compared then.
        compared = None if self.options.filter is not None else self.options.columns
        schemas = [(file.path, info.schema) for file, info in good]
        stored, problems = unify(schemas, columns=compared, union=name == "jsonl", numbers=kind.text)
        # A column of CSV without a value so far: text is what can hold whatever comes later.
        void = pa.string() if name in ("csv", "tsv") else pa.null()
        fields = [f.with_type(void) if pa.types.is_null(f.type) else f for f in stored]
        fields = [f for f in fields if f.name not in listing.partitions.names]
        full = pa.schema([*fields, *listing.partitions])  # a path's value wins over a column of the same name
        names = full.names if self.options.columns is None else [n for n in self.options.columns if n in full.names]
        output = pa.schema([full.field(n) for n in names])
        return _Inspected(
            listing.filesystem, name, listing.files, tuple(info for _, info in good), listing.partitions, full, output
        ), problems

    def _pruned(self, state: _Inspected) -> _Inspected:
        """Without the files and row groups that the filter excludes by partition and by statistics."""
        filter = self.options.filter
        if filter is None:
            return state
        try:
            empty = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in state.full], schema=state.full)
            list(_passing(empty, filter, state.output))
        except (pa.ArrowException, TypeError) as error:
            raise SchemaError(
                f"The filter {filter} does not fit the columns of {self.places[0].given}: {error}. "
                f"They are {', '.join(f'{f.name}: {f.type}' for f in state.full)}."
            ) from error
        if state.format != "parquet":
            return state
        files = [(file, state.partition(file), info) for file, info in zip(state.files, state.infos, strict=True)]
        kept = pruned(state.filesystem, files, state.full, filter)
        infos = [
            replace(info, units=tuple(replace(unit, cuttable=False) for unit in info.units if unit.start in set(groups)))
            for info, groups in zip(state.infos, kept, strict=True)
        ]
        return replace(state, infos=tuple(infos))

    def _check_rows(self, state: _Inspected) -> None:
        """Files against the rows that the dataset's maker counted."""
        expected = self.expected.rows
        if expected is None:
            return
        counts = {file.path: self._count(state, file, info) for file, info in zip(state.files, state.infos, strict=True)}
        if isinstance(expected, int):
            wrong = [] if sum(counts.values()) == expected else [f"{expected} rows expected, {sum(counts.values())} found"]
        else:
            wanted = {place.path: expected[place.given] for place in self.places if place.given in expected}
            wrong = [
                f"{path}: {rows} rows expected, {counts.get(path, 'no file')} found"
                for path, rows in wanted.items()
                if counts.get(path) != rows
            ]
        if wrong:
            raise SourceCorruptError("The dataset is not what its maker wrote:" + listed(wrong))

    def _count(self, state: _Inspected, file: plan.FileRef, info: FileInfo) -> int:
        if info.rows is not None:
            return info.rows
        pieces = [plan.Piece(file, unit.start, unit.stop, None) for unit in info.units]
        options = ReadOptions(pa.schema([f for f in state.full if f.name in info.schema.names]), self.options.batch_size)
        kind = FORMATS[state.format]
        return sum(batch.num_rows for piece in pieces for batch in kind.read(state.filesystem, piece, options))


@dataclass(frozen=True)
class _Inspected:
    """What the driver found; the ranks get it, without the files' own details."""

    filesystem: Any
    format: str
    files: tuple[plan.FileRef, ...]
    infos: tuple[FileInfo, ...]
    partitions: Any
    full: Any
    output: Any

    def __reduce__(self) -> Any:
        rest = (self.partitions, self.full, self.output)
        return _Inspected, (self.filesystem, self.format, (), (), *rest)  # splits name their files themselves

    def partition(self, file: plan.FileRef) -> Any:
        """The file's partition values as an expression that pyarrow simplifies filters with."""
        import pyarrow.compute as pc

        expression = pc.scalar(True)
        for column, value in zip(self.partitions, file.partition, strict=True):
            here = pc.field(column.name)
            expression = expression & (here.is_null() if value is None else here == pa.scalar(value, column.type))
        return expression


def _format(listing: Listing) -> str:
    kinds = {file.path: format_of(file.path) for file in listing.files}
    unknown = [path for path, kind in kinds.items() if kind is None]
    if unknown:
        raise PipelineError(
            f"No format is known for these names; say format= (one of {', '.join(map(repr, FORMATS))}) "
            "or name the files in the path, as in folder/*.parquet:" + listed(unknown)
        )
    if len(set(kinds.values())) > 1:
        found = [
            f"{kind}: {next(p for p, k in kinds.items() if k == kind)}" for kind in sorted({str(k) for k in kinds.values()})
        ]
        raise PipelineError("The files have several formats; read one at a time, as in folder/*.parquet:" + listed(found))
    return str(next(iter(kinds.values())))


def _check_unchanged(filesystem: Any, file: plan.FileRef, cause: BaseException | None = None) -> None:
    try:
        problem = stat_problem(filesystem, file)
    except OSError as error:
        raise SourceError(f"{file.path} cannot be reached: {first_line(error)}") from error
    if problem is not None:
        raise SourceError(f"{problem}. Rows of two versions are not mixed; run it again.") from cause


def _with_partitions(batch: Any, file: plan.FileRef, partitions: Any, wanted: Any) -> Any:
    """The batch with the file's partition values as columns, where they are wanted."""
    fields = [(f, value) for f, value in zip(partitions, file.partition, strict=True) if f.name in wanted.names]
    if not fields:
        return batch
    names = [name for name in batch.schema.names if name not in partitions.names]
    columns = [batch.column(batch.schema.get_field_index(name)) for name in names]
    columns += [pa.repeat(pa.scalar(value, f.type), batch.num_rows) for f, value in fields]
    return pa.RecordBatch.from_arrays(columns, names=[*names, *(f.name for f, _ in fields)])


def _passing(batch: Any, filter: Any, output: Any) -> Iterator[Any]:
    """The rows for which the filter is true. One thread: the order of rows stays, and a rank has its core."""
    from pyarrow import acero  # only filters need it

    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(pa.Table.from_batches([batch])))
    passing = acero.Declaration("filter", acero.FilterNodeOptions(filter), [source])
    yield from passing.to_table(use_threads=False).select(output.names).to_batches()


def _conformed(batch: Any, schema: Any, path: str) -> Any:
    try:
        return conform(batch, schema)
    except pa.ArrowException as error:
        raise SchemaError(f"{path}: a value does not fit the source's common schema: {error}") from error
