"""Batches to messages: which column is the value, the key, the partition, or what makes them of a row. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from ghee.errors import BatchError
from ghee.io.kafka.options import WriteOptions
from ghee.io.sinks.table import as_table

Message = Sequence[Any]
"""What the client's `produce` takes after the topic: value, key, partition, two callbacks, timestamp, headers; or fewer."""

_ABSENT = {
    "value": None,
    "key": None,
    "partition": -1,
    "callback": None,
    "on_delivery": None,
    "timestamp": 0,
    "headers": None,
}
"""By its place among them."""


def make_messages(batch: object, options: WriteOptions) -> list[Message]:
    """One message for each row, or for the whole batch with encode="arrow". Raises BatchError for what does not fit."""
    table = as_table(batch)
    if options.encode == "arrow":
        return [(_stream_of(table),)] if table.num_rows else []
    rows = _Rows(table)
    columns: dict[str, Sequence[Any]] = {"value": _values(rows, options)}
    if options.key is not None:
        columns["key"] = [_as_key(key) for key in _of(rows, options.key, "key")]
    elif options.encode is None and "key" in table.column_names:
        columns["key"] = rows.bytes_of("key")
    if options.partition is not None:
        columns["partition"] = [_as_partition(number) for number in _of(rows, options.partition, "partition")]
    if options.encode is None:
        columns |= _carried(rows)
    last = max(index for index, name in enumerate(_ABSENT) if name in columns)
    return list(zip(*(columns.get(name) or repeat(absent, table.num_rows)
                      for name, absent in [*_ABSENT.items()][: last + 1]), strict=True))  # fmt: skip


class _Rows:
    """A table's columns and rows as Python has them, each made when it is asked for."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self._rows: list[dict[str, Any]] | None = None

    @property
    def all(self) -> list[dict[str, Any]]:
        if self._rows is None:
            self._rows = self.table.to_pylist()
        return self._rows

    def column(self, name: str, what: str) -> list[Any]:
        if name not in self.table.column_names:
            raise BatchError(f"{what}={name!r} names no column; the batch has {self.table.column_names}")
        found: list[Any] = self.table.column(name).to_pylist()
        return found

    def bytes_of(self, name: str) -> list[Any]:
        kind = self.table.schema.field(name).type
        if not (pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_string(kind) or pt.is_large_string(kind)
                or pt.is_null(kind)):  # fmt: skip
            raise BatchError(
                f"the column {name!r} is {kind}; a message's {name} is bytes or text. "
                'encode="json" makes a value of all columns, key="column" a key of one'
            )
        return self.column(name, name)


def _values(rows: _Rows, options: WriteOptions) -> Sequence[Any]:
    if options.encode is None:
        if "value" not in rows.table.column_names:
            raise BatchError(
                f"a batch for a topic has a column 'value' (bytes or text), and this one has {rows.table.column_names}; "
                'encode="json" makes a value of all columns, a function one of each row, "arrow" one of a whole batch'
            )
        return rows.bytes_of("value")
    if options.encode == "json":
        binary = [f"{f.name} ({f.type})" for f in rows.table.schema if pt.is_binary(f.type) or pt.is_large_binary(f.type)]
        if binary:
            raise BatchError(f'JSON has no form for bytes: {", ".join(binary)}; take encode="arrow" or a function of a row')
        return [json.dumps(row, default=_plain, ensure_ascii=False).encode() for row in rows.all]
    assert callable(options.encode)
    return [_checked(options.encode(row), "encode", (bytes, str, type(None)), "bytes, text or None") for row in rows.all]


def _of(rows: _Rows, how: str | Callable[[Mapping[str, Any]], Any], what: str) -> list[Any]:
    return rows.column(how, what) if isinstance(how, str) else [how(row) for row in rows.all]


def _as_key(key: Any) -> Any:
    """Numbers as their digits, which is what other programs write."""
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    return _checked(key, "key", (bytes, str, type(None)), "bytes, text, a whole number or None")


def _as_partition(number: Any) -> Any:
    _checked(number, "partition", (int,), "a whole number")
    if number < 0:
        raise BatchError(f"partition= gave {number}; a partition is 0 or more")
    return number


def _checked(value: Any, what: str, kinds: tuple[type, ...], allowed: str) -> Any:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise BatchError(f"{what}= gave {type(value).__name__} {value!r:.100}; allowed are {allowed}")
    return value


def _carried(rows: _Rows) -> dict[str, Sequence[Any]]:
    """Headers and timestamps of a batch that was read from a topic go on with it."""
    found: dict[str, Sequence[Any]] = {}
    schema = rows.table.schema
    if "timestamp" in schema.names and pt.is_timestamp(schema.field("timestamp").type):
        column = rows.table.column("timestamp").cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
        found["timestamp"] = [0 if at is None else at for at in column.to_pylist()]
    if "headers" in schema.names and pt.is_list(schema.field("headers").type):
        headers = rows.table.column("headers")
        if headers.null_count < len(headers):
            found["headers"] = [
                None if of is None else [(one["key"], one["value"]) for one in of] for of in headers.to_pylist()
            ]
    return found


def _stream_of(table: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    made: bytes = sink.getvalue().to_pybytes()
    return made


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)  # times and dates; Decimal
