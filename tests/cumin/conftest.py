"""What every test of cumin gets: a lake of small tables, a store of its own, and a check that nothing is left."""

import threading
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings

# How fast a busy machine is decides no test.
settings.register_profile("cumin", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cumin")

FIRST_DAY = date(2026, 1, 1)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Digest cache and default store in the test's own folder; afterwards no thread of cumin's, no staging folder."""
    monkeypatch.setenv("CUMIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUMIN_STORE", str(tmp_path / "default-store"))
    yield
    assert [each.name for each in threading.enumerate() if each.name.startswith("cumin")] == []
    assert [each for each in tmp_path.glob("*/staging/*") if not each.name.startswith("left-by-a-crash")] == []


def make_day(root: Path, day: int, rows: int = 40, *, seed: int | None = None) -> Path:
    """One day's partition of an events table; the same seed gives the same rows."""
    rng = np.random.default_rng(day if seed is None else seed)
    folder = root / f"dt={FIRST_DAY + timedelta(day)}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "part-0.parquet"
    table = pa.table(
        {
            "event_id": np.arange(rows) + day * 1_000_000,
            "user_id": rng.integers(0, 10, rows),
            "item_id": rng.integers(0, 5, rows),
            "amount": rng.random(rows),
        }
    )
    pq.write_table(table, path)
    return path


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """`events`, ten days partitioned by dt, and `users.parquet`."""
    root = tmp_path / "lake"
    for day in range(10):
        make_day(root / "events", day)
    users = pa.table({"user_id": np.arange(10), "country": ["jp", "kr"] * 5})
    pq.write_table(users, root / "users.parquet")
    return root


@pytest.fixture
def recipe(lake: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of `cumin.build` for a small grouped dataset over the lake."""
    import cumin

    return {
        "sql": "SELECT dt, user_id, count(*) AS n FROM lake.events WHERE dt >= :since GROUP BY dt, user_id",
        "params": {"since": FIRST_DAY + timedelta(3)},
        "inputs": {"lake.events": cumin.hive(lake / "events", partition="dt")},
        "partition_by": "dt",
        "order_key": ["user_id"],
        "store": tmp_path / "store",
    }


@pytest.fixture
def write_day() -> Callable[..., Path]:
    """`make_day`: writes a day's partition, over one that is there."""
    return make_day
