"""Rows that were silently others: the order that was asked for, files of another type, names that look like patterns."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cumin
from cumin.errors import EngineError, InputError


def table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def values(made: cumin.Dataset, column: str) -> list[Any]:
    found: list[Any] = made.to_table()[column].to_pylist()
    return found


def test_the_order_that_was_asked_for_is_kept(tmp_path: Path) -> None:
    inputs = {"t": cumin.files(table(tmp_path / "t.parquet", k=[3, 1, 2]))}

    def build(sql: str) -> cumin.Dataset:
        return cumin.build("x", sql=sql, inputs=inputs, store=tmp_path / "store")

    up, down = build("SELECT k FROM t ORDER BY k"), build("SELECT k FROM t ORDER BY k DESC")
    assert (values(up, "k"), values(down, "k")) == ([1, 2, 3], [3, 2, 1])
    assert up.content_id == down.content_id  # the same rows
    assert values(build("WITH s AS (SELECT k FROM t ORDER BY k DESC) SELECT k FROM s"), "k") == [3, 2, 1]
    # The same order by another text is the same file.
    assert build("SELECT k FROM t ORDER BY -k DESC").files() == up.files()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array([1, 2], pa.int64()), pa.array([1.5, 2.5])),
        (pa.array([1, 2], pa.int32()), pa.array([2**40, 5], pa.int64())),
        (pa.array([1, 2], pa.int64()), pa.array(["7", "8"])),
        (pa.array([1, 2], pa.date32()), pa.array([1, 2], pa.timestamp("us"))),
    ],
    ids=["double", "long", "text", "instant"],
)
def test_a_file_of_another_type_is_refused_by_name(tmp_path: Path, first: pa.Array, second: pa.Array) -> None:
    for day, column in (("2026-01-01", first), ("2026-01-02", second)):
        table(tmp_path / f"t/dt={day}/a.parquet", x=column)
    inputs = {"t": cumin.hive(tmp_path / "t", partition="dt")}
    for where in ("", " WHERE dt = DATE '2026-01-02'"):
        with pytest.raises(
            InputError, match=re.escape(f"dt=2026-01-02/a.parquet has x as {second.type}, and the table's first")
        ):
            cumin.build("x", sql=f"SELECT x FROM t{where}", inputs=inputs, store=tmp_path / "store")
    assert (
        cumin.build("x", sql="SELECT x FROM t WHERE dt = DATE '2026-01-01'", inputs=inputs, store=tmp_path / "store").rows
        == 2
    )


def test_text_laid_out_in_another_way_is_the_same_type(tmp_path: Path) -> None:
    table(tmp_path / "t/0.parquet", x=pa.array(["a"]))
    table(tmp_path / "t/1.parquet", x=pa.array(["b"], pa.large_string()))
    table(tmp_path / "t/2.parquet", x=pa.array(["c"]).dictionary_encode())
    inputs = {"t": cumin.files(tmp_path / "t/*.parquet")}
    made = cumin.build("x", sql="SELECT x FROM t", inputs=inputs, order_key="x", store=tmp_path / "store")
    assert values(made, "x") == ["a", "b", "c"]


def test_columns_that_depend_on_the_data_are_refused(tmp_path: Path) -> None:
    inputs = {"t": cumin.files(table(tmp_path / "t.parquet", g=["a", "b"], k=[1, 2]))}
    with pytest.raises(EngineError, match="gives other columns over the files"):
        cumin.build("x", sql="SELECT * FROM (PIVOT t ON g USING count(*))", inputs=inputs, store=tmp_path / "store")
    named = "SELECT * FROM t PIVOT (max(k) FOR g IN ('a', 'b'))"
    assert cumin.build("x", sql=named, inputs=inputs, store=tmp_path / "store").schema.names == ["a", "b"]


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    table(tmp_path / "d/part[1].parquet", v=[1])
    table(tmp_path / "d/part1.parquet", v=[100])
    for group, value in (("a*", 1), ("ab", 2), ("a?", 3)):
        table(tmp_path / f"h/g={group}/x.parquet", v=[value])
    both, named = cumin.files(tmp_path / "d/*.parquet"), cumin.files(tmp_path / "d/part[1].parquet")
    hive = cumin.hive(tmp_path / "h", partition="g")
    store = tmp_path / "store"
    assert sorted(values(cumin.build("x", sql="SELECT v FROM t", inputs={"t": both}, store=store), "v")) == [1, 100]
    assert values(cumin.build("x", sql="SELECT v FROM t", inputs={"t": named}, store=store), "v") == [1]
    assert values(cumin.build("x", sql="SELECT v FROM t WHERE g = 'a*'", inputs={"t": hive}, store=store), "v") == [1]


@pytest.mark.parametrize("end", [";", ";\n", "; -- the end", " -- the end"])
def test_a_query_may_be_closed(tmp_path: Path, end: str) -> None:
    inputs = {"t": cumin.files(table(tmp_path / "t.parquet", k=[2, 1]))}
    made = cumin.build("x", sql="SELECT k FROM t" + end, inputs=inputs, order_key="k", store=tmp_path / "store")
    assert values(made, "k") == [1, 2]


@pytest.mark.parametrize(
    "expression",
    ["age(birth)", "date_part('year', age(birth))", "pg_postmaster_start_time()", "pg_conf_load_time()",
     "ago(INTERVAL 1 DAY)", "current_schemas(true)", "in_search_path('a', 'b')", "setval('q', 1)", "current_catalog()"],
)  # fmt: skip
def test_clocks_are_seen_whatever_they_are_called(tmp_path: Path, expression: str) -> None:
    birth = pa.array([0], pa.timestamp("us"))
    inputs = {"t": cumin.files(table(tmp_path / "t.parquet", birth=birth))}
    with pytest.raises(cumin.DeterminismError):
        cumin.plan("x", sql=f"SELECT {expression} AS v FROM t", inputs=inputs)
    cumin.plan("x", sql="SELECT age(birth, TIMESTAMP '2026-01-01') AS v FROM t", inputs=inputs)


@pytest.mark.parametrize("source", ["json_execute_serialized_sql('x')", "summary(TABLE t)", "pg_timezone_names()"])
def test_tables_that_are_no_input_are_refused_but_for_those_of_their_arguments(tmp_path: Path, source: str) -> None:
    inputs = {"t": cumin.files(table(tmp_path / "t.parquet", k=[1]))}
    with pytest.raises(cumin.DeterminismError, match="reads what is no declared input"):
        cumin.plan("x", sql=f"SELECT t.k FROM t, {source} AS z", inputs=inputs)
    cumin.plan("x", sql="SELECT t.k, z.n FROM t, range(3) AS z(n)", inputs=inputs)
