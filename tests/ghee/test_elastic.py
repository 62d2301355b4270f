"""`replicas=ghee.auto(min, max)` in real runs: grows for a slow map, shrinks for a fast one, loses nothing under fire."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ghee
from ghee.driver.journal import parse
from ghee.errors import PipelineError, ResourceError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

BATCH = 10


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[int, int], str]:
    """A function that makes one file of so many batches, in so many splits."""

    def make(batches: int, splits: int) -> str:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table({"id": np.arange(batches * BATCH)}), path, row_group_size=batches * BATCH // splits)
        return str(path)

    return make


def as_dict(batch: Any) -> dict[str, Any]:
    """A record batch as a dict of arrays."""
    return {"id": batch["id"].to_numpy()}


class Takes:
    """Preprocessing that takes so many seconds for a batch. It waits, as for a disk: a second core is not what it needs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, batch: Any) -> dict[str, Any]:
        time.sleep(self.seconds)
        return batch if isinstance(batch, dict) else as_dict(batch)


def trainer(seconds: float, later: float = 0.0, after: int = 1 << 30) -> Callable[[Any], list[int]]:
    """A loop that takes so many seconds for a batch, and `later` once it has had `after` of them."""

    def train(batches: Any) -> list[int]:
        ids: list[int] = []
        for number, batch in enumerate(batches):
            time.sleep(later if number >= after else seconds)
            ids += batch["id"].tolist()
        return ids

    return train


def changes(run: ghee.Run) -> list[tuple[int, int]]:
    """From how many replicas to how many, change by change, as the report says."""
    return [(int(a), int(b)) for change in run.report.changes for a, b in re.findall(r" (\d+) -> (\d+) replicas: ", change)]


def check_rows(run: ghee.Run, count: int, epochs: int = 1) -> None:
    """Every row once in each epoch, and the ledger says so too."""
    found = Counter(number for rank in run.results["train"] for number in rank)
    assert found == dict.fromkeys(range(count), epochs)
    assert run.report.balanced


@pytest.mark.parametrize("on", ["local", "inline"])
@pytest.mark.parametrize("joined", [True, False], ids=["reading joined", "a stage of its own"])
def test_a_slow_map_grows_in_one_step_and_says_why(rows: Callable[[int, int], str], on: str, joined: bool) -> None:
    read = ghee.read(rows(160, 16), batch_size=BATCH)
    ready = read if joined else read.map(as_dict, name="convert")
    pipeline = ready.map(Takes(0.05), name="prep", replicas=ghee.auto(1, 4)).loop(trainer(0.0125))
    run = ghee.run(pipeline, on=on, progress=False)  # type: ignore[arg-type]
    check_rows(run, 1600)
    assert changes(run)[0][0] == 1
    assert changes(run)[0][1] in (3, 4), "one step to where 4 replicas of 20 batches/s feed a trainer of 80"
    said = run.report.changes[0]
    assert re.fullmatch(
        r"after [\d.]+ s: prep 1 -> \d replicas: train waited \d+ % of its time, a replica makes [\d.]+ batches/s, "
        r"train takes [\d,.]+",
        said,
    )
    assert said in str(run.report)
    records, _ = parse((run.folder / "journal").read_bytes())
    scaled = [record for record in records if record["kind"] == "scale"]
    assert [record["reason"] for record in scaled] == [
        change.partition(" s: ")[2] for change in run.report.changes if "->" in change
    ]
    assert json.loads((run.folder / "report.json").read_text())["changes"] == run.report.changes
    assert not run.report.restarts


class Closes(Takes):
    """Leaves a mark for as long as it is there."""

    def __init__(self, marks: Path, seconds: float) -> None:
        super().__init__(seconds)
        self.mark = marks / f"{os.getpid()}-{threading.get_ident()}"
        self.mark.touch()

    def close(self) -> None:
        """Called when its rank returns."""
        self.mark.unlink()


@pytest.mark.parametrize("on", ["local", "inline"])
def test_a_map_that_has_become_too_large_shrinks(
    rows: Callable[[int, int], str], tmp_path: Path, running: Callable[[], dict[int, str]], on: str
) -> None:
    """The trainer becomes slow in the middle: the replicas that are too many give back what they read, and end."""
    marks = tmp_path / "marks"
    marks.mkdir()
    pipeline = (
        ghee.read(rows(500, 50), batch_size=BATCH)
        .map(functools.partial(Closes, marks, 0.04), name="prep", replicas=ghee.auto(1, 4), credit=1600)
        .loop(trainer(0.01, later=0.04, after=200), credit=1600)
    )
    run = ghee.run(pipeline, on=on, progress=False, wait=False)  # type: ignore[arg-type]
    most, gone = 0, False
    while not run.wait(0.05):
        there, steps = len(list(marks.iterdir())), changes(run)
        ranks = len(ranks_of(running(), "prep")) if on == "local" else there
        most = max(most, there)
        gone = gone or bool(steps and steps[-1][1] < steps[-1][0] and there == ranks == steps[-1][1])
    check_rows(run, 5000)
    steps = changes(run)
    assert most == steps[0][1] > 2
    assert steps[-1][1] < steps[-1][0], "it has shrunk"
    assert steps[-1][1] in (1, 2)
    assert gone, "functions of replicas that have left are closed, and their processes gone, while the run goes on"
    assert run.report.stage("prep").ranks == steps[-1][1]
    assert not run.report.restarts, "leaving is no death"
    assert not list(marks.iterdir())


def ranks_of(processes: dict[int, str], stage: str) -> list[int]:
    """The processes of a stage's ranks, without the mpiexec that started them."""
    return [pid for pid, line in processes.items() if f" {stage} " in line and "mpiexec" not in line]


class Killer(threading.Thread):
    """Kills a rank of a stage every now and then, also while ranks join and leave."""

    def __init__(self, running: Callable[[], dict[int, str]], kills: int) -> None:
        super().__init__(daemon=True)
        self._running, self._left, self.kills, self._end = running, kills, 0, threading.Event()

    def run(self) -> None:
        """Kill the newest, wait, kill the next."""
        while self._left and not self._end.wait(0.7):
            ranks = ranks_of(self._running(), "prep")
            if ranks:
                os.kill(max(ranks), signal.SIGKILL)
                self.kills, self._left = self.kills + 1, self._left - 1

    def stop(self) -> None:
        """No more kills."""
        self._end.set()
        self.join()


@pytest.mark.slow
@pytest.mark.parametrize("joined", [True, False], ids=["reading joined", "a stage of its own"])
def test_kills_while_it_grows_and_shrinks_cost_no_row(
    rows: Callable[[int, int], str], running: Callable[[], dict[int, str]], joined: bool
) -> None:
    read = ghee.read(rows(300, 30), batch_size=BATCH, epochs=2)
    ready = read if joined else read.map(as_dict, name="convert")
    pipeline = ready.map(Takes(0.03), name="prep", replicas=ghee.auto(1, 4), credit=400).loop(
        trainer(0.0075, later=0.03, after=350), replicas=1, credit=400
    )
    killer = Killer(running, kills=5)
    killer.start()
    try:
        run = ghee.run(pipeline, progress=False, retries=100)
    finally:
        killer.stop()
    check_rows(run, 3000, epochs=2)
    assert killer.kills == 5
    assert changes(run)


def test_a_run_that_is_resumed_begins_with_the_replicas_that_it_had(rows: Callable[[int, int], str]) -> None:
    def train(batches: Any) -> int:
        before = len(ghee.restored() or ())
        for number, _ in enumerate(batches):
            time.sleep(0.0125)
            if number % 20 == 19:
                ghee.checkpoint([0])
            if not before and number == 120:
                raise RuntimeError("stop here")
        return before

    pipeline = ghee.read(rows(150, 15), batch_size=BATCH).map(Takes(0.05), name="prep", replicas=ghee.auto(1, 4)).loop(train)
    first = ghee.run(pipeline, wait=False, progress=False)
    first.wait()
    grown = changes(first)[-1][1]
    assert grown > 1
    second = ghee.resume(first.id, progress=False)
    assert second.result == 1
    steps = changes(second)
    assert (steps[0][0] if steps else second.report.stage("prep").ranks) == grown


# ── what means nothing ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((0, 3), r"ghee\.auto\(0, 3\): min=0, expected a whole number of at least 1, such as ghee\.auto\(1, 8\)"),
        ((3, 2), r"ghee\.auto\(3, 2\): min is larger than max; .* such as ghee\.auto\(2, 3\)"),
        ((1, 2.5), r"max=2\.5, expected a whole number"),
        ((True, 2), r"min=True, expected a whole number"),
        (("1", 2), r"min='1', expected a whole number"),
    ],
)
def test_bounds_that_mean_nothing(bounds: tuple[Any, Any], said: str) -> None:
    with pytest.raises(ResourceError, match=said):
        ghee.auto(*bounds)


def test_a_loop_and_a_sink_cannot_follow_what_is_needed() -> None:
    ready = ghee.read([{"n": np.arange(3)}])
    with pytest.raises(
        ResourceError, match=r"replicas=auto\(1, 4\): the ranks of a loop are one MPI world.*such as replicas=4"
    ):
        ready.loop(trainer(0), replicas=ghee.auto(1, 4))  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match=r"replicas=auto\(1, 4\): each rank of a sink .*such as replicas=4"):
        ready.write([], replicas=ghee.auto(1, 4))  # type: ignore[arg-type]


def test_explain_and_set_know_it() -> None:
    pipeline = ghee.read([{"n": np.arange(3)}]).map(as_dict, name="prep", replicas=ghee.auto(1, 4)).loop(trainer(0))
    assert "map prep  (replicas=auto(1, 4), cpus=1" in str(pipeline)
    again = ghee.pipeline.override(pipeline, {"prep": {"cpus": 2}})
    assert "replicas=auto(1, 4), cpus=2" in str(again), "an option that is not set stays"
    again = ghee.pipeline.override(pipeline, {"prep": {"replicas": "auto(2, 6)"}})
    assert "replicas=auto(2, 6)" in str(again), "as `--set prep.replicas=auto(2,6)` says it"
    with pytest.raises(PipelineError, match=r"stage 'prep': ghee\.auto\(5, 2\): min is larger"):
        ghee.pipeline.override(pipeline, {"prep": {"replicas": "auto(5, 2)"}})


def test_a_source_that_is_read_here_does_not_follow(rows: Callable[[int, int], str]) -> None:
    """A Python iterable is read in the driver's process, whatever was asked for."""

    def few() -> Iterator[dict[str, Any]]:
        yield {"id": np.arange(BATCH)}

    run = ghee.run(ghee.read(few, replicas=ghee.auto(1, 3)).loop(trainer(0)), on="inline", progress=False)
    check_rows(run, BATCH)
