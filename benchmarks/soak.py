"""Kills ranks at random while they run, over many runs, and counts rows that were lost or seen twice: `python soak.py 200`.

Two stages of map ranks feed a loop of two ranks, which makes checkpoints, and a sink of files; ranks of every stage are
killed with SIGKILL at random moments, from their start to their end. Every run must end well with every row once in every
epoch. (`--stages first second` kills ranks of these only.)
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


def ids(batch: dict[str, Any]) -> Any:
    """What is written."""
    return pa.record_batch({"id": batch["id"]})


def loop(batches: Any) -> list[np.ndarray]:
    """The ids of every epoch; goes on from its last checkpoint."""
    seen: list[list[np.ndarray]] = ghee.restored() or [[np.array([], int)] for _ in range(EPOCHS)]
    for epoch in batches.epochs():
        for batch in epoch:
            seen[epoch.number].append(batch["id"])
            if len(seen[epoch.number]) % 10 == 0:
                ghee.checkpoint(seen)
    return [np.concatenate(of_epoch) for of_epoch in seen]


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

    def __init__(self, stages: tuple[str, ...], most: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._stages = stages
        self.kills, self._most, self._random, self._end = 0, most, random.Random(seed), threading.Event()

    def run(self) -> None:
        """Wait, choose, kill."""
        while self.kills < self._most and not self._end.wait(self._random.uniform(0.05, 0.8)):
            victims = ranks_of(self._stages)
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


def one_run(folder: Path, out: str, stages: tuple[str, ...], kills: int, seed: int) -> tuple[int, int, int, int]:
    """One run under fire: kills made, rows lost, rows seen twice, and how often the whole run was begun again."""
    killer = Killer(stages, kills, seed)
    killer.start()
    ready = ghee.read(str(folder), batch_size=500, epochs=EPOCHS).map(first, replicas=2).map(second, replicas=2)
    pipeline = ghee.branches(ready.loop(loop, replicas=2, tail="pad"), ready.map(ids).write(out, mode="overwrite"))
    try:
        run = ghee.run(pipeline, retries=1000, progress=False)
    finally:
        killer.stop()
    lost = twice = 0
    for epoch in range(EPOCHS):
        seen = Counter(np.concatenate([rank[epoch] for rank in run.results["loop"]]).tolist())
        lost += ROWS * FILES - len(seen)
        twice += sum(count - 1 for count in seen.values())
    written = Counter(pq.read_table(out)["id"].to_pylist())
    lost += ROWS * FILES - len(written)
    twice += sum(abs(count - EPOCHS) for count in written.values())
    return killer.kills, lost, twice, sum("begun again" in reason for reason in run.report.restarts)


def main() -> int:
    """Run until as many kills were made as were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--each", type=int, default=12, help="kills in one run, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=["first", "second", "ids", "loop", "write"])
    arguments = parser.parse_args()
    os.environ["GHEE_SOAK"] = str(os.getpid())
    total = [0, 0, 0, 0]
    runs = 0
    with tempfile.TemporaryDirectory() as name:
        for number in range(FILES):
            table = pa.table({"id": np.arange(number * ROWS, (number + 1) * ROWS)})
            Path(name, "in").mkdir(exist_ok=True)
            pq.write_table(table, Path(name, "in", f"{number}.parquet"), row_group_size=3000)
        while total[0] < arguments.kills:
            seed = arguments.seed + runs
            kills = min(arguments.each, arguments.kills - total[0])
            made = one_run(Path(name, "in"), f"{name}/out", tuple(arguments.stages), kills, seed)
            total = [a + b for a, b in zip(total, made, strict=True)]
            runs += 1
            print(
                f"run {runs} (seed {seed}): {made[0]} kills, {made[1]} rows lost, {made[2]} twice, begun again {made[3]}",
                flush=True,
            )
    print(f"{runs} runs, {total[0]} kills: {total[1]} rows lost, {total[2]} seen twice, begun again {total[3]} times")
    return 1 if total[1] or total[2] else 0


if __name__ == "__main__":
    sys.exit(main())
