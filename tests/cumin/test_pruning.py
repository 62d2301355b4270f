"""Which partitions a query is seen to read: never fewer than it can, and few where that is sure."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cumin
from cumin.pruning import same_everywhere

DAYS = 6
BEFORE = "dt < DATE '2026-01-03'"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`t`, partitioned by dt, and `u`, not partitioned, with one day that `t` has not."""
    root = tmp_path_factory.mktemp("pruning")
    for day in range(1, DAYS + 1):
        folder = root / f"t/dt=2026-01-0{day}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"k": [day, day + 1, 3], "v": [day * 10, 7, day]}), folder / "x.parquet")
    pq.write_table(pa.table({"k": [1, 3, 9], "w": [5, 6, 7]}), root / "u.parquet")
    return root


@pytest.fixture(scope="module")
def tables(root: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE whole AS FROM read_parquet('{root}/t/*/*.parquet', hive_partitioning = true)")
        connection.execute(f"CREATE TABLE u AS FROM '{root}/u.parquet'")
        yield connection


def read(root: Path, sql: str) -> list[str]:
    """The days that the query is seen to read."""
    used = {"t": cumin.hive(root / "t", partition="dt", key=("dt", "k", "v")), "u": cumin.files(root / "u.parquet", key="k")}
    inputs = {name: used[name] for name in used if f" {name}" in sql}
    passed = cumin.Determinism(allow=("asof-join", "sample", "numbering", "order-sensitive", "limit"))
    made = cumin.plan("x", sql=sql, inputs=inputs, determinism=passed)
    return [key.removeprefix("dt=") for key in made.state["t"]]


def rows(tables: duckdb.DuckDBPyConnection, sql: str, days: list[str]) -> list[Any]:
    """What the query gives where `t` holds these days only."""
    listed = ", ".join(f"DATE '{day}'" for day in days) or "NULL"
    tables.execute(f"CREATE OR REPLACE TEMP TABLE t AS SELECT k, v, dt FROM whole WHERE dt IN ({listed}) ORDER BY ALL")
    return sorted(map(str, tables.execute(sql).fetchall()))


ALL_DAYS = [f"2026-01-0{day}" for day in range(1, DAYS + 1)]
SEEN = [
    (f"SELECT * FROM (SELECT dt, k FROM t) AS s WHERE {BEFORE}", 2),
    (f"SELECT * FROM (SELECT * FROM t) AS s WHERE s.{BEFORE}", 2),
    ("SELECT * FROM (SELECT dt AS day, k FROM t) AS s WHERE day = DATE '2026-01-03'", 1),
    (f"SELECT * FROM (SELECT dt, sum(k) AS n FROM t GROUP BY dt) AS s WHERE {BEFORE}", 2),
    (f"SELECT * FROM (SELECT dt, k, sum(v) AS n FROM t GROUP BY ALL) AS s WHERE {BEFORE}", 2),
    (f"SELECT * FROM (SELECT DISTINCT dt FROM (SELECT dt, k FROM t) AS a) AS b WHERE {BEFORE}", 2),
    (f"WITH c AS (SELECT dt, k FROM t WHERE dt > DATE '2026-01-01') SELECT * FROM c WHERE {BEFORE}", 1),
    (
        f"WITH c AS (SELECT dt, k FROM t) SELECT k FROM c WHERE {BEFORE} UNION ALL SELECT k FROM c WHERE dt = '2026-01-05'",
        3,
    ),
    (f"WITH c AS (SELECT * FROM t), d AS (SELECT dt, k FROM c) SELECT * FROM d JOIN u USING (k) WHERE {BEFORE}", 2),
    ("SELECT t.k FROM t JOIN u ON t.k = u.k AND t.dt = DATE '2026-01-02'", 1),
    ("SELECT t.k FROM u JOIN t ON t.k = u.k AND dt = DATE '2026-01-02'", 1),
    ("SELECT u.k, t.v FROM u LEFT JOIN t ON t.k = u.k AND t.dt = DATE '2026-01-02'", 1),
    ("SELECT u.k FROM u ANTI JOIN t ON t.k = u.k AND t.dt = DATE '2026-01-02'", 1),
    (f"SELECT t.k, w FROM t JOIN u USING (k) WHERE {BEFORE}", 2),
]
UNSEEN = [
    f"SELECT * FROM (SELECT dt, k FROM t ORDER BY ALL LIMIT 4) AS s WHERE {BEFORE}",
    f"SELECT * FROM (SELECT dt, k, count(*) OVER () AS n FROM t) AS s WHERE {BEFORE}",
    f"SELECT * FROM (SELECT dt, k, row_number() OVER (ORDER BY dt, k, v) AS n FROM t) AS s WHERE {BEFORE}",
    f"SELECT * FROM (SELECT max(dt) AS dt, k FROM t GROUP BY k) AS s WHERE {BEFORE}",
    f"SELECT * FROM (SELECT dt + INTERVAL 1 DAY AS dt, k FROM t) AS s WHERE {BEFORE}",
    f"SELECT * FROM (SELECT DISTINCT ON (k) dt, k FROM t ORDER BY k, dt DESC, v) AS s WHERE {BEFORE}",
    f"SELECT * FROM (SELECT dt, k FROM t QUALIFY count(*) OVER () > 3) AS s WHERE {BEFORE}",
    f"SELECT * FROM (SELECT dt, k, count(*) AS n FROM t GROUP BY CUBE (dt, k)) AS s WHERE {BEFORE}",
    f"SELECT * FROM (SELECT DATE '2026-01-01' AS dt, k, v FROM t) AS s WHERE {BEFORE}",
    "SELECT * FROM (SELECT dt, k FROM t) AS s(k, dt) WHERE k < DATE '2026-01-03'",
    f"WITH c AS (SELECT dt, k FROM t) SELECT k FROM c WHERE {BEFORE} UNION ALL SELECT k FROM c",
    "SELECT t.k, u.w FROM t LEFT JOIN u ON t.k = u.k AND t.dt = DATE '2026-01-02'",
    "SELECT t.k, u.w FROM u RIGHT JOIN t ON t.k = u.k AND t.dt = DATE '2026-01-02'",
    "SELECT t.k, u.w FROM t FULL JOIN u ON t.k = u.k AND t.dt = DATE '2026-01-02'",
    "SELECT t.k FROM t ANTI JOIN u ON t.k = u.k AND t.dt = DATE '2026-01-02'",
    f"SELECT u.k, t.v FROM u LEFT JOIN t ON t.k = u.k WHERE t.{BEFORE} OR t.dt IS NULL",
    f"SELECT u.k, t.v FROM u ASOF JOIN t ON u.k >= t.k WHERE t.{BEFORE}",
    f"SELECT * FROM (SELECT u.k, t.dt, t.v FROM u ASOF JOIN t ON u.k >= t.k) AS s WHERE {BEFORE}",
    f"SELECT k FROM (SELECT dt, k FROM t UNION ALL SELECT dt, v FROM t) AS s WHERE {BEFORE}",
    f"SELECT k FROM t WHERE {BEFORE} USING SAMPLE reservoir(4) REPEATABLE (7)",
]  # fmt: skip


@pytest.mark.parametrize(("sql", "days"), SEEN, ids=[sql for sql, _ in SEEN])
def test_conditions_further_out_and_in_joins_are_seen(
    root: Path, tables: duckdb.DuckDBPyConnection, sql: str, days: int
) -> None:
    found = read(root, sql)
    assert len(found) == days
    assert rows(tables, sql, found) == rows(tables, sql, ALL_DAYS)


@pytest.mark.parametrize("sql", UNSEEN)
def test_where_rows_of_one_partition_may_change_another_all_are_read(root: Path, sql: str) -> None:
    assert read(root, sql) == ALL_DAYS


KINDS = ("JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "SEMI JOIN", "ANTI JOIN", "CROSS JOIN")


def some_query(rng: random.Random) -> str:
    """A query over `t` with conditions on dt wherever one may stand."""

    def test(column: str) -> str:
        day = f"DATE '2026-01-0{rng.randint(1, DAYS)}'"
        return rng.choice([f"{column} = {day}", f"{column} > {day}", f"{column} IN ({day})", f"NOT {column} <= {day}",
                           f"({column} = {day} OR {column} IS NULL)", f"coalesce({column}, {day}) = {day}",
                           f"{column} IS NOT NULL", f"{column} IS DISTINCT FROM {day}"])  # fmt: skip

    def where(column: str) -> str:
        return f" WHERE {test(column)}" if rng.random() < 0.5 else ""

    inner = rng.choice([
        f"SELECT dt, k FROM t{where('dt')}",
        f"SELECT * FROM t{where('t.dt')}",
        f"SELECT dt, min(k) AS k FROM t GROUP BY dt HAVING {test('dt')}",
        "SELECT max(dt) AS dt, k FROM t GROUP BY k",
        f"SELECT DISTINCT dt, 3 AS k FROM t{where('dt')}",
        f"SELECT dt, k FROM t{where('dt')} ORDER BY dt, k LIMIT {rng.randint(1, 9)}",
        f"SELECT dt, k + count(*) OVER (PARTITION BY {rng.choice(['dt', 'k'])}) AS k FROM t",
        f"SELECT x.dt, x.k FROM t AS x {rng.choice(KINDS[:4])} t AS y ON x.k = y.k AND {test(rng.choice(['x.dt', 'y.dt']))}"
        + where(rng.choice(["x.dt", "y.dt"])),
    ])  # fmt: skip
    kind, turned, common = rng.choice(KINDS), rng.random() < 0.5, rng.random() < 0.5
    both = ["s" if common else f"({inner}) AS s", "u"]
    one, other = reversed(both) if turned else both
    on = "" if kind == "CROSS JOIN" else f" ON s.k = u.k AND {test('s.dt')}"
    if kind in ("SEMI JOIN", "ANTI JOIN"):
        outer = f"SELECT {'u' if turned else 's'}.k FROM {one} {kind} {other}{on}" + ("" if turned else where("s.dt"))
    else:
        outer = f"SELECT s.k, s.dt, u.w FROM {one} {kind} {other}{on}{where('s.dt')}"
    return f"WITH s AS ({inner}) {outer}" if common else outer


@pytest.mark.parametrize("seed", range(4))
def test_any_query_gives_the_same_without_the_partitions_left_out(
    root: Path, tables: duckdb.DuckDBPyConnection, seed: int
) -> None:
    rng = random.Random(seed)
    pruned = 0
    for _ in range(40):
        sql = some_query(rng)
        try:
            found = read(root, sql)
        except cumin.DeterminismError:
            continue
        assert rows(tables, sql, found) == rows(tables, sql, ALL_DAYS), sql
        pruned += len(found) < DAYS
    assert pruned > 5


@pytest.mark.parametrize(
    ("condition", "same"),
    {
        "n >= 3 AND NOT n = 7": True,
        "n IN (1, -2) OR n IS NULL": True,
        "n BETWEEN 1 AND 3": True,
        "d < CAST('2026-01-04' AS DATE)": True,
        "s = 'a'": True,
        "s IS NOT NULL": True,
        "n = CAST(7.9 AS INT)": False,
        "n = 7.9": False,
        "n = '7'": False,
        "s = 7": False,
        "d < CAST('2026-01-04 00:00:00+00' AS TIMESTAMPTZ)": False,
        "d < '2026-1-4'": False,
        "n % 2 = 1": False,
        "n = m": False,
        "upper(s) = 'A'": False,
        "n >= 3 AND n < 2.6": False,
        "s LIKE 'a%'": False,
        "f = 1": False,
    }.items(),
)
def test_only_plain_comparisons_mean_the_same_in_every_engine(condition: str, same: bool) -> None:
    assert same_everywhere(condition, {"n": "int", "m": "int", "s": "str", "d": "date", "f": "other"}) == same
