"""Spark, in local mode: the same data has the same content id as DuckDB's, and the same refusals."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import cumin
from cumin.store import Store
from cumin.verify import verify

FIRST_DAY = date(2026, 1, 1)
pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # pyspark warns of a pandas newer than it knows; cumin uses none of pandas.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    conf = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.local.dir": str(tmp_path_factory.mktemp("spark")),
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
        "spark.driver.memory": "1g",
    }
    made = cumin.spark(master="local[2]", conf=conf)
    yield made
    made.spark().stop()
    from pyspark import SparkContext

    gateway = SparkContext._gateway
    if gateway is not None:  # the JVM is a child of this process: end it too
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait(timeout=60)
        SparkContext._gateway = SparkContext._jvm = None


SQL = """
SELECT e.dt, u.country, user_id, count(*) AS n, CAST(sum(CAST(amount AS DECIMAL(18, 6))) AS DECIMAL(28, 6)) AS total,
       min(hash_mod(item_id, 100, 7)) AS h
FROM lake.events e JOIN lake.users u USING (user_id) WHERE e.dt >= :since GROUP BY e.dt, u.country, user_id
"""


@pytest.fixture
def joined(lake: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "sql": SQL,
        "params": {"since": date(2026, 1, 4)},
        "inputs": {
            "lake.events": cumin.hive(lake / "events", partition="dt"),
            "lake.users": cumin.files(lake / "users.parquet"),
        },
        "partition_by": "dt",
        "order_key": ["user_id"],
        "store": tmp_path / "store",
    }


def test_spark_and_duckdb_give_one_content_id(joined: dict[str, Any], engine: Any) -> None:
    one = cumin.build("by_duckdb", **joined)
    other = cumin.build("by_spark", engine=engine, **joined)
    assert other.schema.equals(one.schema)
    assert other.content_id == one.content_id
    assert other.build_id != one.build_id  # the engine is part of the recipe
    assert len(other.manifest["inputs"][0]["partitions"]) == 7
    assert cumin.build("by_spark", engine=engine, **joined).hit
    assert verify(Store(joined["store"]), None, level="rows") == []
    # Without order and partitions the files are the tasks'; the content is the same.
    loose = {**joined, "partition_by": (), "order_key": (), "store": Path(joined["store"]).with_name("loose")}
    third = cumin.build("loose", engine=engine, **loose)
    assert third.content_id == one.content_id


def test_what_may_vary_is_refused_on_spark_too(joined: dict[str, Any], engine: Any) -> None:
    for sql, place in (
        ("SELECT user_id, sum(amount) AS s FROM lake.events GROUP BY user_id", "1, column 17"),
        ("SELECT user_id, collect_list(item_id) AS s FROM lake.events GROUP BY user_id", "1, column 17"),
        ("SELECT user_id, rand() AS s FROM lake.events", "1, column 17"),
        ("SELECT user_id FROM lake.events LIMIT 3", "1, column 33"),
        ("SELECT avg(user_id) AS a FROM lake.events", "1, column 8"),  # Spark averages bigint as doubles
    ):
        values = {"sql": sql, "inputs": {"lake.events": joined["inputs"]["lake.events"]}, "engine": engine}
        with pytest.raises(cumin.DeterminismError, match=f"line {place}"):
            cumin.plan("x", **values)
    with pytest.raises(cumin.ConfigError, match="single-thread is DuckDB's"):
        cumin.plan("x", **{**values, "sql": "SELECT user_id FROM lake.events", "determinism": "single-thread"})
    with pytest.raises(cumin.QueryError, match="nothing"):
        cumin.plan("x", **{**values, "sql": "SELECT nothing FROM lake.events"})


def test_incremental_builds_and_functions_on_spark(lake: Path, tmp_path: Path, engine: Any, write_day: Any) -> None:
    values = {
        "sql": "SELECT dt, user_id, plus_one(count(*)) AS n FROM lake.events GROUP BY dt, user_id",
        "inputs": {"lake.events": cumin.hive(lake / "events", partition="dt")},
        "udfs": {"plus_one": cumin.udf(lambda n: n + 1, arguments=[pa.int64()], returns=pa.int64(), version="1")},
        "partition_by": "dt",
        "lookback": {},
        "engine": engine,
        "store": tmp_path / "store",
    }
    first = cumin.build("x", **values)
    assert sum(first.to_table()["n"].to_pylist()) == 400 + first.rows
    write_day(lake / "events", 4, seed=3)
    second = cumin.build("x", **values)
    assert second.manifest["stats"]["partitions_built"] == 1
    assert len(set(first.files()) & set(second.files())) == 9


def test_a_table_is_its_view_only_where_the_query_reads_it() -> None:
    from cumin.engines.spark_engine import SparkTables

    tables = SparkTables.__new__(SparkTables)  # without a session: a text becomes a text
    tables._names = {"events": "v0", "lake.events": "v1"}
    for sql, wanted in (
        (
            "WITH events AS (SELECT * FROM events WHERE v > 1) SELECT k FROM events",
            "WITH events AS (SELECT * FROM v0 AS events WHERE v > 1) SELECT k FROM events",
        ),
        (
            "SELECT e.k FROM lake.`Events` e, events WHERE s = 'FROM events'",
            "SELECT e.k FROM v1 e, v0 AS events WHERE s = 'FROM events'",
        ),
    ):
        assert tables.rewritten(sql) == wanted


@pytest.mark.parametrize("timezone", ["UTC", "Asia/Tokyo"])
def test_moments_come_out_as_they_are_on_duckdb(tmp_path: Path, engine: Any, timezone: str) -> None:
    import pyarrow.parquet as pq

    moments = pa.array([0, 1_767_225_600_123_456, None], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"k": [1, 2, 3], "tz": moments}), tmp_path / "t.parquet")
    values = {
        "sql": "SELECT k, tz FROM t",
        "inputs": {"t": cumin.files(tmp_path / "t.parquet")},
        "store": tmp_path / "store",
    }
    there = cumin.build("spark", **values, engine=replace(engine, timezone=timezone))
    here = cumin.build("duckdb", **values)
    assert there.to_table().sort_by("k")["tz"].to_pylist() == moments.to_pylist()
    assert there.content_id == here.content_id
    assert verify(Store(tmp_path / "store"), None, level="rows") == []


def test_partitions_are_chosen_as_spark_would(tmp_path: Path, engine: Any) -> None:
    import pyarrow.parquet as pq

    for hour in range(1, 10):
        folder = tmp_path / f"t/h={hour}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"v": [hour]}), folder / "a.parquet")
    found = {}
    for condition in ("h = CAST(7.9 AS INT)", "h > CAST(2.6 AS INT)", "h IN (2, 3)"):
        inputs = {"t": cumin.hive(tmp_path / "t", partition="h")}
        sql = f"SELECT v FROM t WHERE {condition}"
        ds = cumin.build("x", sql=sql, inputs=inputs, engine=engine, store=tmp_path / "store")
        found[condition] = sorted(ds.to_table()["v"].to_pylist()), len(ds.manifest["inputs"][0]["partitions"])
    assert found == {
        "h = CAST(7.9 AS INT)": ([7], 9),  # DuckDB rounds to 8: all are read, and Spark itself chooses
        "h > CAST(2.6 AS INT)": ([3, 4, 5, 6, 7, 8, 9], 9),
        "h IN (2, 3)": ([2, 3], 2),
    }
