"""Building: never twice, exact about its inputs, whole after any crash."""

import os
import threading
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cumin
from cumin.building import build_recipe
from cumin.planning import make_plan
from cumin.store import Store
from cumin.verify import verify

FIRST_DAY = date(2026, 1, 1)
WriteDay = Callable[..., Path]


def build(recipe: dict[str, Any], **more: Any) -> cumin.Dataset:
    return cumin.build("clicks", **{**recipe, **more})


def plan_id(recipe: dict[str, Any], **more: Any) -> str:
    values = {key: value for key, value in {**recipe, **more}.items() if key != "store"}
    return cumin.plan("clicks", **values).build_id


def test_an_identical_build_is_never_run_again(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(recipe)
    assert not first.hit
    assert (first.rows, first.version) == (sum(1 for _ in first.to_table()["n"]), 1)
    monkeypatch.setattr("cumin.engines.duckdb_engine.DuckDB.run", None)  # would raise if it were called
    again = build(recipe)
    assert again.hit
    assert (again.build_id, again.content_id, again.files()) == (first.build_id, first.content_id, first.files())
    reformatted = recipe["sql"].replace("SELECT", "-- n of clicks\n  SELECT  ")
    assert build(recipe, sql=reformatted).hit


def test_the_rows_are_those_of_the_query(recipe: dict[str, Any], lake: Path) -> None:
    import duckdb

    ds = build(recipe)
    with duckdb.connect() as connection:
        wanted = connection.sql(
            f"SELECT dt, user_id, count(*) n FROM read_parquet('{lake}/events/*/*.parquet', hive_partitioning=true) "
            "WHERE dt >= DATE '2026-01-04' GROUP BY ALL ORDER BY ALL"
        ).to_arrow_table()
    assert ds.to_table().to_pylist() == wanted.to_pylist()
    assert cumin.content_id(ds.to_table()) == ds.content_id
    assert ds.partitions == [f"dt={FIRST_DAY + timedelta(day)}" for day in range(3, 10)]
    source = ds.__ghee_source__()
    assert [pq.read_metadata(path).num_rows for path in source["paths"]] == source["rows"]
    assert source["digest"] == ds.content_id


CHANGES: dict[str, dict[str, Any]] = {
    "query": {"sql": "SELECT dt, user_id, count(*) AS N FROM lake.events WHERE dt >= :since GROUP BY dt, user_id"},
    "params": {"params": {"since": FIRST_DAY + timedelta(4)}},
    "salt": {"salt": "again"},
    "order": {"order_key": ["user_id", "dt"]},
    "partition": {"partition_by": ()},
    "engine": {"engine": cumin.duckdb(timezone="Asia/Tokyo")},
    "policy": {"engine": cumin.duckdb(version_policy="exact")},
    "mode": {"determinism": "tolerant"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_everything_that_may_change_the_result_changes_the_id(recipe: dict[str, Any], change: dict[str, Any]) -> None:
    assert plan_id(recipe, **change) != plan_id(recipe)


def test_what_changes_no_result_changes_no_id(recipe: dict[str, Any], lake: Path, tmp_path: Path) -> None:
    wanted = plan_id(recipe)
    assert plan_id(recipe, engine=cumin.duckdb(threads=1, memory_limit="1GB")) == wanted
    assert plan_id(recipe, layout=cumin.Layout(compression="snappy", rows_per_group=10)) == wanted
    lake.rename(tmp_path / "moved")  # the same files in another place
    assert plan_id(recipe, inputs={"lake.events": cumin.hive(tmp_path / "moved/events", partition="dt")}) == wanted


def test_only_partitions_that_the_query_can_read_count(write_day: WriteDay, recipe: dict[str, Any], lake: Path) -> None:
    wanted = plan_id(recipe)
    write_day(lake / "events", 1, seed=99)  # before :since
    assert plan_id(recipe) == wanted
    write_day(lake / "events", 5, seed=99)
    assert plan_id(recipe) != wanted


def test_plans_at_the_same_time_do_not_see_each_others_tables(recipe: dict[str, Any], tmp_path: Path) -> None:
    ids: dict[int, set[tuple[str, str]]] = {number: set() for number in range(6)}

    def plan_often(number: int) -> None:
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({f"only_{number}": [number], "seen": pa.array([0], pa.timestamp("us", "UTC"))}), path)
        for _ in range(8):
            zone = ("UTC", "Asia/Tokyo")[number % 2]
            made = cumin.plan("x", sql=f"SELECT only_{number}, CAST(seen AS DATE) AS day FROM lake.t",
                              inputs={"lake.t": cumin.files(path)}, engine=cumin.duckdb(timezone=zone))  # fmt: skip
            ids[number].add((made.build_id, made.schema.names[0]))

    threads = [threading.Thread(target=plan_often, args=(number,)) for number in ids]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [name for found in ids.values() for _, name in found] == [f"only_{number}" for number in ids]


WHERE_READS = [
    ("WHERE dt = DATE '2026-01-03'", 1),
    ("WHERE dt IN ('2026-01-03', '2026-01-04')", 2),
    ("WHERE dt BETWEEN DATE '2026-01-05' - INTERVAL 2 DAY AND DATE '2026-01-05' AND user_id > 3", 3),
    ("WHERE dt > '2026-01-08' OR dt < '2026-01-02'", 3),
    ("WHERE dt > '2026-01-08' OR user_id = 1", 10),
    ("WHERE NOT dt = '2026-01-03'", 9),
    ("WHERE dt IS NULL OR dt = '2026-01-03'", 10),
    ("WHERE dt = (SELECT max(dt) FROM lake.events)", 10),
    ("WHERE strftime(dt, '%d') = '03'", 10),
    ("", 10),
]


@pytest.mark.parametrize(("where", "partitions"), WHERE_READS)
def test_partitions_are_left_out_only_where_that_is_sure(recipe: dict[str, Any], where: str, partitions: int) -> None:
    sql = f"SELECT dt, user_id, count(*) AS n FROM lake.events {where} GROUP BY dt, user_id"
    values = {key: value for key, value in recipe.items() if key not in ("store", "params")}
    plan = cumin.plan("clicks", **{**values, "sql": sql})
    assert len(plan.state["lake.events"]) == partitions


def test_an_outer_join_and_a_second_reading_keep_their_partitions(recipe: dict[str, Any]) -> None:
    values = {key: value for key, value in recipe.items() if key not in ("store", "params", "partition_by", "order_key")}
    both = "SELECT a.user_id FROM lake.events a JOIN lake.events b USING (event_id) WHERE a.dt = '2026-01-03'"
    assert len(cumin.plan("x", **{**values, "sql": both}).state["lake.events"]) == 10
    both += " AND b.dt = '2026-01-04'"
    assert len(cumin.plan("x", **{**values, "sql": both}).state["lake.events"]) == 2


@pytest.mark.parametrize("how", ["same size, mtime kept", "touched", "grown", "added", "gone"])
def test_a_changed_input_is_another_build(recipe: dict[str, Any], lake: Path, how: str) -> None:
    wanted = plan_id(recipe)
    path = lake / f"events/dt={FIRST_DAY + timedelta(6)}/part-0.parquet"
    stat, data = path.stat(), bytearray(path.read_bytes())
    if how == "same size, mtime kept":
        data[20] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif how == "touched":
        os.utime(path)
    elif how == "grown":
        path.write_bytes(bytes(data) + b" ")
    elif how == "added":
        path.with_name("part-1.parquet").write_bytes(data)
    else:
        path.rename(path.with_name("_hidden.parquet"))
    assert plan_id(recipe) != wanted


def test_by_bytes_a_touched_file_is_the_same_and_a_flipped_bit_is_not(recipe: dict[str, Any], lake: Path) -> None:
    inputs = {"lake.events": cumin.hive(lake / "events", partition="dt", strength="bytes")}
    wanted = plan_id(recipe, inputs=inputs)
    path = lake / f"events/dt={FIRST_DAY + timedelta(6)}/part-0.parquet"
    os.utime(path)
    assert plan_id(recipe, inputs=inputs) == wanted
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    assert plan_id(recipe, inputs=inputs) != wanted
    assert plan_id(recipe, inputs=inputs) != plan_id(recipe)  # two strengths are never equal


def test_by_bytes_means_bytes_on_every_file_system(tmp_path: Path) -> None:
    """`local://` is fsspec's own local file system: a remote one to cumin, without ETags."""

    def write(value: int) -> None:
        (tmp_path / "a.csv").write_text(f"v\n{value}\n")
        os.utime(tmp_path / "a.csv", (1_700_000_000, 1_700_000_000))

    for strength, seen in (("bytes", [1, 2]), ("stat", [1, 1])):
        got = []
        for value in (1, 2):
            write(value)
            source = cumin.files(f"local://{tmp_path}/a.csv", strength=strength)
            made = cumin.build("x", sql="SELECT v FROM t", inputs={"t": source}, store=tmp_path / f"store-{strength}")
            got += made.to_table()["v"].to_pylist()
        assert got == seen
    # A rewrite under the same time while the query runs is seen too.
    moved = Store(tmp_path / "store-moved", reach=lambda point: write(3) if point == "written" else None)
    source = cumin.files(f"local://{tmp_path}/a.csv", strength="bytes")
    with pytest.raises(cumin.InputMovedError):
        cumin.build("x", sql="SELECT v FROM t", inputs={"t": source}, store=moved)


def test_a_file_that_was_just_written_is_waited_for(write_day: WriteDay, lake: Path, recipe: dict[str, Any]) -> None:
    path = write_day(lake / "events", 5, seed=98)
    plan_id(recipe)
    assert time.time_ns() - path.stat().st_ctime_ns >= 20_000_000


def test_an_input_that_moves_during_the_build_aborts_it(
    write_day: WriteDay, recipe: dict[str, Any], lake: Path, tmp_path: Path
) -> None:
    def move(point: str) -> None:
        if point == "written":
            write_day(lake / "events", 6, seed=5)

    with pytest.raises(cumin.InputMovedError, match=r"1 input files changed .*\n.*dt=2026-01-07/part-0.parquet"):
        build(recipe, store=Store(tmp_path / "store", reach=move))
    assert list(Store(tmp_path / "store").builds()) == []
    assert not build(recipe).hit

    # What is added does not count: the engine had the exact list.
    def add(point: str) -> None:
        if point == "written":
            (lake / f"events/dt={FIRST_DAY + timedelta(6)}/more.parquet").write_bytes(b"")

    build(recipe, salt="2", store=Store(tmp_path / "store", reach=add))


def test_equal_rows_are_kept_once_and_stop_a_change_downstream(recipe: dict[str, Any], tmp_path: Path) -> None:
    first = build(recipe)
    other = build(recipe, sql=recipe["sql"].replace("count(*)", "count(1)"))
    assert other.build_id != first.build_id
    assert (other.content_id, other.files()) == (first.content_id, first.files())
    down = {"sql": "SELECT user_id, sum(n) AS n FROM clicks GROUP BY user_id", "store": recipe["store"]}
    one = cumin.build("totals", inputs={"clicks": first}, **down)
    assert cumin.build("totals", inputs={"clicks": other}, **down).hit
    assert one.manifest["inputs"][0]["parents"][0]["build_id"] == first.build_id


def test_one_id_with_two_contents_is_an_error_and_keeps_both(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(recipe)
    store = Store(recipe["store"])
    values = {key: value for key, value in recipe.items() if key != "store"}
    plan = make_plan(cumin.make_recipe("clicks", **values))
    plan.executed = plan.executed.replace("count(*)", "count(*) + 1")  # as if the query varied
    with pytest.raises(cumin.NonDeterministicBuildError, match="Both are kept"):
        build_recipe(plan.recipe, store, force=True, plan=plan)
    assert store.entry(first.build_id) is not None
    assert len(store.place.names(f"conflicts/{first.build_id[3:]}")) == 1
    with pytest.raises(cumin.NonDeterministicBuildError, match="quarantine"):
        build(recipe)
    assert verify(store, None, level="bytes") == []


def test_a_file_behind_a_symbolic_link_is_read_and_followed(tmp_path: Path) -> None:
    """As DVC, git-annex, Hugging Face's cache and volumes of Kubernetes lay them."""
    for folder, value in (("it's one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"v": [value]}), tmp_path / folder / "x.parquet")
    (tmp_path / "secret.parquet").write_bytes((tmp_path / "two/x.parquet").read_bytes())
    (tmp_path / "lake").mkdir()
    link = tmp_path / "lake/x.parquet"
    values = {
        "sql": "SELECT v FROM t",
        "inputs": {"t": cumin.files(tmp_path / "lake/*.parquet")},
        "store": tmp_path / "store",
    }
    found = []
    for folder in ("it's one", "two"):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / folder / "x.parquet")
        found.append(cumin.build("x", **values))
    assert [each.to_table()["v"].to_pylist() for each in found] == [[1], [2]]
    assert cumin.build("x", **values).hit


def test_decimal_averages_of_distinct_values_are_over_the_rounded_ones(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0, 1.0 + 1e-9, 2.0]}), tmp_path / "t.parquet")
    sql = "SELECT avg(DISTINCT x) AS a, avg(x) AS b, count(DISTINCT x) AS n FROM t"
    inputs = {"t": cumin.files(tmp_path / "t.parquet")}
    ds = cumin.build("x", sql=sql, inputs=inputs, determinism="decimal", store=tmp_path / "store")
    assert ds.to_table().to_pylist() == [{"a": 1.5, "b": pytest.approx(4 / 3), "n": 3}]
