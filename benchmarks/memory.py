"""Peak memory of all processes of a run together, and what it writes to disk, while a trainer is ten times too slow.

    python benchmarks/memory.py
    python benchmarks/memory.py --size 1M --credit 64M --batches 400

Two preprocessing ranks make batches; the loop takes ten times as long for one as they need. What credit costs is the peak
(proportional set size, so that shared memory counts once) above that of the same run with the least credit there is: one
byte, with which one batch at a time stands at each place. Aimed at is the credit and 10 %. Pages of files are left out:
libraries count for less while another program of the machine has them loaded too. Bytes written to disk are those of all
processes together (/proc/PID/io).
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ghee

SENDERS = 2


@dataclass
class Usage:
    """The highest sum of memory (own and shared, no files), and bytes written to disk, of this process and all below it."""

    peak: int = 0
    written: int = 0


class Watch:
    """Looks at the processes every few milliseconds, from a thread."""

    def __init__(self, every: float = 0.02) -> None:
        self._every, self._end = every, threading.Event()
        self._usage, self._written = Usage(), dict[int, int]()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Usage:
        self._before = _written(os.getpid())
        self._thread.start()
        return self._usage

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._usage.written = sum(self._written.values()) - self._before

    def _look(self) -> None:
        while not self._end.wait(self._every):
            pids = descendants(os.getpid())
            self._usage.peak = max(self._usage.peak, sum(map(_pss, pids)))
            for pid in pids:
                self._written[pid] = max(self._written.get(pid, 0), _written(pid))


def descendants(root: int) -> list[int]:
    """The process and all below it."""
    found = [root]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has ended meanwhile
                continue
    return found


def _pss(pid: int) -> int:
    return _fields(pid, "smaps_rollup", "Pss_Anon:", "Pss_Shmem:") * 1024


def _written(pid: int) -> int:
    return _fields(pid, "io", "write_bytes:")


def _fields(pid: int, file: str, *names: str) -> int:
    """The sum of what stands behind these names."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(names))


def run_slow_trainer(size: int, batches: int, credit: int, step: float) -> Usage:
    """Two ranks make batches of `size` bytes; the loop holds each for `step` seconds."""

    def make(batch: Any) -> Any:
        return {"x": np.full(size, batch["x"][0] % 251, dtype=np.uint8)}

    def train(batches: Any) -> int:
        seen = 0
        for batch in batches:
            time.sleep(step)  # the work of a device
            seen += int(batch["x"][-1]) * len(batch["x"])
        return seen

    numbers = ghee.read([{"x": np.array([number])} for number in range(batches)])
    pipeline = numbers.map(make, replicas=SENDERS, credit=credit).loop(train, credit=credit)
    with Watch() as usage:
        result = ghee.run(pipeline, progress=False).result
    wanted = size * sum(number % 251 for number in range(batches))
    if result != wanted:
        raise ValueError(f"the loop saw {result}, {wanted} were sent")
    return usage


def measure(size: int, batches: int, credit: int, step: float) -> tuple[Usage, Usage]:
    """The least that such a run takes, and what it takes with the credit."""
    return run_slow_trainer(size, batches, 1, step), run_slow_trainer(size, batches, credit, step)


def parse_size(text: str) -> int:
    """ "64M" is 64 million bytes."""
    return int(float(text.rstrip("kMG")) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1))


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="*", default=["1M", "64M"], help="bytes of a batch")
    parser.add_argument("--credit", nargs="*", default=["64M", "512M"], help="bytes of credit, one for each size")
    parser.add_argument("--batches", nargs="*", type=int, default=[400, 30])
    parser.add_argument("--step", nargs="*", type=float, default=[0.02, 0.5], help="seconds that the loop takes for a batch")
    arguments = parser.parse_args()
    print("batch | credit | least peak | peak | of the credit | written to disk")
    for size, credit, batches, step in zip(arguments.size, arguments.credit, arguments.batches, arguments.step, strict=True):
        given = parse_size(credit)
        least, most = measure(parse_size(size), batches, given, step)
        share = (most.peak - least.peak) / given
        print(
            f"{size:>5} | {credit:>6} | {least.peak / 1e6:6.0f} MB | {most.peak / 1e6:6.0f} MB | {share:6.0%} | "
            f"{most.written / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
