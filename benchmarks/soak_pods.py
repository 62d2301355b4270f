"""Kills at random on Pods of a real cluster, and counts rows that were lost or seen twice.

    PYTHONPATH=tests python benchmarks/soak_pods.py 50 --folder FOLDER [--each 5] [--seed 0]

Starts the cluster of tests/servers/kube on this machine (Go, root). Two map Pods feed a loop of two Pods, which makes
checkpoints, and a sink of files. While a run goes on, three kinds of death come to its Pods (not to the driver's, whose
loss ends a run): a rank's process is killed, a Pod's agent is killed, a Pod is deleted without grace. Every run must end
well with every row once in every epoch. Each death is printed with its second, its run with its seed. FOLDER is mounted
into the Pods; it must not lie under /tmp, which is theirs.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from soak import ids, loop

import ghee
from cluster.conftest import Place, open_place

ROWS, FILES, EPOCHS = 15_000, 2, 2
KINDS = ("rank", "agent", "pod")


def first(batch: Any) -> dict[str, Any]:
    """Takes a moment, so that a death finds it at work."""
    import time

    time.sleep(0.05)
    return {"id": batch["id"].to_numpy(), "more": np.zeros((batch.num_rows, 32))}


def _file(pid: str, name: str) -> bytes:
    try:
        return Path("/proc", pid, name).read_bytes()
    except OSError:  # it has ended
        return b""


def processes(run: str, kind: str) -> list[int]:
    """The run's ranks, or its agents but for the driver's: containers are processes of this machine."""
    wanted = {"rank": b"swimmy.inside", "agent": b"swimmy.agent"}[kind]
    found = []
    for pid in [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
        if wanted not in _file(pid, "cmdline").split(b"\0"):
            continue
        if f"\0SWIMMY_RUN={run}-".encode() not in b"\0" + _file(pid, "environ"):
            continue
        parent = _file(pid, "stat").rpartition(b")")[2].split()[1].decode()
        # A rank's parent is its own watcher; an agent's is the container runtime.
        if kind == "agent" or wanted in _file(parent, "cmdline").split(b"\0"):
            found.append(int(pid))
    return sorted(found)


class Killer(threading.Thread):
    """Brings a death to the run every now and then until it is stopped."""

    def __init__(self, place: Place, run: str, most: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._place, self._run, self._most = place, run, most
        self._random, self._end = random.Random(seed), threading.Event()
        self._began = time.monotonic()
        self.kills: list[str] = []

    def run(self) -> None:
        """Wait, choose, kill. A run that has no such victim yet is left alone until the next time."""
        while len(self.kills) < self._most and not self._end.wait(self._random.uniform(0.5, 6.0)):
            kind = self._random.choice(KINDS)
            if kind == "pod":
                victims = [
                    pod["metadata"]["name"] for pod in self._place.pods(f"{self._run}-")
                    if not pod["metadata"]["name"].startswith(f"{self._run}-0-")
                    and "deletionTimestamp" not in pod["metadata"]
                ]  # fmt: skip
            else:
                victims = processes(self._run, kind)
            if not victims:
                continue
            victim = self._random.choice(victims)
            try:
                self._place.delete_pod(victim) if kind == "pod" else os.kill(int(victim), signal.SIGKILL)
            except (OSError, RuntimeError):  # it has ended by itself
                continue
            self.kills.append(kind)
            print(f"  {time.monotonic() - self._began:.1f} s: {kind} {victim}", flush=True)

    def stop(self) -> None:
        """No more deaths."""
        self._end.set()
        self.join()


def one_run(place: Place, folder: Path, kills: int, seed: int, limit: float) -> tuple[Counter[str], int, int, list[str]]:
    """One run under fire: deaths by kind, rows lost, rows seen twice, and what the run says of its restarts."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    ready = ghee.read(str(folder / "in"), batch_size=500, epochs=EPOCHS).map(first, replicas=2, cpus="20m")
    ends = (
        ready.loop(loop, replicas=2, tail="pad", cpus="20m"),
        ready.map(ids, cpus="20m").write(str(folder / "out"), mode="overwrite", cpus="20m"),
    )
    on = place.on(cpus="20m", memory="300Mi", volumes=[place.claim("soak", folder)])
    on = dataclasses.replace(on, home=str(folder / "home"))
    run = ghee.run(ghee.branches(*ends), on=on, retries=1000, progress=False, wait=False)
    killer = Killer(place, run.id, kills, seed)
    killer.start()
    try:
        if not run.wait(limit):
            print(run.report.summary if hasattr(run.report, "summary") else run.report, flush=True)
            run.cancel()
            raise SystemExit(f"run with seed {seed} has not ended within {limit:.0f} s")
        results = run.results["loop"]
    finally:
        killer.stop()
    lost = twice = 0
    for epoch in range(EPOCHS):
        seen = Counter(np.concatenate([rank[epoch] for rank in results]).tolist())
        lost += ROWS * FILES - len(seen)
        twice += sum(count - 1 for count in seen.values())
    written = Counter(pq.read_table(folder / "out")["id"].to_pylist())
    lost += ROWS * FILES - len(written)
    twice += sum(abs(count - EPOCHS) for count in written.values())
    return Counter(killer.kills), lost, twice, run.report.restarts


def main() -> int:
    """Run until as many deaths were brought as were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=50)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--each", type=int, default=5, help="deaths in one run, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=240, help="seconds that one run may take")
    parser.add_argument("--budget", type=float, default=480, help="seconds after which no run is begun")
    options = parser.parse_args()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("in", "home"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o777)
    folder.chmod(0o777)
    for number in range(FILES):
        table = pa.table({"id": np.arange(number * ROWS, (number + 1) * ROWS)})
        pq.write_table(table, folder / "in" / f"{number}.parquet", row_group_size=3000)
    total: Counter[str] = Counter()
    lost = twice = runs = again = 0
    began = time.monotonic()
    with open_place() as place:
        while total.total() < options.kills and time.monotonic() - began < options.budget:
            seed, started = options.seed + runs, time.monotonic()
            most = min(options.each, options.kills - total.total())
            made, run_lost, run_twice, restarts = one_run(place, folder, most, seed, options.limit)
            total += made
            lost, twice, runs = lost + run_lost, twice + run_twice, runs + 1
            begun_again = sum("begun again" in reason for reason in restarts)
            again += begun_again
            print(
                f"run {runs} (seed {seed}): {made.total()} deaths {dict(made)}, {run_lost} rows lost, {run_twice} twice, "
                f"begun again {begun_again}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    shutil.rmtree(folder)
    print(
        f"{runs} runs, {total.total()} deaths {dict(total)}: {lost} rows lost, {twice} seen twice, begun again {again} times"
    )
    return 1 if lost or twice else 0


if __name__ == "__main__":
    sys.exit(main())
