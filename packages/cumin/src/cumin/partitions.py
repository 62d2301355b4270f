"""Partitions as Hive writes them: the folder's name, the value in it, the value's type. Pure."""

from collections.abc import Collection
from datetime import date
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa

from cumin.errors import InputError

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
PARTITION_TYPES = {"int": pa.int64(), "date": pa.date32(), "string": pa.string(), "bool": pa.bool_()}
PartitionValue = str | None


def typed(value: PartitionValue, kind: pa.DataType) -> Any:
    """A partition's value, text in the path, in its column's type. Raises InputError if it is none."""
    if value is None:
        return None
    try:
        if pa.types.is_integer(kind):
            return int(value)
        if pa.types.is_date(kind):
            return date.fromisoformat(value)
        if pa.types.is_boolean(kind):
            return {"true": True, "false": False}[value.lower()]
    except (ValueError, KeyError) as error:
        raise InputError(f"The partition value {value!r} is no {kind}; declare another type for its column.") from error
    return value


def guess_type(values: Collection[PartitionValue]) -> pa.DataType:
    """The type of a partition column from all its values: ISO dates, whole numbers, else text."""
    known = [value for value in values if value is not None]
    if known and all(_is_date(value) for value in known):
        return pa.date32()
    if known and all(value.lstrip("-").isdigit() and str(int(value)) == value for value in known):
        return pa.int64()
    return pa.string()


def _is_date(value: str) -> bool:
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def partition_key(columns: Collection[str], values: Collection[PartitionValue]) -> str:
    """``dt=2026-01-31/country=jp``, as Hive writes it in a path."""
    written = (NULL_PARTITION if value is None else quote(value, safe=" -_.:+@") for value in values)
    return "/".join(f"{column}={value}" for column, value in zip(columns, written, strict=True))


def partition_text(value: str) -> PartitionValue:
    """A partition's value from its folder's name."""
    return None if value == NULL_PARTITION else unquote(value)
