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
