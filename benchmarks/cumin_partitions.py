"""One of 365 daily partitions changed, under a 7-day look-back: what is built, and how long it takes.

    python benchmarks/cumin_partitions.py --rows 20000 [--dvc]

Beside it: the whole built again by cumin; the same DuckDB query for each of the seven days without any bookkeeping; and with
`--dvc` DVC's best case, a pipeline of one stage a day with the days that it reads as dependencies. DVC is a command, so
`cumin build` is timed as one too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import harness
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


def window(changed: int) -> list[str]:
    days = [date(2025, 1, 1) + timedelta(each) for each in range(max(0, changed - BACK), changed + 1)]
    return [f"events/dt={each}" for each in days]


def by_hand(root: Path, numbers: range) -> None:
    connection = duckdb.connect()
    for number in numbers:
        connection.execute(day_query(root, number))
    connection.close()


def day_query(root: Path, number: int) -> str:
    files = [f"{root}/{folder}/part-0.parquet" for folder in window(number)]
    return (
        f"COPY (SELECT user_id, count(*) n, sum(clicks) clicks FROM read_parquet({files}) GROUP BY ALL ORDER BY ALL) "
        f"TO '{root}/by-hand-{number}.parquet'"
    )


def run(root: Path, *command: object) -> float:
    """Seconds that a command takes, from its start to its end."""
    started = time.perf_counter()
    done = subprocess.run(list(map(str, command)), cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.perf_counter() - started


def dvc_repro(root: Path, change: Callable[[], None]) -> tuple[float, float, int]:
    """DVC's best case: one stage a day, each with its seven days as dependencies. Seconds of `dvc repro` after one day
    changed and with nothing changed, and the stages it ran. What stood before is taken in by `dvc commit`, not run."""
    dvc = harness.environment("dvc").with_name("dvc")
    by_hand(root, range(DAYS))
    # The command is as small as one can be: Python with DuckDB alone.
    (root / "day.py").write_text("import sys, duckdb; duckdb.execute(open(sys.argv[1]).read())")
    stages = {}
    for number in range(DAYS):
        (root / f"day-{number}.sql").write_text(day_query(root, number))
        stages[f"day-{number}"] = {
            "cmd": f"{sys.executable} day.py day-{number}.sql",
            "deps": [f"day-{number}.sql", *window(number)],
            "outs": [f"by-hand-{number}.parquet"],
        }
    (root / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    run(root, "git", "init", "-q")
    run(root, dvc, "init", "-q")
    run(root, dvc, "config", "core.autostage", "false")
    run(root, dvc, "commit", "-f", "-q")
    nothing = run(root, dvc, "repro", "-q")
    before = {each: each.stat().st_mtime_ns for each in root.glob("by-hand-*.parquet")}
    change()
    changed = run(root, dvc, "repro", "-q")
    ran = sum(each.stat().st_mtime_ns != before[each] for each in root.glob("by-hand-*.parquet"))
    return changed, nothing, ran


def as_command(root: Path, change: Callable[[], None]) -> tuple[float, float]:
    """Seconds of `cumin build` as a command after one day changed, and with nothing changed."""
    inputs = {"events": {"kind": "hive", "root": "events", "partition": "dt"}}
    described = {"name": "rolling", "sql": SQL, "inputs": inputs, "partition_by": "dt", "order_key": "user_id"}
    (root / "rolling.yaml").write_text(json.dumps({**described, "lookback": {"events": BACK}, "store": "store"}))
    command = (sys.executable, "-m", "cumin.cli", "build", "rolling.yaml")
    change()
    return run(root, *command), run(root, *command)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dvc", action="store_true", help="run DVC beside it (a minute or two more)")
    arguments = parser.parse_args()
    rows = arguments.rows
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
        by_hand(root, range(200, 200 + BACK + 1))
        floor = time.perf_counter() - started
        command = as_command(root, lambda: day(root, 200, rows, 9998))
        stats = ds.manifest["stats"]
        assert ds.content_id == other.content_id
        assert hit.hit
        print(f"{DAYS} days of {rows:,} rows, {BACK} days back, cache warm, load {os.getloadavg()[0]:.1f}")
        print(f"built {stats['partitions_built']}, reused {stats['partitions_reused']}; content equal to the whole rebuild")
        print("| what | s |\n|---|---|")
        print(f"| first build, all 365 | {first:.2f} |\n| one day changed: 7 partitions | {second:.2f} |")
        print(f"| whole rebuild | {whole:.2f} ({whole / second:.1f}x) |\n| nothing changed | {third:.2f} |")
        print(f"| the 7 days' queries alone, by hand (floor of one DVC stage a day) | {floor:.2f} |")
        print("| `cumin build` as a command: one day changed, nothing changed |", end=" ")
        print(f"{command[0]:.2f}, {command[1]:.2f} |", flush=True)
        if arguments.dvc:
            changed, nothing, ran = dvc_repro(root, lambda: day(root, 200, rows, 9997))
            print(f"| `dvc repro`, one stage a day: one day changed ({ran} stages ran), nothing changed |", end=" ")
            print(f"{changed:.2f}, {nothing:.2f} |")


if __name__ == "__main__":
    main()
