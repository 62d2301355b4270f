"""The job that every system is measured on: MovieLens ratings from Parquet into the training of a Factorization Machine.

What is shared stands here, so that the systems differ in how batches travel and in nothing else: the files, the
preprocessing with its adjustable weight, the trainer and its clock.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH = 4_096  # rows
GROUP = 8 * BATCH  # rows of a file; every file is one row group


@dataclass(frozen=True)
class Job:
    """One measurement's settings, the same for every system."""

    folder: Path  # of Parquet files
    weight: int  # rounds of extra work per batch
    workers: int  # preprocessing processes, beside one trainer

    @classmethod
    def from_arguments(cls) -> Job:
        """As the command line of an adapter gives it."""
        options = argparse.ArgumentParser()
        options.add_argument("folder", type=Path)
        options.add_argument("--weight", type=int, default=1)
        options.add_argument("--workers", type=int, default=2)
        chosen = options.parse_args()
        return cls(chosen.folder, chosen.weight, chosen.workers)

    def files(self) -> list[str]:
        """The input, one row group each."""
        return sorted(map(str, self.folder.glob("*.parquet")))


def make_input(source: Path, folder: Path, rows: int) -> None:
    """Writes about `rows` ratings (whole files only): those of `source`, repeated, in a fixed random order."""
    ratings = pq.read_table(source)
    files = max(1, rows // GROUP)
    order = np.random.default_rng(0).permutation(files * GROUP) % ratings.num_rows
    folder.mkdir(parents=True)
    for number in range(files):
        part = ratings.take(order[number * GROUP : (number + 1) * GROUP])
        pq.write_table(part, folder / f"part-{number:04}.parquet", row_group_size=GROUP)
    (folder / "checksum.json").write_text(json.dumps({"rows": len(order), "checksum": checksum(ratings.take(order))}))


def checksum(batch: Any) -> int:
    """The same for the same rows in any order."""
    return int(np.dot(np.asarray(batch["user_id"], np.int64), np.asarray(batch["item_id"], np.int64)))


def read(file: str) -> Iterator[pa.RecordBatch]:
    """The batches of one file."""
    return pq.ParquetFile(file).iter_batches(BATCH, use_threads=False)


def prepare(batch: pa.RecordBatch, weight: int) -> dict[str, np.ndarray]:
    """The demo's preprocessing, and `weight` rounds of mixing each row's ids into a hash (some 10 us a round)."""
    from features import preprocess

    prepared = preprocess(batch)
    user, item = (prepared[name].astype(np.uint32) for name in ("user_id", "item_id"))
    mixed = user ^ (item << np.uint32(16))
    for _ in range(weight):
        np.multiply(mixed, np.uint32(0x85EBCA6B), out=mixed)
        mixed ^= mixed >> np.uint32(13)
        mixed += user
        mixed ^= item
    prepared["mixed"] = mixed.view(np.int32)
    return prepared


class Trainer:
    """Trains on a stream of prepared batches and measures what a user would feel."""

    def __init__(self) -> None:
        import torch
        from training import Training

        torch.set_num_threads(1)
        self._training = Training()
        self.report: dict[str, Any] = {}

    def train(self, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Rows, checksum, and seconds: until the first batch, from there to the end, of that waiting and stepping.

        The first batch's wait counts as start-up, not as waiting.
        """
        stream, waits, rows, total, mixed, stepping = iter(batches), [], 0, 0, 0, 0.0
        began = first = time.monotonic()
        asked = time.monotonic()
        for batch in stream:
            got = time.monotonic()
            if not rows:
                first = got
            else:
                waits.append(got - asked)
            loss = self._training.step(batch)
            rows += len(batch["rating"])
            total += checksum(batch)
            mixed ^= int(np.bitwise_xor.reduce(np.asarray(batch["mixed"])))
            asked = time.monotonic()
            stepping += asked - got
        end = time.monotonic()
        return {
            "rows": rows,
            "checksum": total,
            "mixed": mixed,
            "loss": loss,
            "startup_s": first - started(began),
            "stream_s": end - first,
            "wait_s": sum(waits),
            "wait_p95_ms": float(np.percentile(waits, 95)) * 1e3,
            "step_s": stepping,
        }


def started(default: float) -> float:
    """When the measuring process started this one, on the machine's monotonic clock."""
    return float(os.environ.get("BENCHMARK_STARTED", default))


def print_result(system: str, versions: Mapping[str, str], measured: Mapping[str, Any]) -> None:
    """The adapter's last line, read by the measuring process."""
    print("RESULT " + json.dumps({"system": system, "versions": dict(versions), **measured}), flush=True)
