"""One schema for many files: which types may differ between files, and how a batch is brought to the common one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from ghee.errors import SchemaError

_UNITS = ("s", "ms", "us", "ns")
MAX_PROBLEMS = 20


def promote(a: Any, b: Any) -> Any | None:
    """The type that holds every value of both types unchanged, or None.

    Allowed: null and anything; signed integers, unsigned integers, floats to the wider; unsigned to the next wider
    signed; integers of at most 16 (32) bits with float32 (float64); string with large_string, binary with
    large_binary, a dictionary with its value type; timestamps (same time zone), durations and times to the finer
    unit; decimals to enough digits on both sides; lists and structs by the same rules inside.
    """
    if a.equals(b):
        return a
    if pt.is_null(a) or pt.is_null(b):
        return b if pt.is_null(a) else a
    for rule in (
        _promote_dictionary,
        _promote_number,
        _promote_bytes,
        _promote_time,
        _promote_decimal,
        _promote_nested,
    ):
        found = rule(a, b)
        if found is not None:
            return found
    return None


def _promote_dictionary(a: Any, b: Any) -> Any | None:
    if not (pt.is_dictionary(a) or pt.is_dictionary(b)):
        return None
    return promote(*(t.value_type if pt.is_dictionary(t) else t for t in (a, b)))


def _promote_number(a: Any, b: Any) -> Any | None:
    if pt.is_integer(a) and pt.is_integer(b):
        if pt.is_signed_integer(a) == pt.is_signed_integer(b):
            return a if a.bit_width >= b.bit_width else b
        signed, unsigned = (a, b) if pt.is_signed_integer(a) else (b, a)
        bits = max(signed.bit_width, 2 * unsigned.bit_width)
        return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)
    if pt.is_floating(a) and pt.is_floating(b):
        return a if a.bit_width >= b.bit_width else b
    if pt.is_floating(a) or pt.is_floating(b):
        floating, integer = (a, b) if pt.is_floating(a) else (b, a)
        if pt.is_integer(integer) and integer.bit_width <= {32: 16, 64: 32}.get(floating.bit_width, 0):
            return floating
        if pt.is_integer(integer) and integer.bit_width <= 32:
            return pa.float64()
    return None


def _promote_bytes(a: Any, b: Any) -> Any | None:
    for small, large, kinds in (
        (pa.string(), pa.large_string(), (pt.is_string, pt.is_large_string, pt.is_string_view)),
        (
            pa.binary(),
            pa.large_binary(),
            (pt.is_binary, pt.is_large_binary, pt.is_binary_view, pt.is_fixed_size_binary),
        ),
    ):
        if any(kind(a) for kind in kinds) and any(kind(b) for kind in kinds):
            return large if large in (a, b) else small
    return None


def _promote_time(a: Any, b: Any) -> Any | None:
    if pt.is_timestamp(a) and pt.is_timestamp(b) and a.tz == b.tz:
        return pa.timestamp(max(a.unit, b.unit, key=_UNITS.index), a.tz)
    if pt.is_duration(a) and pt.is_duration(b):
        return pa.duration(max(a.unit, b.unit, key=_UNITS.index))
    if pt.is_time(a) and pt.is_time(b):
        unit = max(a.unit, b.unit, key=_UNITS.index)
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    return None


def _promote_decimal(a: Any, b: Any) -> Any | None:
    if not (pt.is_decimal(a) and pt.is_decimal(b)):
        return None
    scale = max(a.scale, b.scale)
    precision = max(a.precision - a.scale, b.precision - b.scale) + scale
    if precision > 76:
        return None
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def _promote_nested(a: Any, b: Any) -> Any | None:
    lists = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list)
    if any(kind(a) for kind in lists) and any(kind(b) for kind in lists):
        value = promote(a.value_type, b.value_type)
        if value is None:
            return None
        if pt.is_fixed_size_list(a) and pt.is_fixed_size_list(b) and a.list_size == b.list_size:
            return pa.list_(value, a.list_size)
        return pa.large_list(value) if pt.is_large_list(a) or pt.is_large_list(b) else pa.list_(value)
    if pt.is_struct(a) and pt.is_struct(b) and {f.name for f in a} == {f.name for f in b}:
        fields = [pa.field(f.name, promote(f.type, b.field(f.name).type) or pa.null()) for f in a]
        if all(f.type != pa.null() or pt.is_null(a.field(f.name).type) for f in fields):
            return pa.struct(fields)
    return None


def unify(
    schemas: Iterable[tuple[str, Any]], *, columns: Sequence[str] | None, union: bool = False, numbers: bool = False
) -> tuple[Any, list[str]]:
    """The common schema of the files, in the first file's order, and what is wrong (file, column, both types).

    With `columns` only those are compared. `union` lets a file lack a column (JSON lines: a key that is absent is
    null); `numbers` lets integers become float64 (text formats: the digits are parsed as what the column is).
    """
    types: dict[str, Any] = {}
    origin: dict[str, str] = {}
    problems: list[str] = []
    first: str | None = None
    for path, schema in schemas:
        names = schema.names
        problems += [f"{path}: the column {n!r} is there twice" for n in sorted({n for n in names if names.count(n) > 1})]
        if first is not None and not union:
            gone = [name for name in types if name not in names]
            problems += [f"{path}: the column {n!r} is missing; {first} has it ({types[n]})" for n in gone]
        for name, found in {field.name: field.type for field in schema}.items():
            if columns is not None and name not in columns:
                continue
            if name in types:
                common = promote(types[name], found) or _as_float(types[name], found, numbers)
                if common is None:
                    problems.append(f"{path}: the column {name!r} is {found}; in {origin[name]} it is {types[name]}")
                types[name] = common or types[name]
            elif first is None or union:
                types[name], origin[name] = found, path
            else:
                problems.append(f"{path}: the column {name!r} ({found}) is not in {first}")
        first = first or path
    return pa.schema(list(types.items())), problems


def _as_float(a: Any, b: Any, allowed: bool) -> Any | None:
    numbers = all(pt.is_integer(kind) or pt.is_floating(kind) for kind in (a, b))
    return pa.float64() if allowed and numbers else None


def check_columns(columns: Sequence[str], there: Sequence[str], where: str) -> None:
    """Raises SchemaError naming the columns that are not there, and those that are."""
    missing = [name for name in columns if name not in there]
    if missing:
        raise SchemaError(
            f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, there)) or 'none'}."
        )


def conform(batch: Any, schema: Any) -> Any:
    """The batch with the schema's columns, in its order and types; absent columns are null. Casts are checked."""
    if batch.schema.equals(schema):
        return batch
    arrays = []
    for field in schema:
        place = batch.schema.get_field_index(field.name)
        column = pa.nulls(batch.num_rows, field.type) if place < 0 else batch.column(place)
        arrays.append(column if column.type.equals(field.type) else column.cast(field.type))
    if not arrays:
        return batch.select([])
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def listed(problems: Sequence[str]) -> str:
    """The problems as lines under a sentence, the first MAX_PROBLEMS of them."""
    shown = [f"\n  {problem}" for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        shown.append(f"\n  … and {len(problems) - MAX_PROBLEMS} more")
    return "".join(shown)
