"""Partitions as Hive writes them: the folder's name, the value in it, the value's type. Pure."""

import re
from collections.abc import Collection
from datetime import date, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from cumin.errors import InputError

if TYPE_CHECKING:  # imported where it is used: a plan that finds all it needs in its cache does not
    import pyarrow as pa

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
PARTITION_KINDS = {"int": "int64", "date": "date32", "string": "string", "bool": "bool_"}  # and Arrow's types
PartitionValue = str | None


def arrow_type(kind: str) -> "pa.DataType":
    """The Arrow type of a kind of partition column."""
    import pyarrow as pa

    made: pa.DataType = getattr(pa, PARTITION_KINDS[plain_kind(kind)])()
    return made


def is_date_format(kind: str) -> bool:
    """Whether a kind says how a date is written: ``%Y%m%d``, with `datetime.strptime`'s directives of year, month, day."""
    directives = re.findall("%.", kind)
    return "%Y" in directives and len(set(directives)) == len(directives) and set(directives) <= {"%Y", "%m", "%d", "%j"}


def plain_kind(kind: str) -> str:
    """The kind without how it is written."""
    return "date" if "%" in kind else kind


def looks_like_a_date(value: int) -> bool:
    """Whether a whole number is as dates are written: 20260131, 202601 or 2026013123."""
    text = str(value)
    try:
        read = datetime.strptime(text, {6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H"}[len(text)])
    except (KeyError, ValueError):
        return False
    return 1900 <= read.year < 2200


def kind_of(column: "pa.DataType") -> str:
    """The kind of a column's type: how its values are read from text."""
    import pyarrow as pa

    if pa.types.is_integer(column):
        return "int"
    if pa.types.is_date(column):
        return "date"
    return "bool" if pa.types.is_boolean(column) else "string"


def typed(value: PartitionValue, kind: str) -> Any:
    """A partition's value, text in the path, in its column's kind. Raises InputError if it is none."""
    if value is None:
        return None
    try:
        if kind == "int":
            return int(value)
        if kind == "date":
            return date.fromisoformat(value)
        if kind == "bool":
            return {"true": True, "false": False}[value.lower()]
        if "%" in kind:
            read = datetime.strptime(value, kind).date()
            if read.strftime(kind) != value:
                raise ValueError
            return read
    except (ValueError, KeyError) as error:
        what = f"date written as {kind}" if "%" in kind else PARTITION_KINDS[kind]
        raise InputError(f"The partition value {value!r} is no {what}; declare another type for its column.") from error
    return value


def guess_kind(values: Collection[PartitionValue]) -> str:
    """The kind of a partition column from all its values: ISO dates, whole numbers, else text."""
    known = [value for value in values if value is not None]
    if known and all(_is_date(value) for value in known):
        return "date"
    if known and all(value.lstrip("-").isdigit() and str(int(value)) == value for value in known):
        return "int"
    return "string"


def _is_date(value: str) -> bool:
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def partition_key(columns: Collection[str], values: Collection[PartitionValue]) -> str:
    """``dt=2026-01-31/country=jp``, as Hive writes it in a path."""
    written = (NULL_PARTITION if value is None else quote(value, safe=" -_.:+@") for value in values)
    return "/".join(f"{column}={value}" for column, value in zip(columns, written, strict=True))


def value_text(value: Any) -> PartitionValue:
    """A typed value of a partition as the text of a key: of an output, whose values are written in one way only."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def partition_text(value: str) -> PartitionValue:
    """A partition's value from its folder's name."""
    return None if value == NULL_PARTITION else unquote(value)
