"""Which types may differ between files: no promotion changes a value, and no schema problem goes unnamed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghee.io.schema import conform, listed, promote, unify

SIMPLE = [
    pa.null(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
    pa.float16(), pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.binary(), pa.large_binary(),
    pa.bool_(), pa.date32(), pa.timestamp("s"), pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC"),
    pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.string()), pa.decimal128(10, 2),
    pa.decimal128(12, 6),
]  # fmt: skip
TYPES = st.recursive(
    st.sampled_from(SIMPLE),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(lambda t: pa.list_(t, 2)),
        inner.map(lambda t: pa.struct([("a", t), ("b", pa.int8())])),
    ),
    max_leaves=3,
)


@given(TYPES, TYPES)
def test_promotion_is_symmetric_and_idempotent(a: Any, b: Any) -> None:
    common = promote(a, b)
    assert promote(a, a) == a
    if common is None:
        assert promote(b, a) is None
    else:
        assert promote(common, a) == common
        assert promote(common, b) == common


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.uint8(), pa.int8(), pa.int16()),
        (pa.uint32(), pa.int8(), pa.int64()),
        (pa.uint64(), pa.int64(), None),
        (pa.int16(), pa.float32(), pa.float32()),
        (pa.int32(), pa.float32(), pa.float64()),
        (pa.int64(), pa.float64(), None),  # 2**53 + 1 is no float64
        (pa.int64(), pa.string(), None),
        (pa.bool_(), pa.int8(), None),
        (pa.null(), pa.list_(pa.int8()), pa.list_(pa.int8())),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.timestamp("s"), pa.timestamp("s", "UTC"), None),
        (pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("ms")),
        (pa.decimal128(10, 2), pa.decimal128(12, 6), pa.decimal128(14, 6)),
        (pa.list_(pa.int8()), pa.list_(pa.int32()), pa.list_(pa.int32())),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3), pa.list_(pa.int8())),
        (pa.struct([("a", pa.int8())]), pa.struct([("a", pa.string())]), None),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
    ],
)
def test_promotions(a: Any, b: Any, common: Any) -> None:
    assert promote(a, b) == common


@given(st.sampled_from([pa.int8(), pa.uint16(), pa.int32(), pa.uint32()]), st.sampled_from(SIMPLE), st.data())
def test_a_promoted_value_is_the_same_value(kind: Any, other: Any, data: st.DataObject) -> None:
    common = promote(kind, other)
    if common is None:
        return
    least = 0 if pa.types.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))
    most = 2 ** (kind.bit_width - (0 if least == 0 else 1)) - 1
    value = data.draw(st.integers(least, most))
    batch = pa.RecordBatch.from_arrays([pa.array([value], kind)], names=["x"])
    assert conform(batch, pa.schema([("x", common)])).column(0).to_pylist() == [value]


def test_every_problem_is_named_with_file_column_and_both_types() -> None:
    a = pa.schema([("x", pa.int64()), ("y", pa.string())])
    b = pa.schema([("y", pa.string()), ("x", pa.string())])
    c = pa.schema([("x", pa.int64()), ("z", pa.int8())])
    schema, problems = unify([("a", a), ("b", b), ("c", c)], columns=None)
    assert schema == a
    assert problems == [
        "b: the column 'x' is string; in a it is int64",
        "c: the column 'y' is missing; a has it (string)",
        "c: the column 'z' (int8) is not in a",
    ]
    assert unify([("a", a), ("c", c)], columns=["x"]) == (pa.schema([("x", pa.int64())]), [])


def test_a_long_list_of_problems_is_cut_and_counted() -> None:
    assert listed(["p"] * 25).endswith("… and 5 more")
    assert listed(["p", "q"]) == "\n  p\n  q"
