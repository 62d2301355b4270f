"""Messages to record batches: the columns of the message itself, and what a decoder makes of its value."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any

import numpy as np
import pyarrow as pa

from ghee.errors import SourceCorruptError, SourceError
from ghee.io.arrays import from_numpy
from ghee.io.kafka.options import DECODED, ReadOptions, columns_of

_HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))

Poison = Callable[[Any, Exception], None]
"""Called with a message that cannot be decoded and why; raises, or has taken care of it."""


def make_batch(messages: Sequence[Any], options: ReadOptions, poison: Poison) -> Any:
    """A record batch of messages of one partition, None where none of them is left."""
    if options.decode is None:
        return pa.record_batch(_own(messages, columns_of(options)))
    decoder = _DECODERS[options.decode] if isinstance(options.decode, str) else _by_function
    values, rows, kept = decoder(messages, options, poison)
    if values is None:
        return None
    own = {f"{DECODED}{name}": array for name, array in _own(kept, columns_of(options)).items()}
    if own and rows is not None:
        own = {name: array.take(rows) for name, array in own.items()}
    columns = dict(zip(values.schema.names, values.columns, strict=True)) | own
    if options.columns is not None:
        lacking = [name for name in options.columns if name not in columns]
        if lacking:
            raise SourceCorruptError(
                f"{_where(messages[0])}: the decoded value has no column {lacking}; it has {[*columns]}"
            )
        columns = {name: columns[name] for name in options.columns}
    return pa.record_batch(columns)


def _own(messages: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: _COLUMNS[name](messages) for name in names}


def _bytes(name: str) -> Callable[[Sequence[Any]], Any]:
    get = methodcaller(name)
    return lambda messages: pa.array(list(map(get, messages)), pa.binary())


def _headers(messages: Sequence[Any]) -> Any:
    headers = list(map(methodcaller("headers"), messages))
    if not any(headers):
        return pa.nulls(len(headers), _HEADERS)
    return pa.array([None if of is None else [{"key": k, "value": v} for k, v in of] for of in headers], _HEADERS)


def _timestamps(messages: Sequence[Any]) -> Any:
    """Milliseconds, as the topic has them (when the message was made, or when the broker got it)."""
    found = np.fromiter((message.timestamp()[1] for message in messages), np.int64, len(messages))
    array = from_numpy(found)
    if (found < 0).any():
        array = pa.array(found, mask=found < 0)
    return array.cast(pa.timestamp("ms", "UTC"))


_COLUMNS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "key": _bytes("key"),
    "value": _bytes("value"),
    "headers": _headers,
    "timestamp": _timestamps,
    "topic": lambda messages: pa.repeat(messages[0].topic(), len(messages)),
    "partition": lambda messages: pa.repeat(pa.scalar(messages[0].partition(), pa.int32()), len(messages)),
    "offset": lambda messages: from_numpy(
        np.fromiter(map(methodcaller("offset"), messages), np.int64, len(messages))
    ),
}  # fmt: skip

Decoded = tuple[Any, Any, Sequence[Any]]
"""The batch of values; for each of its rows which of the messages it came of, None for one each; the messages."""


def _by_function(messages: Sequence[Any], options: ReadOptions, poison: Poison) -> Decoded:
    return _each(messages, options, poison, options.decode)


def _each(messages: Sequence[Any], options: ReadOptions, poison: Poison, decode: Any) -> Decoded:
    """One row a message: a decoder gives a dict. A message without a value (a tombstone) is a row of nulls."""
    rows, kept = [], []
    for message in messages:
        value = message.value()
        try:
            row = {} if value is None else decode(value)
            if not isinstance(row, dict):
                raise TypeError(f"a value is decoded to a dict of columns, not to {type(row).__name__}")
            if options.schema is not None:
                pa.RecordBatch.from_pylist([row], options.schema)
        except SourceError:  # of the registry: the message may be a good one
            raise
        except Exception as error:
            poison(message, error)
            continue
        rows.append(row)
        kept.append(message)
    return (_of_rows(rows, options) if rows else None), None, kept


def _of_rows(rows: list[dict[str, Any]], options: ReadOptions) -> Any:
    if options.schema is not None:
        return pa.RecordBatch.from_pylist(rows, options.schema)
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.record_batch({name: pa.array([row.get(name) for row in rows]) for name in names})


def _json(messages: Sequence[Any], options: ReadOptions, poison: Poison) -> Decoded:
    """Arrow's own reader for all values at once; one by one where that does not give one row each."""
    import pyarrow.json as pj

    values = [message.value() for message in messages]
    if all(values):
        text = b"\n".join(values)
        parse = pj.ParseOptions(
            explicit_schema=options.schema, unexpected_field_behavior=_UNEXPECTED[options.schema is None]
        )
        try:
            table = pj.read_json(io.BytesIO(text), pj.ReadOptions(block_size=len(text) + 1), parse)
        except pa.ArrowException:
            table = None
        if table is not None and table.num_rows == len(values) and text.count(b"\n") == len(values) - 1:
            return table.combine_chunks().to_batches()[0], None, messages
    return _each(messages, options, poison, json.loads)


_UNEXPECTED = {True: "infer", False: "ignore"}


def _arrow(messages: Sequence[Any], options: ReadOptions, poison: Poison) -> Decoded:
    """A value is a stream of Arrow's IPC with any number of rows. A tombstone has none."""
    tables, counts, kept = [], [], []
    for message in messages:
        value = message.value()
        if value is None:
            continue
        try:
            table = pa.ipc.open_stream(value).read_all()
            if options.schema is not None:
                table = table.select(options.schema.names).cast(options.schema)
        except Exception as error:
            poison(message, error)
            continue
        tables.append(table)
        counts.append(table.num_rows)
        kept.append(message)
    if not sum(counts):
        return None, None, ()
    try:
        whole = pa.concat_tables(tables).combine_chunks()
    except pa.ArrowException as error:
        raise SourceCorruptError(f"{_where(kept[0])} and the messages after it have different columns: {error}") from error
    return whole.to_batches()[0], from_numpy(np.repeat(np.arange(len(kept)), counts)), kept


_DECODERS: dict[str, Callable[[Sequence[Any], ReadOptions, Poison], Decoded]] = {"json": _json, "arrow": _arrow}


def _where(message: Any) -> str:
    return f"{message.topic()}[{message.partition()}] offset {message.offset()}"


def failing(message: Any, error: Exception) -> None:
    """What becomes of a message that cannot be decoded unless the user says otherwise."""
    raise SourceCorruptError(
        f"{_where(message)} cannot be decoded: {type(error).__name__}: {error}. "
        'poison="skip" passes over such messages and counts them; poison="kafka://broker/topic" keeps them there'
    ) from error
