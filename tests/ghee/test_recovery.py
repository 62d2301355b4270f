"""`kill -9` of reading and map ranks at named points: every row is delivered once, and the ledger balances."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ghee
from ghee.errors import RankKilledError
from ghee.transfer.manager import EARLY_BYTES

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

ROWS, EPOCHS = 6000, 2


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """One file with three row groups."""
    folder = tmp_path / "rows"
    folder.mkdir()
    pq.write_table(pa.table({"id": np.arange(ROWS)}), folder / "rows.parquet", row_group_size=2000)
    return str(folder)


class Fragile:
    """Passes batches on in halves, and is killed once (`times` times) at a named point."""

    def __init__(self, marks: str, point: str, times: int = 1, columns: int = 16) -> None:
        self.marks, self.point, self.times = Path(marks), point, times
        self.columns = columns
        self.calls = 0
        self.die_at("built")

    def die_at(self, point: str) -> None:
        lives = len(list(self.marks.iterdir()))
        if point == self.point and lives < self.times:
            (self.marks / str(lives)).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, batch: Any) -> Iterator[dict[str, Any]]:
        ids = np.asarray(batch["id"])
        self.calls += 1
        if self.calls == 3:
            self.die_at("third call")
        yield {"id": ids[: len(ids) // 2], "more": np.zeros((len(ids) // 2, self.columns))}
        if self.calls == 2:
            self.die_at("half of the outputs made")
        yield {"id": ids[len(ids) // 2 :], "more": np.zeros((len(ids) - len(ids) // 2, self.columns))}
        if ROWS - 1 in ids:
            self.die_at("end of the epoch")


def collect(batches: Any) -> list[list[int]]:
    """The ids of each epoch, as they came."""
    return [[int(i) for batch in epoch for i in batch["id"]] for epoch in batches.epochs()]


def passed(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch, from a rank of a stage of its own."""
    return batch


POINTS = ["built", "third call", "half of the outputs made", "end of the epoch"]


@pytest.mark.parametrize("ordered", [False, True], ids=["first ready", "ordered"])
@pytest.mark.parametrize("stage", ["reading", "map"])
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_rank_costs_no_row(rows: str, tmp_path: Path, point: str, stage: str, ordered: bool) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    fragile = functools.partial(Fragile, str(marks), point)
    ready = ghee.read(rows, batch_size=500, epochs=EPOCHS)
    ready = ready.map(fragile, name="fragile") if stage == "reading" else ready.map(batch_dict).map(fragile, name="fragile")
    run = ghee.run(ready.map(passed).loop(collect, ordered=ordered))
    assert len(list(marks.iterdir())) == 1, "nothing was killed"
    for epoch in run.result:
        assert Counter(epoch) == Counter(range(ROWS))
        assert not ordered or epoch == list(range(ROWS))
    assert run.report.balanced
    assert len(run.report.restarts) == 1
    assert "SIGKILL" in run.report.restarts[0]


@pytest.mark.parametrize("ordered", [False, True], ids=["first ready", "ordered"])
@pytest.mark.parametrize("point", ["third call", "half of the outputs made"])
def test_batches_that_are_announced_before_they_are_copied(rows: str, tmp_path: Path, point: str, ordered: bool) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    columns = EARLY_BYTES // (250 * 8) + 1
    fragile = functools.partial(Fragile, str(marks), point, columns=columns)
    prepared = ghee.read(rows, batch_size=500).map(batch_dict).map(fragile, name="fragile", replicas=2).map(passed)
    run = ghee.run(ghee.branches(*(prepared.loop(collect, ordered=ordered, name=name) for name in ("one", "two"))))
    for name in ("one", "two"):
        assert Counter(run.results[name][0][0]) == Counter(range(ROWS))
    assert run.report.balanced
    assert len(run.report.restarts) == 1


def batch_dict(batch: Any) -> dict[str, Any]:
    """A record batch as a dict of arrays."""
    return {"id": batch["id"].to_numpy()}


def test_a_rank_that_is_killed_while_it_is_restarted(rows: str, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    fragile = functools.partial(Fragile, str(marks), "built", times=2)
    run = ghee.run(ghee.read(rows, batch_size=500).map(fragile, name="fragile").loop(collect))
    assert [Counter(epoch) for epoch in run.result] == [Counter(range(ROWS))]
    assert len(run.report.restarts) == 2


def test_a_world_of_two_ranks_dies_and_comes_back_whole(rows: str, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    fragile = functools.partial(Fragile, str(marks), "third call")
    run = ghee.run(ghee.read(rows, batch_size=500).map(fragile, name="fragile", ranks=2).loop(collect, replicas=2))
    assert Counter(i for rank in run.results["collect"] for epoch in rank for i in epoch) == Counter(range(ROWS))


class FragileWorld(Fragile):
    """Is killed with all that its world is: the other ranks, their proxy, and mpiexec, in the order asked for."""

    def __init__(self, marks: str, point: str, first: str) -> None:
        self.first = first
        super().__init__(marks, point)

    def die_at(self, point: str) -> None:
        """Kill everything but this rank, which goes last."""
        if point != self.point or any(self.marks.iterdir()):
            return
        proxy = os.getppid()
        mpiexec = int(Path(f"/proc/{proxy}/stat").read_text().rpartition(")")[2].split()[1])
        ranks = {int(each) for each in Path(f"/proc/{proxy}/task/{proxy}/children").read_text().split()} - {os.getpid()}
        assert ranks, "a world of more than one rank"
        (self.marks / "0").touch()
        launchers = [mpiexec, proxy]
        for process in [*ranks, *launchers] if self.first == "ranks" else [*launchers, *ranks]:
            os.kill(process, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("first", ["ranks", "mpiexec"])
def test_a_whole_replica_with_its_launcher_is_killed_and_comes_back(rows: str, tmp_path: Path, first: str) -> None:
    """The other replica goes on; what was lost with this one is made again, once."""
    marks = tmp_path / "marks"
    marks.mkdir()
    fragile = functools.partial(FragileWorld, str(marks), "third call", first)
    prepared = ghee.read(rows, batch_size=500, epochs=EPOCHS).map(batch_dict)
    run = ghee.run(prepared.map(fragile, name="fragile", replicas=2, ranks=2).map(passed).loop(collect))
    assert len(list(marks.iterdir())) == 1, "nothing was killed"
    for epoch in run.result:
        assert Counter(epoch) == Counter(range(ROWS))
    assert run.report.balanced
    assert len(run.report.restarts) == 1


def test_the_bound_on_retries_fails_the_run_with_the_cause(rows: str, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    fragile = functools.partial(Fragile, str(marks), "third call", times=100)
    pipeline = ghee.read(rows, batch_size=500).map(fragile, name="fragile").loop(collect)
    with pytest.raises(RankKilledError, match=r"(?s)'fragile'.*SIGKILL.*started again 2 times before"):
        ghee.run(pipeline, retries=2)
    assert len(list(marks.iterdir())) == 3


def test_a_killed_loop_rank_fails_the_run_and_says_which(rows: str) -> None:
    def train(batches: Any) -> None:
        for _ in batches:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RankKilledError, match=r"rank 0 of stage 'train'.*SIGKILL"):
        ghee.run(ghee.read(rows, batch_size=500).map(batch_dict).loop(train))
