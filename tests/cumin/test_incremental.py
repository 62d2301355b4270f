"""Datasets that are built partition by partition."""

import io
import re
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cumin
from cumin.partitions import NULL_PARTITION
from cumin.windows import Windows

FIRST_DAY = date(2026, 1, 1)
WriteDay = Callable[..., Path]


def build(recipe: dict[str, Any], **more: Any) -> cumin.Dataset:
    return cumin.build("clicks", **{**recipe, **more})


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


@pytest.mark.parametrize(
    ("partitions", "message"),
    [
        (("x", "y"), "names 'x', and 'dt' is of the type date"),
        ((1, 2), "names 1, a int, and 'dt' is of the type date"),
        (("2026-01-05", "2026-01-03"), "this one is empty"),
        (("2027-01-01",), "names no partition that the query reads. There: from 2026-01-01 to 2026-01-10"),
    ],
)
def test_partitions_that_are_none_are_refused(rolling: dict[str, Any], partitions: Any, message: str) -> None:
    with pytest.raises(cumin.ConfigError, match=re.escape(message)):
        build(rolling, partitions=partitions)
    assert build(rolling, partitions=("2026-01-03",)).partitions == ["dt=2026-01-03"]  # as text, from a command or YAML


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


def lake_of(root: Path, values: dict[str, int], column: str = "dt") -> Path:
    for name, value in values.items():
        (folder := root / f"{column}={name}").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"v": [value]}), folder / "a.parquet")
    return root


WEEK = """SELECT d.dt, sum(e.v) AS week FROM (SELECT DISTINCT dt FROM events) AS d
JOIN events AS e ON e.dt BETWEEN d.dt - 6 AND d.dt GROUP BY d.dt"""


@pytest.mark.parametrize("back", [6, timedelta(days=6), "6 days"])
def test_dates_without_hyphens_look_back_in_days(tmp_path: Path, back: Any) -> None:
    days = [f"{date(2026, 1, 25) + timedelta(each):%Y%m%d}" for each in range(15)]
    root = lake_of(tmp_path / "lake", dict.fromkeys(days, 1))
    values: dict[str, Any] = {
        "sql": WEEK,
        "inputs": {"events": cumin.hive(root, partition={"dt": "%Y%m%d"})},
        "partition_by": "dt",
    }
    first = cumin.build("week", **values, lookback={"events": back}, store=tmp_path / "store")
    assert first.manifest["recipe"]["lookback"] == {"events": 6 if back == 6 else "6 days"}
    lake_of(root, {"20260131": 100})  # late
    second = cumin.build("week", **values, lookback={"events": back}, store=tmp_path / "store")
    assert second.manifest["stats"]["partitions_built"] == 7
    assert second.content_id == cumin.build("week", **values, store=tmp_path / "other").content_id
    weeks = {row["dt"]: row["week"] for row in second.to_table().to_pylist()}
    assert weeks[date(2026, 2, 6)] == 106
    assert weeks[date(2026, 2, 7)] == 7


@pytest.mark.parametrize("values", [["20260131", "20260201"], ["202512", "202601"], ["2026013123", "2026020100"]])
def test_whole_numbers_that_look_like_dates_have_no_look_back(tmp_path: Path, values: list[str]) -> None:
    root = lake_of(tmp_path / "lake", dict.fromkeys(values, 1))
    recipe: dict[str, Any] = {"sql": "SELECT dt, v FROM t", "partition_by": "dt",
                              "inputs": {"t": cumin.hive(root, partition="dt")}, "store": tmp_path / "store"}  # fmt: skip
    with pytest.raises(cumin.ConfigError, match=r'look like dates, .*partition=\{"dt": "%Y%m%d"\}'):
        cumin.build("x", **recipe, lookback={"t": 1})
    with pytest.raises(cumin.ConfigError, match="is in days, and 'dt' is of the type int"):
        cumin.build("x", **recipe, lookback={"t": timedelta(days=1)})
    assert cumin.build("x", **recipe, lookback={}).rows == 2  # nothing is counted back


def test_months_look_back_by_a_time_only(tmp_path: Path) -> None:
    root = lake_of(tmp_path / "lake", {"202511": 1, "202512": 2, "202601": 3})
    recipe: dict[str, Any] = {"sql": "SELECT dt, v FROM t", "inputs": {"t": cumin.hive(root, partition={"dt": "%Y%m"})},
                              "partition_by": "dt", "store": tmp_path / "store"}  # fmt: skip
    with pytest.raises(cumin.ConfigError, match=r"has no days: give a time, timedelta\(days=31\)"):
        cumin.build("x", **recipe, lookback={"t": 1})
    made = cumin.build("x", **recipe, lookback={"t": timedelta(days=31)})
    assert made.to_table().to_pylist() == [
        {"dt": day, "v": value} for day, value in ((date(2025, 11, 1), 1), (date(2025, 12, 1), 2), (date(2026, 1, 1), 3))
    ]


def test_partitions_by_written_dates_are_left_out_and_named_by_their_values(tmp_path: Path) -> None:
    root = lake_of(tmp_path / "lake", {"20260101": 1, "20260102": 2})
    inputs = {"t": cumin.hive(root, partition={"dt": "%Y%m%d"})}
    plan = cumin.plan("x", sql="SELECT v FROM t WHERE dt = DATE '2026-01-02'", inputs=inputs)
    assert list(plan.state["t"]) == ["dt=20260102"]
    (root / "dt=2026-01-03").mkdir()
    with pytest.raises(cumin.InputError, match="'2026-01-03' is no date written as %Y%m%d"):
        cumin.plan("x", sql="SELECT v, dt FROM t", inputs=inputs)
    with pytest.raises(cumin.ConfigError, match="or how a date is written"):
        cumin.hive(root, partition={"dt": "%y%m"})


def test_rows_of_a_partition_that_no_input_has_are_not_lost(tmp_path: Path) -> None:
    root = lake_of(tmp_path / "lake", {f"2026-01-0{day}": day for day in range(1, 6)})
    inputs = {"t": cumin.hive(root, partition="dt")}
    values: dict[str, Any] = {"sql": "SELECT CAST(dt + 1 AS DATE) AS dt, v FROM t", "inputs": inputs, "partition_by": "dt",
                              "store": tmp_path / "store"}  # fmt: skip
    assert cumin.build("x", **values).rows == 5
    with pytest.raises(cumin.NotPartitionLocalError, match="rows of dt=2026-01-06, and no input has that partition"):
        cumin.build("x", **values, lookback={"t": 1})
    within = {**values, "sql": values["sql"] + " WHERE dt < DATE '2026-01-05' OR dt IS NULL AND v > 9"}
    assert cumin.build("x", **within, lookback={"t": 1}, partitions=("2026-01-02", "2026-01-04")).rows == 3


def test_numbers_written_with_zeros_are_partitions_of_their_value(tmp_path: Path) -> None:
    root = lake_of(tmp_path / "lake", {"001": 1, "002": 2}, "n")
    inputs = {"t": cumin.hive(root, partition={"n": "int"})}
    made = cumin.build("x", sql="SELECT n, v FROM t", inputs=inputs, partition_by="n", lookback={"t": 0},
                       store=tmp_path / "store")  # fmt: skip
    assert made.to_table().to_pylist() == [{"n": 1, "v": 1}, {"n": 2, "v": 2}]


def test_one_new_day_reads_twice_its_window_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rolling: dict[str, Any], lake: Path, write_day: WriteDay
) -> None:
    from cumin.engines.duckdb_engine import DuckDB

    build(rolling)
    write_day(lake / "events", 10)
    read: list[int] = []
    run = DuckDB.run

    def counted(self: DuckDB, sql: str, relations: Any, *rest: Any) -> Any:
        read.append(len(relations["lake.events"].files))
        return run(self, sql, relations, *rest)

    monkeypatch.setattr(DuckDB, "run", counted)
    build(rolling)
    assert read == [3, 5]  # its own and two before; and for the probe also those of the two before it


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
