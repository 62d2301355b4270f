"""`open_source` and `open_sink`: which source or sink a user's argument means, and whether its options make sense."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ghee.errors import PipelineError, ResourceError
from ghee.io.contract import Sink, Source
from ghee.io.files import DROP_LAST_ADVICE, Expected, FileOptions, FileSource
from ghee.io.formats import format_of, named
from ghee.io.iterable import IterableSource
from ghee.io.kafka.options import is_kafka, parse_url, read_options, write_options
from ghee.io.location import locate
from ghee.io.sinks.files import FileSink, SinkOptions
from ghee.io.sinks.formats import WRITERS
from ghee.io.sinks.memory import CallbackSink, ListSink
from ghee.io.stores.patience import PATIENCE
from ghee.io.table import Arrays, TableOptions, TableSource, table_of
from ghee.resources import parse_bytes

DEFAULT_BATCH_SIZE = 4096
DEFAULT_ROWS_PER_FILE = 1 << 20
MODES = ("error", "overwrite", "append")


def open_source(
    source: object,
    *,
    columns: Sequence[str] | None = None,
    filter: Any = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    shuffle: int | None = None,
    shuffle_buffer: int | None = None,
    limit: int | None = None,
    drop_last: bool = False,
    format: str | None = None,
    filesystem: Any = None,
    split_rows: int | None = None,
    schema: Any = None,
    storage_options: Mapping[str, Any] | None = None,
    patience: float | None = None,
    **topic: Any,
) -> Source:
    """What is to be read; nothing is read yet.

    `source` is a path, glob, folder or URL, or a list of them; an object with `__ghee_source__()`, which says
    {"paths", "rows", "format", "partitioning", "digest"}; a table in memory (of pyarrow, whatever has
    `__arrow_c_stream__`, a dict of numpy arrays of equal length), which takes the options that are not about files; or a
    Python iterable of batches (a list, a generator, a
    function without arguments that returns an iterable), which takes none of the options.

    `columns`: the columns to read, in this order. `filter`: a pyarrow.compute.Expression, or a list of tuples as
    pyarrow.parquet takes them; only rows for which it is true are read. `batch_size` in rows: every batch of an epoch but
    its last has as many, whatever the files' sizes (of text, or with a filter, without `limit`: every batch of a split but
    its last). `shuffle`: a seed; pieces of all files are mixed. `shuffle_buffer`: rows within which a rank permutes rows,
    which it holds in memory; by default 65536 or 16 batches, but at most 256 MiB. `limit`: rows in total and per epoch,
    the first in source order. `drop_last`: what is short at the end of an epoch is not given to any function. `format`:
    "parquet", "csv", "tsv", "jsonl" or "arrow", where names do not say it.
    `filesystem`: of pyarrow or fsspec. `split_rows`: rows per split, in whole batches, in place of our choice (which a
    shuffled source keeps to).
    `schema` (pyarrow.Schema): types of columns of CSV and JSON lines, in place of what the first rows suggest.
    `storage_options`: of the URL's store, as location.py says. `patience`: seconds for which a store may be away.
    `topic`: the options of a kafka:// URL (`ghee.io.kafka.options.ReadOptions`).

    Raises PipelineError with everything that is wrong with the arguments.
    """
    if is_kafka(source):
        unusable = {"filter": filter, "shuffle": shuffle, "shuffle_buffer": shuffle_buffer, "limit": limit, "format": format,
                    "filesystem": filesystem, "split_rows": split_rows, "storage_options": storage_options,
                    "drop_last": drop_last or None}  # fmt: skip
        wrong = _source_problems(columns, batch_size, None, None, None, None) + _schema_problems(schema)
        if wrong:
            raise PipelineError(" ".join(wrong))
        return _topic(
            str(source), unusable, columns=columns, batch_size=batch_size, schema=schema, patience=patience, **topic
        )
    if topic:
        raise PipelineError(f"{', '.join(topic)}: for kafka://broker/topic only.")
    given = {"columns": columns, "filter": filter, "shuffle": shuffle, "shuffle_buffer": shuffle_buffer, "limit": limit}
    given |= {"format": format, "filesystem": filesystem, "split_rows": split_rows, "schema": schema}
    given |= {"storage_options": storage_options, "patience": patience}
    rest = {"drop_last": drop_last or None}  # which the rows of any iterable can be cut for
    dataset = _dataset(source)
    paths = _paths(source) if dataset is None else dataset["paths"]
    table = table_of(source) if paths is None else None
    if table is not None:
        of_files = [name for name in _OF_FILES if given[name] is not None]
        of_files += ["filter"] if filter is not None and isinstance(table, Arrays) else []
        if of_files:
            raise PipelineError(f"{', '.join(of_files)}: a {type(source).__name__} in memory takes none of these.")
        wrong = _source_problems(columns, batch_size, shuffle, limit, shuffle_buffer, split_rows)
        if wrong:
            raise PipelineError(" ".join(wrong))
        table = _part_of_table(table, columns, _expression(filter), limit)
        return TableSource(table, TableOptions(batch_size, shuffle, shuffle_buffer, drop_last, split_rows))
    if paths is None:
        return _iterable(source, [name for name, value in {**given, **rest}.items() if value is not None])
    if dataset is not None and format is None:
        format = dataset.get("format")
    problems = _source_problems(columns, batch_size, shuffle, limit, shuffle_buffer, split_rows)
    problems += _seconds("patience", patience)
    expression = None
    try:
        expression = _expression(filter)
    except PipelineError as error:
        problems.append(str(error))
    if format is not None:
        try:
            named(format)
        except PipelineError as error:
            problems.append(str(error))
    problems += _schema_problems(schema)
    if not paths:
        problems.append("The list of paths is empty.")
    if problems:
        raise PipelineError(" ".join(problems))
    options = FileOptions(
        columns=None if columns is None else tuple(columns),
        filter=expression,
        batch_size=batch_size,
        shuffle=shuffle,
        shuffle_buffer=shuffle_buffer,
        limit=limit,
        drop_last=drop_last,
        format=format,
        split_rows=split_rows,
        schema=schema,
        patience=PATIENCE if patience is None else float(patience),
    )
    expected = Expected() if dataset is None else Expected(dataset.get("rows"), dataset.get("digest"))
    places = tuple(locate(path, filesystem, storage_options) for path in paths)
    kinds = {(type(place.filesystem), place.filesystem.type_name) for place in places}
    if len(kinds) > 1 or any(not place.filesystem.equals(places[0].filesystem) for place in places):
        raise PipelineError(f"One source reads one filesystem; these are several: {[place.given for place in places]}.")
    return FileSource(places, options, expected, None if dataset is None else dataset.get("partitioning"))


def open_sink(
    target: object,
    *,
    mode: str = "error",
    format: str | None = None,
    rows_per_file: int = DEFAULT_ROWS_PER_FILE,
    file_size: int | str | None = None,
    partition_by: str | Sequence[str] | None = None,
    filesystem: Any = None,
    storage_options: Mapping[str, Any] | None = None,
    patience: float | None = None,
    **topic: Any,
) -> Sink:
    """Where to write; nothing is written yet.

    `target` is a folder (path or URL; it is made where it does not exist), a Python list that batches are appended to,
    or a function that is called with each batch. Lists and functions live in the driver's process and take no options.

    `mode`: "error" fails where there is output already, "overwrite" replaces it once the new one is complete, "append"
    adds files. `format`: "parquet", "csv", "jsonl" or "arrow"; by default the target's suffix, else Parquet.
    `rows_per_file`: a file is closed at so many rows. `file_size`: it is closed once it has so many bytes on the disk
    ("128Mi"), or sooner by rows; bytes are seen when a row group is written (of at most 64Mi in memory), so a file may be
    larger by one.
    `partition_by`: columns that become `key=value` folders.
    `topic`: the options of a kafka:// URL (`ghee.io.kafka.options.WriteOptions`).

    Raises PipelineError with everything that is wrong with the arguments.
    """
    if is_kafka(target):
        unusable = {"mode": None if mode == "error" else mode, "format": format, "partition_by": partition_by,
                    "file_size": file_size, "filesystem": filesystem, "storage_options": storage_options,
                    "rows_per_file": None if rows_per_file == DEFAULT_ROWS_PER_FILE else rows_per_file}  # fmt: skip
        return _topic_sink(str(target), unusable, patience=patience, **topic)
    if topic:
        raise PipelineError(f"{', '.join(topic)}: for kafka://broker/topic only.")
    keys = (partition_by,) if isinstance(partition_by, str) else tuple(partition_by or ())
    if not isinstance(target, (str, os.PathLike)):
        changed = [n for n, v in _sink_options(format, filesystem, partition_by, storage_options, patience) if v]
        changed += ["file_size"] if file_size is not None else []
        changed += ["mode"] if mode != "error" else []
        if changed:
            raise PipelineError(f"{', '.join(changed)}: a {type(target).__name__} as a sink takes no options.")
        if isinstance(target, list):
            return ListSink(target)
        if callable(target):
            return CallbackSink(target)
        raise PipelineError(
            f"{type(target).__name__} is no sink; allowed are a path or URL of a folder, a list, "
            "and a function of one batch."
        )
    problems = []
    if mode not in MODES:
        problems.append(f"mode={mode!r} is none of {', '.join(map(repr, MODES))}.")
    kind = format or format_of(os.fspath(target)) or "parquet"
    if kind not in WRITERS:
        problems.append(f"format={kind!r} is not written; allowed are {', '.join(map(repr, WRITERS))}.")
    problems += _positive("rows_per_file", rows_per_file) + _seconds("patience", patience)
    try:
        size = None if file_size is None else parse_bytes(file_size)
    except ResourceError as error:
        problems.append(f"file_size={file_size!r}: {error}")
    if len(set(keys)) != len(keys) or not all(isinstance(key, str) and key for key in keys):
        problems.append(f"partition_by={partition_by!r} must name different columns.")
    if problems:
        raise PipelineError(" ".join(problems))
    wait = PATIENCE if patience is None else float(patience)
    chosen = SinkOptions(mode, kind, rows_per_file, keys, wait, size)
    return FileSink(locate(target, filesystem, storage_options), chosen)


def _topic(url: str, unusable: Mapping[str, Any], **given: Any) -> Source:
    wrong = [name for name, value in unusable.items() if value is not None]
    if wrong:
        raise PipelineError(f"{', '.join(wrong)}: a topic is read as it comes and takes none of these; do it in a .map().")
    from ghee.io.kafka.source import KafkaSource  # its library is an extra

    address = parse_url(url)
    return KafkaSource(address, read_options(address, given))


def _topic_sink(url: str, unusable: Mapping[str, Any], **given: Any) -> Sink:
    wrong = [name for name, value in unusable.items() if value is not None]
    if wrong:
        raise PipelineError(
            f"{', '.join(wrong)}: a topic takes none of these; it takes key, partition, encode, transactions, settings "
            "and patience."
        )
    from ghee.io.kafka.sink import KafkaSink  # its library is an extra

    address = parse_url(url)
    return KafkaSink(address, write_options(address, {key: value for key, value in given.items() if value is not None}))


def _sink_options(format: Any, filesystem: Any, partition_by: Any, storage: Any, patience: Any) -> list[tuple[str, Any]]:
    return [("format", format), ("filesystem", filesystem), ("partition_by", partition_by),
            ("storage_options", storage), ("patience", patience)]  # fmt: skip


def _dataset(source: object) -> dict[str, Any] | None:
    make = getattr(source, "__ghee_source__", None)
    if make is None or isinstance(source, type):
        return None
    said = make()
    if not isinstance(said, Mapping) or not _is_paths(said.get("paths")):
        raise PipelineError(
            f"{type(source).__name__}.__ghee_source__() returned {said!r}; it returns a dict with "
            '"paths" (a list), and "rows", "format", "partitioning", "digest" where they are known.'
        )
    return dict(said)


def _is_paths(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in value)


def _paths(source: object) -> list[Any] | None:
    if isinstance(source, (str, os.PathLike)):
        return [source]
    if isinstance(source, (list, tuple)) and source and _is_paths(source):
        return list(source)
    return None


_OF_FILES = ("format", "filesystem", "schema", "storage_options", "patience")


def _part_of_table(table: Any, columns: Sequence[str] | None, filter: Any, limit: int | None) -> Any:
    if filter is not None:
        try:
            from pyarrow import acero  # only filters need it

            read = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
            passing = acero.Declaration("filter", acero.FilterNodeOptions(filter), [read])
            table = passing.to_table(use_threads=False)  # which keeps the order of rows
        except (pa.ArrowException, TypeError, KeyError) as error:
            raise PipelineError(f"The filter {filter} does not fit the table: {error}") from error
    if columns is not None:
        there = list(table.columns) if isinstance(table, Arrays) else table.column_names
        missing = [name for name in columns if name not in there]
        if missing:
            raise PipelineError(f"The table has no columns {missing}; it has {there}.")
        table = table.select(list(columns))
    return table if limit is None else table.slice(0, limit)


def _iterable(source: object, options: list[str]) -> Source:
    advice = {
        "DataFrame": "Give an Arrow table, or [frame] to read it as one batch.",
        "LazyFrame": "Give frame.collect().",
        "dict": "Give a dict of numpy arrays of equal length, or a list of batches.",
        "ndarray": "Give {name: array}, which is cut into batches, or a list of batches.",
        "Tensor": "Give a list of batches, for example tensor.split(n).",
    }.get(type(source).__name__)
    unusable = isinstance(source, (bytes, bytearray, Mapping)) or advice is not None
    if unusable or not (isinstance(source, Iterable) or callable(source)):
        raise PipelineError(
            f"{type(source).__name__} is no source; allowed are a path, glob, folder or URL, a list of them, a dataset "
            "with __ghee_source__(), a table (Arrow, pandas, polars, a dict of numpy arrays), and an iterable of batches or "
            "a function that returns one." + (f" {advice}" if advice else "")
        )
    if options:
        raise PipelineError(
            f"{', '.join(options)}: a Python iterable gives its batches as they are and takes none of these; "
            "do it in the iterable." + (" " + DROP_LAST_ADVICE if "drop_last" in options else "")
        )
    items: Iterable[Any] | Callable[[], Iterable[Any]] = source
    return IterableSource(items)


def _source_problems(
    columns: Sequence[str] | None, batch_size: Any, shuffle: Any, limit: Any, buffer: Any, split_rows: Any
) -> list[str]:
    problems = _positive("batch_size", batch_size)
    for name, value in (("limit", limit), ("shuffle_buffer", buffer), ("split_rows", split_rows)):
        problems += [] if value is None else _positive(name, value)
    if shuffle is not None and (isinstance(shuffle, bool) or not isinstance(shuffle, int)):
        problems.append(f"shuffle={shuffle!r} is no seed; give a whole number, as in shuffle=0.")
    if shuffle is None and buffer is not None:
        problems.append("shuffle_buffer= without shuffle= does nothing; give a seed, as in shuffle=0.")
    if columns is not None and (
        isinstance(columns, str)
        or not columns
        or not all(isinstance(c, str) for c in columns)
        or len(set(columns)) != len(columns)
    ):
        problems.append(f"columns={columns!r} must be a list of different column names.")
    return problems


def _schema_problems(schema: Any) -> list[str]:
    return [] if schema is None or isinstance(schema, pa.Schema) else [f"schema={schema!r} is no pyarrow.Schema."]


def _seconds(name: str, value: Any) -> list[str]:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 0):
        return []
    return [f"{name}={value!r} must be a number of seconds, 0 or more."]


def _positive(name: str, value: Any) -> list[str]:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return [f"{name}={value!r} must be a whole number of rows, 1 or more."]
    return []


def _expression(filter: Any) -> Any:
    if filter is None:
        return None
    import pyarrow.compute as pc

    if isinstance(filter, pc.Expression):
        return filter
    import pyarrow.parquet as pq

    try:
        return pq.filters_to_expression(filter)
    except (TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise PipelineError(
            f"filter={filter!r} is no filter ({error}); give a pyarrow.compute expression, pc.field('x') > 3, "
            "or a list of tuples, [('x', '>', 3)]."
        ) from error
