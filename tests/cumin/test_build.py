"""Building: never twice, exact about its inputs, whole after any crash."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cumin
from cumin.building import build_recipe
from cumin.inputs.files import FileTable
from cumin.partitions import NULL_PARTITION
from cumin.planning import make_plan
from cumin.store import POINTS, Store
from cumin.verify import verify
from cumin.windows import Windows

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
    reformatted = recipe["sql"].replace("SELECT", "-- n of clicks\n  select  ")
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


# -- several builders, crashes --------------------------------------------------------------------

PREAMBLE = """
import json, os, signal, sys
import cumin
from cumin.store import Store
lake, store, day = sys.argv[1], sys.argv[2], sys.argv[3]
from datetime import date
def build(reach=lambda point: None, **more):
    return cumin.build("clicks", sql="SELECT dt, user_id, count(*) AS n FROM lake.events WHERE dt >= :since GROUP BY dt, user_id",
        params={"since": date.fromisoformat(day)}, inputs={"lake.events": cumin.hive(lake + "/events", partition="dt")},
        partition_by="dt", order_key=["user_id"], store=Store(store, reach=reach), **more)
"""  # noqa: E501
EIGHT = """
import fcntl
def broken(*arguments): raise OSError("no locks here")
if sys.argv[4] == "no locks": fcntl.flock = fcntl.lockf = broken
log = os.open(store + ".log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
gate_out, gate_in = os.pipe()
children = []
for number in range(8):
    child = os.fork()
    if child == 0:
        os.close(gate_in)
        os.read(gate_out, 1)  # until every child is there
        ds = build(lambda point: os.write(log, (point + "\\n").encode()))
        os.write(log, f"id {ds.build_id} {ds.content_id}\\n".encode())
        os._exit(0)
    children.append(child)
os.close(gate_out)
os.close(gate_in)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""
CRASH = """
def die(point):
    if point == sys.argv[4]: os.kill(os.getpid(), signal.SIGKILL)
for point in sys.argv[5:]:
    child = os.fork()
    if child == 0:
        sys.argv[4] = point
        build(die, salt=point)
        os._exit(0)
    print(point, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(script: str, *arguments: object) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PREAMBLE + script, *map(str, arguments)],
                          capture_output=True, text=True, timeout=100, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_eight_builders_run_the_query_once(lake: Path, tmp_path: Path, locks: str) -> None:
    store = tmp_path / "store"
    assert json.loads(run(EIGHT, lake, store, FIRST_DAY, locks)) == [0] * 8
    lines = Path(f"{store}.log").read_text().splitlines()
    assert lines.count("written") == 1
    assert len({line for line in lines if line.startswith("id")}) == 1
    assert len([line for line in lines if line.startswith("id")]) == 8
    assert verify(Store(store), None, level="bytes") == []
    assert [each["version"] for each in Store(store).versions("clicks")] == [1]


def test_a_crash_at_any_point_leaves_no_half_dataset(lake: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    store = tmp_path / "store"
    report = run(CRASH, lake, store, FIRST_DAY + timedelta(3), "", *POINTS)
    assert report.splitlines() == [f"{point} -9" for point in POINTS]
    wanted = cumin.build("clicks", **{**recipe, "store": tmp_path / "other"}).content_id
    for left in (store / "staging").iterdir():
        left.rename(left.with_name(f"left-by-a-crash-{left.name}"))
    for point in POINTS:
        # There is either no dataset or a whole one, and the dead builder's lease keeps nobody waiting.
        published = point in ("entry-put", "named")
        assert verify(Store(store), None, level="bytes") == []
        started = time.monotonic()
        ds = build(recipe, salt=point)
        assert ds.hit is published
        assert time.monotonic() - started < 60
        assert ds.content_id == wanted
    assert verify(Store(store), None, level="bytes") == []


def test_a_lease_whose_holder_is_elsewhere_is_taken_after_its_heart_stops(recipe: dict[str, Any], tmp_path: Path) -> None:
    from cumin import lease

    store = Store(tmp_path / "store")
    store.put_record("leases/x/000001.json", {"host": "another", "pid": 1, "born": "", "token": "t"})
    waited: list[Any] = []
    held = lease.acquire(store, "b1:x", done=lambda: False, waiting=waited.append, beat=0.05, patience=0.3)
    assert held is not None
    held.release()
    assert len(waited) > 1


# -- partition by partition -----------------------------------------------------------------------

LOOKBACK = """
SELECT d.dt, e.user_id, count(*) AS n FROM (SELECT DISTINCT dt FROM lake.events) d
JOIN lake.events e ON e.dt BETWEEN d.dt - 2 AND d.dt GROUP BY d.dt, e.user_id
"""


@pytest.fixture
def rolling(lake: Path, tmp_path: Path) -> dict[str, Any]:
    return {"sql": LOOKBACK, "inputs": {"lake.events": cumin.hive(lake / "events", partition="dt")}, "partition_by": "dt",
            "order_key": "user_id", "store": tmp_path / "store", "lookback": {"lake.events": 2}}  # fmt: skip


def test_only_partitions_whose_inputs_changed_are_built(write_day: WriteDay, rolling: dict[str, Any], lake: Path) -> None:
    first = build(rolling)
    assert first.manifest["stats"]["partitions_built"] == 10
    whole = cumin.build("whole", **{**rolling, "lookback": None})
    assert whole.content_id == first.content_id
    assert build(rolling).hit
    write_day(lake / "events", 4, seed=77)
    second = build(rolling)
    assert (second.manifest["stats"]["partitions_built"], second.manifest["stats"]["partitions_reused"]) == (3, 7)
    kept = set(first.files()) & set(second.files())
    assert len(kept) == 7
    assert second.content_id == cumin.build("whole", **{**rolling, "lookback": None}).content_id
    write_day(lake / "events", 10)
    third = build(rolling)
    assert third.manifest["stats"]["partitions_built"] == 1
    assert third.partitions[-1] == "dt=2026-01-11"


def test_a_lookback_that_is_too_short_is_found(write_day: WriteDay, rolling: dict[str, Any], lake: Path) -> None:
    with pytest.raises(cumin.NotPartitionLocalError, match="reads beyond lookback"):
        build(rolling, lookback={"lake.events": 1})
    build(rolling)
    write_day(lake / "events", 10)
    with pytest.raises(cumin.NotPartitionLocalError):
        build(rolling, lookback={"lake.events": 1})


def test_a_window_over_time_moves_by_its_partitions(rolling: dict[str, Any]) -> None:
    days = [FIRST_DAY + timedelta(day) for day in range(10)]
    first = build(rolling, partitions=(days[2], days[5]))
    assert first.partitions == [f"dt={day}" for day in days[2:6]]
    moved = build(rolling, partitions=(days[3], days[6]))
    assert (moved.manifest["stats"]["partitions_built"], moved.manifest["stats"]["partitions_reused"]) == (1, 3)


def test_a_partition_without_rows_is_known_to_be_empty(rolling: dict[str, Any]) -> None:
    sql = "SELECT dt, user_id FROM lake.events WHERE event_id < 2000000 AND user_id >= 0"
    values = {**rolling, "sql": sql, "lookback": {}}
    first = build(values)
    assert first.partitions == ["dt=2026-01-01", "dt=2026-01-02"]
    assert first.manifest["stats"]["partitions_built"] == 2


@pytest.mark.parametrize(
    ("kind", "values", "value", "back", "wanted"),
    [
        ("date", ["2026-01-01", "2026-01-03", "2026-01-04"], date(2026, 1, 4), 2, ["2026-01-03", "2026-01-04"]),
        ("int", ["2", "10", "9"], 10, 1, ["10", "9"]),
        ("string", ["a", "c", "f", "g"], "f", 1, ["c", "f"]),
        ("string", ["a", "c", "f"], "d", 1, ["a", "c"]),
        ("string", ["a", NULL_PARTITION], None, 3, [NULL_PARTITION]),
    ],
)
def test_a_look_back_counts_in_days_numbers_or_places(
    tmp_path: Path, kind: str, values: list[str], value: Any, back: int, wanted: list[str]
) -> None:
    for each in values:
        (tmp_path / f"t/p={each}").mkdir(parents=True)
        pq.write_table(pa.table({"a": [1]}), tmp_path / f"t/p={each}/x.parquet")
    table = cumin.hive(tmp_path / "t", partition={"p": kind}).open()
    window = Windows(table, sorted(table.partitions), "p")
    assert window.before(value, back) == [f"p={each}" for each in wanted]


def test_a_year_of_partitions_is_planned_without_looking_at_pairs_of_them(tmp_path: Path) -> None:
    data = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), data)
    for day in range(365):
        (folder := tmp_path / f"t/dt={FIRST_DAY + timedelta(day)}").mkdir(parents=True)
        (folder / "x.parquet").write_bytes(data.getvalue())
    calls: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, _: calls.update([frame.f_code.co_name] if event == "call" else []))
    try:
        made = cumin.plan("x", sql="SELECT dt, count(*) AS n FROM t GROUP BY dt", partition_by="dt", lookback={"t": 6},
                          inputs={"t": cumin.hive(tmp_path / "t", partition="dt")})  # fmt: skip
    finally:
        sys.setprofile(None)
    assert len({each.build_id for each in made.subplans}) == 365
    assert calls["typed"] < 10 * 365


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sql": "SELEC 1"}, "does not parse|one SELECT"),
        ({"sql": "SELECT FROM WHERE"}, "does not parse"),
        ({"sql": "SELECT 1; SELECT 2"}, "got 2 statements \\(after line 1, column 9\\)"),
        ({"sql": ""}, "got 0 statements"),
        ({"sql": "DROP TABLE lake.events"}, "got DROP"),
        ({"sql": "CREATE TABLE x AS SELECT 1"}, "got CREATE"),
        ({"sql": "COPY lake.events TO 'x'"}, "one SELECT; got COPY"),
        ({"sql": "ATTACH 'x'"}, "one SELECT; got"),
        ({"sql": "SELECT nothing FROM lake.events"}, 'Referenced column "nothing" not found'),
        ({"sql": "SELECT * FROM lake.other, lake.events"}, "reads the table 'lake.other', which is not declared"),
        ({"sql": "SELECT 1 AS x"}, "the query does not read it"),
        ({"sql": "no/such/file.sql"}, "cannot be read"),
        ({"params": {}}, ":since at line 1, column 64 is not a parameter"),
        ({"params": {"since": FIRST_DAY, "more": 1}}, "'more' is declared and not used"),
        ({"params": {"since": 5}}, "does not bind"),
        ({"partition_by": "day"}, "partition_by names 'day', which the query does not give. Columns: dt, user_id, n"),
        (
            {"inputs": {"lake.events": cumin.hive("/nowhere", partition="dt")}},
            "'lake.events': /nowhere has no folder dt=",
        ),
        ({"inputs": {"lake.events": "lake/events"}}, "write cumin.files, hive, delta"),
        ({"lookback": {"lake.users": -1}}, "lookback names 'lake.users'"),
    ],
)
def test_bad_input_is_a_clear_error_and_leaves_no_store(
    recipe: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    if "params" not in change and "sql" in change:
        change = {**change, "params": {}}
    with pytest.raises(cumin.RecipeError, match=message):
        build(recipe, **change)
    assert not Path(recipe["store"]).exists()


def test_tables_and_columns_that_differ_only_in_case(lake: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    inputs = {name: cumin.hive(lake / "events", partition="dt") for name in ("lake.events", "Lake.Events")}
    with pytest.raises(cumin.ConfigError, match="differ only in case"):
        build(recipe, inputs=inputs)
    pq.write_table(pa.table({"a": [1], "A": [2]}), tmp_path / "twice.parquet")
    with pytest.raises(cumin.InputError, match="differ only in case"):
        cumin.plan("x", sql="SELECT * FROM t", inputs={"t": cumin.files(tmp_path / "twice.parquet")})
    ids = []
    for column in ("a", "A"):
        pq.write_table(pa.table({column: [1]}), tmp_path / f"{column}_.parquet")
        ds = cumin.build("x", sql="SELECT * FROM t", inputs={"t": cumin.files(tmp_path / f"{column}_.parquet")},
                         store=tmp_path / "store")  # fmt: skip
        ids.append((ds.build_id, ds.content_id, tuple(ds.schema.names)))
    assert len(set(ids)) == 2
    assert [names for _, _, names in ids] == [("a",), ("A",)]


def test_a_store_of_a_newer_format_is_left_alone(recipe: dict[str, Any]) -> None:
    store = Path(recipe["store"])
    store.mkdir()
    (store / "cumin.json").write_text('{"format": 2}')
    with pytest.raises(cumin.StoreFormatError, match="Update cumin"):
        build(recipe)
    (store / "cumin.json").write_text("{")
    with pytest.raises(cumin.CorruptError):
        build(recipe)
    assert [each.name for each in store.iterdir()] == ["cumin.json"]


ON_A_FULL_DISK = """
import json, os, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
import cumin
from cumin.verify import verify
disk, elsewhere = sys.argv[1:]
pq.write_table(pa.table({"a": np.random.default_rng(0).integers(0, 10**12, 200_000)}), elsewhere + "/a.parquet")
values = {"inputs": {"t": cumin.files(elsewhere + "/a.parquet")}, "store": disk + "/store"}
first = cumin.build("x", sql="SELECT max(a) AS a FROM t", **values)
said = []
for sql in ("SELECT a FROM t", "SELECT a + 1 AS a FROM t ORDER BY a"):  # full while rows come, and after all were sorted
    try:
        cumin.build("x", sql=sql, **values)
    except cumin.CuminError as error:
        said.append([type(error).__name__, str(error)])
store = cumin.open_store(values["store"])
left = os.listdir(disk + "/store/staging")
hit = cumin.build("x", sql="SELECT max(a) AS a FROM t", **values).hit
whole = verify(store, None, level="bytes") == [] and list(store.builds()) == [first.build_id]
print(json.dumps({"said": said, "whole": whole, "left": left, "hit": hit}))
"""


def test_a_full_disk_leaves_the_store_whole(tmp_path: Path) -> None:
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    disk.mkdir()
    elsewhere.mkdir()
    # A disk of 400 kB, seen by this command alone and gone with it.
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=400k none "$1" && shift && exec "$@"', "sh", str(disk)]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here: run as root, or allow user namespaces (unshare -rm true)")
    command = [*mounted, sys.executable, "-c", ON_A_FULL_DISK, str(disk), str(elsewhere)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [name for name, _ in found["said"]] == ["StoreError", "StoreError"]
    assert all("No space left on device" in text and "not published" in text for _, text in found["said"])
    assert (found["whole"], found["left"], found["hit"]) == (True, [], True)


def test_a_store_that_cannot_be_used_says_so(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the store's folder should be")
    with pytest.raises(cumin.StoreError, match="cannot be read"):
        build(recipe)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/leases").write_text("in the way of a folder")
    with pytest.raises(cumin.StoreError, match="cannot be written"):
        build(recipe, store=tmp_path / "other")


@pytest.mark.parametrize("how", ["missing", "short"])
@pytest.mark.parametrize("which", ["whole", "by partition"])
def test_a_hit_whose_files_are_damaged_is_built_again(recipe: dict[str, Any], tmp_path: Path, how: str, which: str) -> None:
    if which == "by partition":
        recipe |= {"lookback": {}}
    first = build(recipe)
    path = Path(first.files()[0])
    whole = path.read_bytes()
    path.chmod(0o644)
    path.unlink() if how == "missing" else path.write_bytes(whole[:-10])
    again = build(recipe)
    assert (again.content_id, again.hit) == (first.content_id, False)
    assert path.read_bytes() == whole
    assert verify(Store(recipe["store"]), None, level="bytes") == []
    assert build(recipe).hit


@pytest.mark.parametrize("value", ["not a date", ["2026-01-05", "not a date"]])
def test_a_parameter_of_the_wrong_type_is_named(recipe: dict[str, Any], value: Any) -> None:
    test = ">= :since" if isinstance(value, str) else "IN :since"
    sql = f"SELECT dt, user_id, count(*) AS n FROM lake.events WHERE dt {test} GROUP BY dt, user_id"
    with pytest.raises(cumin.ParameterError, match="'since' is the text 'not a date'"):
        build(recipe, sql=sql, params={"since": value})
    assert list(Store(recipe["store"]).builds()) == []


def test_an_input_that_goes_away_while_it_is_read_is_named(
    recipe: dict[str, Any], lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lake / f"events/dt={FIRST_DAY + timedelta(5)}/part-0.parquet"
    check = FileTable.check

    def checked(table: FileTable, parts: Any) -> None:
        check(table, parts)
        path.unlink()

    monkeypatch.setattr(FileTable, "check", checked)
    with pytest.raises(cumin.InputMovedError, match=r"dt=2026-01-06/part-0\.parquet"):
        build(recipe)


def test_an_unreadable_input_file_is_named(recipe: dict[str, Any], lake: Path) -> None:
    path = lake / f"events/dt={FIRST_DAY}/part-0.parquet"
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(cumin.InputError, match=r"part-0.parquet cannot be read as parquet"):
        build(recipe)


@pytest.mark.parametrize("engine_reads", ["itself", "through Arrow"])
def test_a_later_file_that_lacks_a_column_is_named(tmp_path: Path, engine_reads: str) -> None:
    root = tmp_path / ("lake" if engine_reads == "itself" else "x=1")  # DuckDB reads no path with a foreign name=value
    for value, columns in ((1, {"a": [1], "b": [2]}), (2, {"A": [5]}), (3, {"b": [1], "a": [2], "more": [3]})):
        (root / f"t/p={value}").mkdir(parents=True)
        pq.write_table(pa.table(columns), root / f"t/p={value}/f.parquet")
    values: dict[str, Any] = {"inputs": {"t": cumin.hive(root / "t", partition="p", key="a")}, "store": tmp_path / "store"}
    for sql in ("SELECT a, b FROM t", "SELECT a, row_number() OVER (ORDER BY a) AS n FROM t"):
        with pytest.raises(
            cumin.InputError, match=r"p=2/f.parquet lacks b, which the table's first file .*p=1/f.parquet has"
        ):
            cumin.build("x", sql=sql, **values)
    assert cumin.build("x", sql="SELECT a, b FROM t WHERE p <> 2", **values).to_table().num_rows == 2


def test_an_input_file_that_vanishes_before_it_is_read_is_named(recipe: dict[str, Any], lake: Path) -> None:
    path = lake / f"events/dt={FIRST_DAY + timedelta(5)}/part-0.parquet"

    def vanish(point: str) -> None:
        if point == "planned":
            path.unlink()

    with pytest.raises(cumin.InputError, match=r"dt=2026-01-06/part-0.parquet cannot be read"):
        cumin.build("clicks", **{**recipe, "store": Store(recipe["store"], reach=vanish)})
    assert list(Store(recipe["store"]).builds()) == []


def test_types_of_partitions_can_be_fixed(tmp_path: Path) -> None:
    for value in ("1", "2"):
        (tmp_path / f"t/p={value}").mkdir(parents=True)
        pq.write_table(pa.table({"a": [int(value)]}), tmp_path / f"t/p={value}/x.parquet")
    for kind, wanted in ((None, pa.int64()), ("string", pa.string())):
        made = cumin.plan("x", sql="SELECT * FROM t", inputs={"t": cumin.hive(tmp_path / "t", partition={"p": kind})})
        assert made.schema.field("p").type == wanted
    with pytest.raises(cumin.RecipeError, match="is no date32"):
        cumin.plan("x", sql="SELECT * FROM t WHERE p = DATE '2026-01-01'",
                   inputs={"t": cumin.hive(tmp_path / "t", partition={"p": "date"})})  # fmt: skip
