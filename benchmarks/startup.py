"""Seconds from `ghee.run()` to a loop's first batch, and from one epoch's last batch to the next one's first.

    python benchmarks/startup.py
    python benchmarks/startup.py --repeats 10

The functions import nothing of their own: what is measured is ghee's start (processes, MPI, joining) with the imports that
it needs itself. The pipeline is read and map in one rank, then a loop; the first repeat, which fills the disk's cache, is
not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import ghee

BATCHES, EPOCHS = 20, 4


def same(batch: Any) -> Any:
    """Does nothing."""
    return batch


def loop(batches: Any) -> tuple[float, list[float]]:
    """When the first batch came, and the seconds between epochs."""
    first, last, between = 0.0, 0.0, []
    for epoch in batches.epochs():
        for number, _ in enumerate(epoch):
            now = time.time()
            first = first or now
            if last and number == 0:
                between.append(now - last)
            last = now
    return first, between


def main() -> None:
    """Measure and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    starts, edges = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "numbers.parquet")
        pq.write_table(pa.table({"n": range(BATCHES * 100)}), path)
        for _ in range(arguments.repeats + 1):
            began = time.time()
            pipeline = ghee.read(str(path), batch_size=100, epochs=EPOCHS).map(same).loop(loop)
            first, between = ghee.run(pipeline, progress=False).result
            starts.append(first - began)
            edges += between
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {arguments.repeats} repeats")
    median, least, most = statistics.median(starts[1:]), min(starts[1:]), max(starts[1:])
    print(f"run() to first batch: median {median:.3f} s, of {least:.3f} to {most:.3f}")
    print(f"last batch of an epoch to first of the next: median {1000 * statistics.median(edges):.2f} ms, at most "
          f"{1000 * max(edges):.2f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
