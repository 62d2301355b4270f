"""Kills ranks at random while they run, over many runs, and counts rows that were lost or seen twice: `python soak.py 200`.

Two stages of map ranks feed a loop of two ranks, which makes checkpoints, and a sink of files; ranks of every stage are
killed with SIGKILL at random moments, from their start to their end. Every run must end well with every row once in every
epoch. (`--stages first second` kills ranks of these only; `--ordered` asks for source order, and counts what is out of it;
`--load 1` has every rank take up to a second to load its task, so that batches come before it can take any.)
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import ghee

ROWS, FILES, EPOCHS = 20_000, 3, 2


class Slow:
    """A function that a rank needs up to so many seconds to load."""

    def __init__(self, function: Callable[[Any], Any], seconds: float) -> None:
        self.function, self.seconds = function, seconds

    def __setstate__(self, state: dict[str, Any]) -> None:
        time.sleep(random.uniform(0, state["seconds"]))
        vars(self).update(state)

    def __call__(self, batch: Any) -> Any:
        """What the function makes of it."""
        return self.function(batch)


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


class Made(NamedTuple):
    """What came of one run, or of all: rows that were lost, seen twice, out of order; how often a run was begun again."""

    kills: int = 0
    lost: int = 0
    twice: int = 0
    misplaced: int = 0
    again: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.lost} rows lost, {self.twice} twice, {self.misplaced} out of order, "
            f"begun again {self.again}"
        )

    @property
    def is_good(self) -> bool:
        """Whether every row was seen once and in its order."""
        return not (self.lost or self.twice or self.misplaced)


def one_run(folder: Path, out: str, arguments: argparse.Namespace, kills: int, seed: int) -> Made:
    """One run under fire."""
    killer = Killer(tuple(arguments.stages), kills, seed)
    killer.start()

    def slow(function: Callable[[Any], Any]) -> Any:
        return Slow(function, arguments.load) if arguments.load else function

    ready = ghee.read(str(folder), batch_size=500, epochs=EPOCHS).map(slow(first), replicas=2, name="first")
    ready = ready.map(slow(second), replicas=2, name="second")
    trained = ready.loop(slow(loop), replicas=2, name="loop", tail="pad", ordered=arguments.ordered)
    pipeline = ghee.branches(trained, ready.map(slow(ids), name="ids").write(out, mode="overwrite"))
    try:
        run = ghee.run(pipeline, retries=1000, progress=False)
    finally:
        killer.stop()
    lost = twice = misplaced = 0
    for epoch in range(EPOCHS):
        by_rank = [rank[epoch] for rank in run.results["loop"]]
        seen = Counter(np.concatenate(by_rank).tolist())
        lost += ROWS * FILES - len(seen)
        twice += sum(count - 1 for count in seen.values())
        if arguments.ordered:
            misplaced += sum(int((np.diff(of_rank) <= 0).sum()) for of_rank in by_rank)
    written = Counter(pq.read_table(out)["id"].to_pylist())
    lost += ROWS * FILES - len(written)
    twice += sum(abs(count - EPOCHS) for count in written.values())
    return Made(killer.kills, lost, twice, misplaced, sum("begun again" in reason for reason in run.report.restarts))


def main() -> int:
    """Run until as many kills were made as were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--each", type=int, default=12, help="kills in one run, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=["first", "second", "ids", "loop", "write"])
    parser.add_argument("--ordered", action="store_true", help="the loop takes its batches in source order")
    parser.add_argument("--load", type=float, default=0.0, help="seconds that a rank may need to load its task")
    arguments = parser.parse_args()
    os.environ["GHEE_SOAK"] = str(os.getpid())
    total = Made()
    runs = 0
    with tempfile.TemporaryDirectory() as name:
        for number in range(FILES):
            table = pa.table({"id": np.arange(number * ROWS, (number + 1) * ROWS)})
            Path(name, "in").mkdir(exist_ok=True)
            pq.write_table(table, Path(name, "in", f"{number}.parquet"), row_group_size=3000)
        while total.kills < arguments.kills:
            seed, began = arguments.seed + runs, time.monotonic()
            kills = min(arguments.each, arguments.kills - total.kills)
            made = one_run(Path(name, "in"), f"{name}/out", arguments, kills, seed)
            total = Made(*(a + b for a, b in zip(total, made, strict=True)))
            runs += 1
            print(f"run {runs} (seed {seed}, {time.monotonic() - began:.0f} s): {made}", flush=True)
    print(f"{runs} runs: {total}")
    return 0 if total.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
