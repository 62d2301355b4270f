"""One batch from one process to another on one host: what every transport adapter shares.

The sender has four arrays and sends them in turn, so that making them costs nothing; the receiver reads every 4,096th
byte. Which array came shows in its bytes: a transport that loses, repeats or spoils a batch is found out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

POOL = 4
PAGE = 4_096


def pool(size: int) -> list[np.ndarray]:
    """The arrays that are sent: of `size` bytes, filled with 1, 2, ..."""
    return [np.full(size, number + 1, np.uint8) for number in range(POOL)]


def send(size: int, count: int) -> Iterator[np.ndarray]:
    """`count` batches, the arrays of the pool in turn."""
    arrays = pool(size)
    return (arrays[number % POOL] for number in range(count))


def receive(batches: Iterable[Any], size: int, count: int, root: int) -> dict[str, float]:
    """Seconds from the first batch's arrival to the last one's, and CPU seconds of `root` and all below it meanwhile.

    Raises ValueError if what came is not what was sent, in any order.
    """
    seen = [0] * (POOL + 1)
    before, start = dict[int, int](), 0.0
    for batch in batches:
        if not start:
            before, start = tree_cpu(root), time.perf_counter()
        pages = np.asarray(batch)[::PAGE]
        value, touched = int(pages[0]), int(pages.sum(dtype=np.int64))
        if touched != value * len(pages) or len(batch) != size:
            raise ValueError(f"a batch of {len(batch)} bytes, {size} expected, or its bytes are not those of one array")
        seen[value] += 1
    seconds, cpu = time.perf_counter() - start, spent_since(before, root)
    wanted = [0, *(len(range(number, count, POOL)) for number in range(POOL))]
    if seen != wanted:
        raise ValueError(f"of the four arrays {seen[1:]} arrived, {wanted[1:]} were sent")
    return {"seconds": seconds, "cpu_s": cpu, "bytes": float(size * (count - 1)), "batches": float(count - 1)}


def measure_sizes(sizes: dict[int, int], one: Callable[[int, int], dict[str, float]]) -> dict[str, dict[str, float]]:
    """`one(size, count)` for each size, after a short run that is not counted."""
    first = next(iter(sizes))
    one(first, min(8, sizes[first]))
    return {str(size): one(size, count) for size, count in sizes.items()}


def sizes_from(arguments: list[str]) -> dict[int, int]:
    """`SIZE=COUNT ...` as the measuring process gives them."""
    return {int(size): int(count) for size, count in (word.split("=") for word in arguments)}


def tree_cpu(root: int) -> dict[int, int]:
    """Clock ticks of user and system time so far of a process and each of its descendants, by process id."""
    ticks, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended since
            parents[int(entry.name)] = int(fields[1])
            ticks[int(entry.name)] = int(fields[11]) + int(fields[12])
    return {pid: spent for pid, spent in ticks.items() if _is_below(root, pid, parents)}


def spent_since(before: dict[int, int], root: int) -> float:
    """CPU seconds that the processes which are there now have spent since then.

    One that ended meanwhile does not count: what its parent says of it covers its whole life.
    """
    ticks = sum(spent - before.get(pid, 0) for pid, spent in tree_cpu(root).items())
    return ticks / os.sysconf("SC_CLK_TCK")


def _is_below(root: int, pid: int, parents: dict[int, int]) -> bool:
    while pid != root and pid in parents:
        pid = parents[pid]
    return pid == root
