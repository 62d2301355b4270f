"""What the content id costs while Parquet is written: cumin's writer with and without it, in one run.

    python benchmarks/cumin_content_id.py --rows 20000000

Two tables: four columns of fixed width, and the same with a string of about ten bytes. "pyarrow" is ParquetWriter alone
with the same settings; wall time and processor time are both given, because the sum is taken in a second thread.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cumin.content import RowSum
from cumin.layout import Layout, Target
from cumin.units import UnitWriter

GROUP = Layout().rows_per_group


def tables(rows: int) -> dict[str, pa.Table]:
    rng = np.random.default_rng(0)
    micros = rng.integers(1_700_000_000_000_000, 1_710_000_000_000_000, rows)
    fixed = pa.table(
        {
            "user_id": rng.integers(0, 1_000_000, rows),
            "item_id": rng.integers(0, 50_000, rows).astype("int32"),
            "score": rng.random(rows),
            "at": pa.array(micros).cast(pa.timestamp("us")),
        }
    )
    names = pa.array([f"user-{each}" for each in range(1_000_000)])
    text = names.take(pa.array(fixed["user_id"].to_numpy()))
    return {"4 fixed": fixed, "4 fixed, 1 string": fixed.append_column("name", text)}


def plain(table: pa.Table, folder: Path) -> None:
    with pq.ParquetWriter(folder / "plain.parquet", table.schema, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, table.num_rows, GROUP):
            writer.write_table(table.slice(start, GROUP), row_group_size=GROUP)


def summed(table: pa.Table, folder: Path) -> None:
    for old in folder.glob("*.parquet"):
        old.unlink()
    writer = UnitWriter("", table.schema, Target(folder))
    for batch in table.to_batches(max_chunksize=GROUP):
        writer.add(batch)
    writer.close()


def only_sum(table: pa.Table, folder: Path) -> None:
    total = RowSum()
    for batch in table.to_batches(max_chunksize=GROUP):
        total.update(batch)


def measure(table: pa.Table) -> list[tuple[float, float]]:
    """Wall and processor seconds of each way, medians of three interleaved passes."""
    ways: tuple[Callable[[pa.Table, Path], None], ...] = (plain, summed, only_sum)
    found: list[list[tuple[float, float]]] = [[] for _ in ways]
    for _ in range(3):
        for times, way in zip(found, ways, strict=True):
            with tempfile.TemporaryDirectory() as name:
                wall, cpu = time.perf_counter(), time.process_time()
                way(table, Path(name))
                times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [(statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times)) for times in found]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000_000)
    rows = parser.parse_args().rows
    print(f"{rows:,} rows, zstd, median of 3 interleaved, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("| table | pyarrow alone, wall / cpu s | with ids, wall / cpu s | more wall | more cpu | sum, M rows/s |")
    print("|---|---|---|---|---|---|")
    for name, table in tables(rows).items():
        base, ours, alone = measure(table)
        print(
            f"| {name} | {base[0]:.2f} / {base[1]:.2f} | {ours[0]:.2f} / {ours[1]:.2f} | {ours[0] / base[0] - 1:+.0%} | "
            f"{ours[1] / base[1] - 1:+.0%} | {rows / alone[1] / 1e6:.1f} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
