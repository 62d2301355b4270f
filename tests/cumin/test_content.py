"""The content id: golden, and blind to order, layout and Arrow's encodings, and to nothing else."""

import random
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cumin.content import RowSum, content_id
from cumin.errors import EngineError, RecipeError

COLUMNS: dict[str, pa.Array] = {
    "bool": pa.array([True, False, None]),
    "int8": pa.array([1, -1, None], pa.int8()),
    "int64": pa.array([2**62, -5, None]),
    "uint64": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "float32": pa.array([1.5, float("nan"), None], pa.float32()),
    "float64": pa.array([0.0, float("inf"), None]),
    "decimal": pa.array([Decimal("1.50"), Decimal("-2.25"), None], pa.decimal128(10, 2)),
    "string": pa.array(["", "Übergröße " * 20, None]),
    "binary": pa.array([b"\x00\x01", b"", None]),
    "date": pa.array([date(1969, 12, 31), date(2026, 1, 1), None]),
    "time": pa.array([time(0, 0, 1), time(23, 59, 59, 999999), None]),
    "timestamp": pa.array([datetime(1900, 1, 1), datetime(2026, 1, 1, 1, 2, 3, 4), None]),
    "instant": pa.array([datetime(2026, 1, 1, tzinfo=UTC), None, None]),
    "duration": pa.array([timedelta(1), timedelta(microseconds=-1), None]),
    "list": pa.array([[1, 2], [], None]),
    "struct": pa.array([{"a": 1, "b": "x"}, {"a": None, "b": None}, None]),
    "map": pa.array([[("k", 1), ("l", 2)], [], None], pa.map_(pa.string(), pa.int64())),
    "nested": pa.array([[{"a": [1, None]}], [None], None], pa.list_(pa.struct([("a", pa.list_(pa.int32()))]))),
    "null": pa.nulls(3),
}
TABLE = pa.table(COLUMNS)


def test_the_id_of_every_type_is_pinned() -> None:
    assert content_id(TABLE) == "c1:9eab608dba081d4a5fffa93737feeecd"
    assert {name: content_id(pa.table({"x": column}))[3:11] for name, column in COLUMNS.items()} == {
        "bool": "01e1f671", "int8": "e5a1d3d8", "int64": "2bb4819b", "uint64": "11605361", "float32": "39d0ef09",
        "float64": "4d493ef3", "decimal": "81170fbd", "string": "b6a784d0", "binary": "0c0b2cb4", "date": "8e0ef9e1",
        "time": "b6f3c58b", "timestamp": "dbf3a3b5", "instant": "c7350e7e", "duration": "5c4aec52", "list": "ef6f19c0",
        "struct": "5418957b", "map": "a9311cf8", "nested": "b3af520d", "null": "f4a79fc3",
    }  # fmt: skip


def test_order_chunks_and_slices_do_not_count() -> None:
    wanted = content_id(TABLE)
    assert content_id(TABLE.take([2, 0, 1])) == wanted
    assert content_id(pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 2)])) == wanted
    padded = pa.concat_tables([TABLE, TABLE, TABLE]).combine_chunks()
    assert content_id(padded.slice(3, 3)) == wanted


def same_in_other_types() -> list[tuple[str, pa.Array]]:
    text, stamp = COLUMNS["string"], COLUMNS["timestamp"]
    return [
        ("string", text.cast(pa.large_string())),
        ("string", text.cast(pa.string_view())),
        ("string", text.dictionary_encode()),
        ("binary", COLUMNS["binary"].cast(pa.large_binary())),
        ("timestamp", stamp.cast(pa.timestamp("us"))),
        ("list", COLUMNS["list"].cast(pa.large_list(pa.int64()))),
        ("int64", pc_run_ends(COLUMNS["int64"])),
        ("decimal", COLUMNS["decimal"].cast(pa.decimal256(10, 2))),
        ("time", COLUMNS["time"].cast(pa.time64("ns"))),
        ("date", COLUMNS["date"].cast(pa.date64())),
    ]


def pc_run_ends(column: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    return pc.run_end_encode(column)


@pytest.mark.parametrize(("name", "column"), same_in_other_types(), ids=lambda each: str(getattr(each, "type", each)))
def test_arrows_way_of_keeping_values_does_not_count(name: str, column: pa.Array) -> None:
    assert content_id(pa.table({"x": column})) == content_id(pa.table({"x": COLUMNS[name]}))


def test_units_finer_than_a_microsecond_count_only_where_there_is_something() -> None:
    micro = pa.array([1_700_000_000_000_001], pa.timestamp("us"))
    assert content_id(pa.table({"x": micro.cast(pa.timestamp("ns"))})) == content_id(pa.table({"x": micro}))
    finer = pa.array([1_700_000_000_000_001_001], pa.timestamp("ns"))
    assert content_id(pa.table({"x": finer})) != content_id(pa.table({"x": micro}))


def test_zeros_and_nans_are_one_each() -> None:
    nan = np.array([0x7FF8000000000001, 0xFFF8000000000000], np.uint64).view(np.float64)
    assert content_id(pa.table({"x": nan})) == content_id(pa.table({"x": [float("nan")] * 2}))
    assert content_id(pa.table({"x": [-0.0]})) == content_id(pa.table({"x": [0.0]}))


def test_what_lies_under_a_null_is_never_read() -> None:
    valid = pa.py_buffer(b"\x01")
    one = pa.Array.from_buffers(pa.int64(), 2, [valid, pa.py_buffer(np.array([1, 7]).tobytes())])
    other = pa.Array.from_buffers(pa.int64(), 2, [valid, pa.py_buffer(np.array([1, 8]).tobytes())])
    assert content_id(pa.table({"x": one})) == content_id(pa.table({"x": other}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"x": [1, 1]}, {"x": [2, 2]}),  # xor would lose both pairs
        ({"x": [1, 2], "y": [3, 4]}, {"x": [1, 2], "y": [4, 3]}),
        ({"x": [1]}, {"X": [1]}),
        ({"x": [1], "y": [1]}, {"y": [1], "x": [1]}),
        ({"x": [1]}, {"x": pa.array([1], pa.int32())}),
        ({"x": [1]}, {"x": [1.0]}),
        ({"x": [None]}, {"x": pa.array([0])}),
        ({"x": [""]}, {"x": pa.array([None], pa.string())}),
        ({"x": ["ab", "c"]}, {"x": ["a", "bc"]}),
        ({"x": ["a\x00"]}, {"x": ["a"]}),
        ({"x": [[1], [2, 3]]}, {"x": [[1, 2], [3]]}),
        ({"x": [[1, 2]]}, {"x": [[2, 1]]}),
        ({"x": [[None]]}, {"x": pa.array([[]], pa.list_(pa.null()))}),
        ({"x": pa.array([1], pa.timestamp("us"))}, {"x": pa.array([1], pa.timestamp("us", "UTC"))}),
        ({"x": [{"a": None}]}, {"x": pa.array([None], pa.struct([("a", pa.null())]))}),
        ({"x": [1, 2]}, {"x": [1, 2, 2]}),
        ({"x": []}, {"x": pa.array([], pa.int64())}),
    ],
)  # fmt: skip
def test_everything_else_counts(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert content_id(pa.table(one)) != content_id(pa.table(other))


def test_the_entries_of_a_map_have_no_order() -> None:
    kind = pa.map_(pa.string(), pa.int64())
    one, other = pa.array([[("a", 1), ("b", 2)]], kind), pa.array([[("b", 2), ("a", 1)]], kind)
    assert content_id(pa.table({"x": one})) == content_id(pa.table({"x": other}))


rows = st.lists(
    st.fixed_dictionaries(
        {
            "i": st.none() | st.integers(-(2**63), 2**63 - 1),
            "s": st.none() | st.text(max_size=200),
            "f": st.none() | st.floats(),
            "l": st.none() | st.lists(st.none() | st.integers(0, 3), max_size=4),
        }
    ),
    max_size=30,
)
SCHEMA = pa.schema([("i", pa.int64()), ("s", pa.string()), ("f", pa.float64()), ("l", pa.list_(pa.int64()))])


@given(rows, st.randoms(use_true_random=False), st.integers(1, 7))
def test_any_order_and_any_split_give_one_sum(data: list[dict[str, Any]], rng: random.Random, size: int) -> None:
    wanted = content_id(pa.Table.from_pylist(data, SCHEMA), SCHEMA)
    mixed = list(data)
    rng.shuffle(mixed)
    total = RowSum()
    for start in range(0, len(mixed), size):
        part = RowSum()
        part.update(pa.RecordBatch.from_pylist(mixed[start : start + size], SCHEMA))
        total.merge(RowSum.from_json(part.to_json()))
    assert total.content_id(SCHEMA) == wanted


@given(rows, rows)
def test_other_rows_have_another_id(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    def known(data: list[dict[str, Any]]) -> list[str]:
        return sorted(repr({k: 0.0 if v == 0 and k == "f" else v for k, v in sorted(row.items())}) for row in data)

    same = content_id(pa.Table.from_pylist(one, SCHEMA), SCHEMA) == content_id(pa.Table.from_pylist(other, SCHEMA), SCHEMA)
    assert same == (known(one) == known(other))


def test_no_two_of_a_million_rows_share_a_hash() -> None:
    from cumin import rowhash

    a, b = np.divmod(np.arange(1_000_000), 1000)
    batch = pa.record_batch({"a": a, "b": b})
    total = [np.zeros(batch.num_rows, np.uint64), np.zeros(batch.num_rows, np.uint64)]
    for name, column in zip("ab", batch.columns, strict=True):
        for lane, more in zip(total, rowhash.column_lanes(column, (name,)), strict=True):
            lane += more
    lanes = rowhash.finish((total[0], total[1]))
    assert len(np.unique(lanes[0])) == len(np.unique(lanes[1])) == 1_000_000
    # Each bit of each lane is set in half of the rows.
    for lane in lanes:
        share = [float(((lane >> np.uint64(bit)) & np.uint64(1)).mean()) for bit in range(64)]
        assert 0.497 < min(share) <= max(share) < 0.503


def test_rounded_floats_say_so() -> None:
    one, other = pa.table({"x": [0.1 + 0.2]}), pa.table({"x": [0.3]})
    sums = []
    for table in (one, other):
        total = RowSum(digits=9)
        for batch in table.to_batches():
            total.update(batch)
        sums.append(total.content_id(table.schema))
    assert sums[0] == sums[1]
    assert sums[0].startswith("c1~9:")
    assert content_id(one) != content_id(other)


def test_what_has_no_content_id_is_refused() -> None:
    union = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])
    with pytest.raises(EngineError, match=r"has no content id. Cast it in the query"):
        content_id(pa.table({"x": union}))
    with pytest.raises(RecipeError, match="Two columns are called 'x'"):
        content_id(pa.Table.from_arrays([pa.array([1]), pa.array([1])], names=["x", "x"]))


def test_a_map_that_is_all_null_has_a_content_id() -> None:
    kind = pa.map_(pa.string(), pa.int64())
    none = pa.table({"m": pa.array([None, None], kind)})
    some = pa.table({"m": pa.array([None, [("a", 1)]], kind)})
    empty = pa.table({"m": pa.array([[], None], kind)})
    assert len({content_id(each) for each in (none, some, none.slice(1), empty)}) == 4
    assert content_id(none) == content_id(pa.table({"m": pa.chunked_array([none["m"].chunk(0)[:1]] * 2)}))
