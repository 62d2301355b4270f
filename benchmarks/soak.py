"""Kills ranks at random while they run, over many runs, and counts rows that were lost or seen twice: `python soak.py 200`.

Two stages of map ranks feed a loop of two ranks and a sink; ranks of the reading and the map stage are killed with SIGKILL
at random moments, from their start to their end. Every run must end well with every row once in every epoch.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import ghee

ROWS, FILES, EPOCHS = 20_000, 3, 2


def first(batch: Any) -> dict[str, Any]:
    """Takes a moment, so that a kill finds it at work."""
    time.sleep(0.002)
    return {"id": batch["id"].to_numpy(), "more": np.zeros((batch.num_rows, 32))}


def second(batch: dict[str, Any]) -> Any:
    """Two batches of one."""
    half = len(batch["id"]) // 2
    yield {"id": batch["id"][:half], "more": batch["more"][:half]}
    yield {"id": batch["id"][half:], "more": batch["more"][half:]}


def loop(batches: Any) -> list[np.ndarray]:
    """The ids of every epoch."""
    return [np.concatenate([batch["id"] for batch in epoch] or [np.array([], int)]) for epoch in batches.epochs()]


def ranks_of(stages: tuple[str, ...]) -> list[int]:
    """The processes of the run's ranks in these stages, by what /proc says of them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = (entry / "environ").read_bytes()
            except OSError:
                continue
            ours = f"GHEE_SOAK={os.getpid()}".encode() in parent
            if ours and b"ghee.launch.process" in words and b"PMI_RANK=" in parent:
                name = words[words.index(b"ghee.launch.process") + 2].decode()
                found += [int(entry.name)] if name in stages else []
    return found


class Killer(threading.Thread):
    """Kills a random rank every now and then until it is stopped."""

    def __init__(self, most: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.kills, self._most, self._random, self._end = 0, most, random.Random(seed), threading.Event()

    def run(self) -> None:
        """Wait, choose, kill."""
        while self.kills < self._most and not self._end.wait(self._random.uniform(0.05, 0.8)):
            victims = ranks_of(("first", "second"))
            if victims:
                try:
                    os.kill(self._random.choice(victims), signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:
                    pass

    def stop(self) -> None:
        """No more kills."""
        self._end.set()
        self.join()


def one_run(folder: Path, kills: int, seed: int) -> tuple[int, int, int]:
    """One run under fire: kills made, rows lost, rows seen twice."""
    killer = Killer(kills, seed)
    killer.start()
    written: list[Any] = []
    ready = ghee.read(str(folder), batch_size=500, epochs=EPOCHS).map(first, replicas=2).map(second, replicas=2)
    pipeline = ghee.branches(ready.loop(loop, replicas=2, tail="pad"), ready.write(written))
    try:
        run = ghee.run(pipeline, retries=1000, progress=False)
    finally:
        killer.stop()
    lost = twice = 0
    for epoch in range(EPOCHS):
        seen = Counter(np.concatenate([rank[epoch] for rank in run.results["loop"]]).tolist())
        lost += ROWS * FILES - len(seen)
        twice += sum(count - 1 for count in seen.values())
    out = Counter(np.concatenate([batch["id"] for batch in written]).tolist())
    lost += ROWS * FILES - len(out)
    twice += sum(abs(count - EPOCHS) for count in out.values())
    return killer.kills, lost, twice


def main() -> int:
    """Run until as many kills were made as were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--each", type=int, default=12, help="kills in one run, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["GHEE_SOAK"] = str(os.getpid())
    total = [0, 0, 0]
    runs = 0
    with tempfile.TemporaryDirectory() as name:
        for number in range(FILES):
            ids = np.arange(number * ROWS, (number + 1) * ROWS)
            pq.write_table(pa.table({"id": ids}), Path(name, f"{number}.parquet"), row_group_size=3000)
        while total[0] < arguments.kills:
            seed = arguments.seed + runs
            made = one_run(Path(name), min(arguments.each, arguments.kills - total[0]), seed)
            total = [a + b for a, b in zip(total, made, strict=True)]
            runs += 1
            print(f"run {runs} (seed {seed}): {made[0]} kills, {made[1]} rows lost, {made[2]} twice", flush=True)
    print(f"{runs} runs, {total[0]} kills: {total[1]} rows lost, {total[2]} seen twice")
    return 1 if total[1] or total[2] else 0


if __name__ == "__main__":
    sys.exit(main())
