"""What a shuffled read costs beside one in order, and how well it mixes: one process, local Parquet files sorted by class.

    python benchmarks/shuffle.py [--files 16] [--rows 200000] [--group 200000] [--columns 8] [--repeats 3]

Prints for each buffer: seconds (the least of the repeats), times the read in order, mean of classes in a batch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ghee.io.opening import open_source

BATCH = 4096


def write(folder: Path, files: int, rows: int, group: int, columns: int) -> None:
    """Files of one class each, of random float64."""
    random = np.random.default_rng(0)
    for number in range(files):
        table = {"class": np.full(rows, number)} | {f"x{c}": random.random(rows) for c in range(columns)}
        pq.write_table(pa.table(table), folder / f"{number:03}.parquet", row_group_size=group, use_dictionary=False)


def read(folder: Path, **options: Any) -> tuple[float, float]:
    """Seconds of an epoch from the listing on, and the mean of classes in a batch."""
    began, classes = time.perf_counter(), []
    source = open_source(folder, batch_size=BATCH, **options)
    for split in source.order(source.splits(), 0):
        classes += [batch["class"] for batch in source.read(split, epoch=0)]
    return time.perf_counter() - began, float(np.mean([len(np.unique(column)) for column in classes]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("files", 16), ("rows", 200_000), ("group", 200_000), ("columns", 8), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.files, given.rows, given.group, given.columns)
        in_order = 0.0
        for said, options in (
            ("in order", {}),
            ("shuffle=1", {"shuffle": 1}),
            ("shuffle_buffer=200_000", {"shuffle": 1, "shuffle_buffer": 200_000}),
            ("shuffle_buffer=1_000_000", {"shuffle": 1, "shuffle_buffer": 1_000_000}),
        ):
            runs = [read(Path(folder), **options) for _ in range(given.repeats)]
            seconds = min(seconds for seconds, _ in runs)
            in_order = in_order or seconds
            print(f"{said:26} {seconds:6.2f} s  {seconds / in_order:5.2f} x  {runs[0][1]:5.1f} of {given.files} classes")


if __name__ == "__main__":
    main()
