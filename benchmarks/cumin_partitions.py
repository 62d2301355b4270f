"""One of 365 daily partitions changed, under a 7-day look-back: what is built, and how long it takes.

    python benchmarks/cumin_partitions.py --rows 20000

Beside it: the whole built again by cumin, and the best case of a pipeline with one stage per day (DVC's foreach): the same
DuckDB query for each of the seven days, run by hand without any bookkeeping, which is a floor for DVC.
"""

import argparse
import os
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import cumin

DAYS, BACK = 365, 6
SQL = """
SELECT d.dt, e.user_id, count(*) AS n, sum(e.clicks) AS clicks FROM (SELECT DISTINCT dt FROM events) d
JOIN events e ON e.dt BETWEEN d.dt - 6 AND d.dt GROUP BY d.dt, e.user_id
"""


def day(root: Path, number: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder = root / f"events/dt={date(2025, 1, 1) + timedelta(number)}"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"user_id": rng.integers(0, 1000, rows), "clicks": rng.integers(0, 5, rows)})
    pq.write_table(table, folder / "part-0.parquet")


def seven_by_hand(root: Path, changed: int) -> None:
    connection = duckdb.connect()
    for number in range(changed, changed + BACK + 1):
        days = [date(2025, 1, 1) + timedelta(each) for each in range(number - BACK, number + 1)]
        files = [f"{root}/events/dt={each}/part-0.parquet" for each in days]
        connection.execute(
            f"COPY (SELECT user_id, count(*) n, sum(clicks) clicks FROM read_parquet({files}) GROUP BY ALL ORDER BY ALL) "
            f"TO '{root}/by-hand-{number}.parquet'"
        )
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number in range(DAYS):
            day(root, number, rows, number)
        values: dict[str, Any] = {
            "sql": SQL,
            "inputs": {"events": cumin.hive(root / "events", partition="dt")},
            "partition_by": "dt",
            "order_key": "user_id",
            "store": root / "store",
        }

        def build(label: str, **more: Any) -> tuple[float, cumin.Dataset]:
            started = time.perf_counter()
            ds = cumin.build(label, **values, **more)
            return time.perf_counter() - started, ds

        first, _ = build("rolling", lookback={"events": BACK})
        day(root, 200, rows, 9999)
        second, ds = build("rolling", lookback={"events": BACK})
        whole, other = build("whole")
        third, hit = build("rolling", lookback={"events": BACK})
        started = time.perf_counter()
        seven_by_hand(root, 200)
        floor = time.perf_counter() - started
        stats = ds.manifest["stats"]
        assert ds.content_id == other.content_id
        assert hit.hit
        print(f"{DAYS} days of {rows:,} rows, {BACK} days back, cache warm, load {os.getloadavg()[0]:.1f}")
        print(f"built {stats['partitions_built']}, reused {stats['partitions_reused']}; content equal to the whole rebuild")
        print("| what | s |\n|---|---|")
        print(f"| first build, all 365 | {first:.2f} |\n| one day changed: 7 partitions | {second:.2f} |")
        print(f"| whole rebuild | {whole:.2f} ({whole / second:.1f}x) |\n| nothing changed | {third:.2f} |")
        print(f"| the 7 days' queries alone, by hand (floor of one DVC stage a day) | {floor:.2f} |")


if __name__ == "__main__":
    main()
