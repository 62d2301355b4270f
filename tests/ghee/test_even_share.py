"""Even share in real worlds: every rank of a loop gets as many batches, so that a collective at every step never hangs.

Each loop calls `MPI.COMM_WORLD.allreduce` after every batch: a rank that had one batch more than another would wait in it
for ever. One run has loops of one to three ranks as branches, and all corners as epochs, because starts of worlds cost most.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ghee
from ghee.errors import GheeError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

LIMIT = 90.0
"""Seconds after which a run is taken for one that hangs."""

DROPPED = -1


@pytest.fixture(autouse=True)
def ghee_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run keeps goes with the test."""
    monkeypatch.setenv("GHEE_HOME", str(tmp_path / "ghee"))


class Epoch(NamedTuple):
    """What a rank saw of an epoch."""

    steps: int
    without_rows: int
    ids: list[int]


def keep(batch: Any) -> dict[str, Any] | None:
    """A filter: of some splits it leaves nothing, or a batch of many."""
    ids = np.asarray(batch["id"])
    kept = ids[ids != DROPPED]
    return {"id": kept} if len(kept) else None


def train(batches: ghee.Batches, began: str | None = None) -> list[Epoch]:
    """Meets the other ranks after every batch and at the end of every epoch; rank 0 is slower than they are.

    `began` is a pipe that gets a byte from each rank that has its first batch.
    """
    from mpi4py import MPI

    world, seen = MPI.COMM_WORLD, []
    for epoch in batches.epochs():
        steps = without_rows = 0
        ids: list[int] = []
        for batch in epoch:
            if began is not None and not seen and not steps:
                Path(began).write_bytes(b"x")
            if ghee.rank() == 0:
                sum(range(50_000))
            steps += 1
            without_rows += not len(batch["id"])
            ids += batch["id"].tolist()
            assert world.allreduce((epoch.number, steps), MPI.MAX) == (epoch.number, steps), "another rank is ahead"
        assert world.allreduce((epoch.number, steps), MPI.MIN) == (epoch.number, steps), "another rank has had less"
        seen.append(Epoch(steps, without_rows, ids))
    return seen


def run(ready: ghee.Pipeline, *loops: tuple[int, str], began: Path | None = None) -> ghee.Run:
    """Run loops of so many ranks and with such tails behind one filter. Where they hang, say how far they were."""
    ready = ready.map(keep, replicas=2)
    function = functools.partial(train, began=None if began is None else str(began))
    branches = [ready.loop(function, name=f"{tail} {ranks}", replicas=ranks, tail=tail) for ranks, tail in loops]  # type: ignore[arg-type]
    handle = ghee.run(ghee.branches(*branches, stop_on_failure=True), wait=False, progress=False)
    assert isinstance(handle, ghee.Run)
    if not handle.wait(LIMIT):
        seen = {stage.name: [rank.batches for rank in stage.by_rank] for stage in handle.report.stages}
        handle.cancel()
        pytest.fail(f"the run hangs; batches that the ranks were given: {seen}")
    return handle


def check(handle: ghee.Run, loops: list[tuple[int, str]], expected: list[list[int]]) -> None:
    """Compare what the ranks of every loop saw with the ids that the filter leaves in each epoch, and with the report."""
    results: dict[str, list[list[Epoch]]] = handle.results
    alone = next(results[f"{tail} {ranks}"][0] for ranks, tail in loops if ranks == 1)  # takes every batch
    assert [Counter(epoch.ids) for epoch in alone] == [Counter(ids) for ids in expected]
    for size, tail in loops:
        seen = results[f"{tail} {size}"]
        dropped = padded = repeated = 0
        for number, ids in enumerate(expected):
            total = alone[number].steps
            steps = total // size if tail == "drop" else -(-total // size)
            assert [rank[number].steps for rank in seen] == [steps] * size
            found = Counter(row for rank in seen for row in rank[number].ids)
            missing, extra = Counter(ids) - found, found - Counter(ids)
            lacking = 0 if tail == "drop" else steps * size - total
            assert sum(rank[number].without_rows for rank in seen) == (lacking if tail == "pad" else 0)
            assert bool(missing) == (tail == "drop" and total % size > 0)
            assert bool(extra) == (tail == "repeat" and lacking > 0)
            assert set(extra) <= set(ids)
            dropped += missing.total()
            padded += lacking if tail == "pad" else 0
            repeated += extra.total()
        report = handle.report.stage(f"{tail} {size}")
        assert (report.tail_dropped, report.padded, report.repeated) == (dropped, padded, repeated)
    assert handle.report.balanced


@pytest.mark.parametrize("tail", ["drop", "pad", "repeat"])
def test_epochs_of_any_size_are_shared_evenly(tail: str, tmp_path: Path) -> None:
    """Uneven batches; nothing; fewer batches than ranks; nothing left; next to nothing left; what divides."""
    nothing = np.full(3, DROPPED)
    epochs = [
        [np.arange(number % 5 + 1) + 10 * number for number in range(13)],
        [],
        [np.arange(4)],
        [nothing] * 9,
        [np.asarray([DROPPED, 7, 7]) if number in (3, 17) else nothing for number in range(40)],
        [np.arange(5) + 10 * number for number in range(6)],
        [],
    ]
    following = iter(enumerate(epochs))
    loops = [(ranks, tail) for ranks in (1, 2, 3)]
    began = tmp_path / "began"
    os.mkfifo(began)

    def read() -> Iterator[dict[str, Any]]:
        """An epoch ends late: a rank that was given a batch more than another is in its collective long before."""
        number, batches = next(following)
        for ids in batches:
            yield {"id": ids}
        if number == 0:
            with os.fdopen(os.open(began, os.O_RDWR), "rb", 0) as pipe:
                for _ in range(sum(ranks for ranks, _ in loops)):
                    pipe.read(1)
        threading.Event().wait(0.25)

    check(
        run(ghee.read(read, epochs=len(epochs)), *loops, began=began),
        loops,
        [[int(row) for ids in epoch for row in ids if row != DROPPED] for epoch in epochs],
    )


def test_uneven_files_are_shared_evenly(tmp_path: Path) -> None:
    """Files of no row to many, read by two ranks in another order in each epoch; of two files next to nothing is left."""
    left: list[int] = []
    for number, rows in enumerate((0, 1, 7, 120, 64, 3, 0, 33)):
        ids = np.arange(rows) + 1000 * number
        if number in (3, 7):
            ids[ids % 1000 != 5] = DROPPED
        pq.write_table(pa.table({"id": ids}), tmp_path / f"{number}.parquet", row_group_size=40)
        left += [int(row) for row in ids if row != DROPPED]
    source = ghee.read(str(tmp_path / "*.parquet"), batch_size=8, epochs=3, shuffle=4, replicas=2)
    loops = [(1, "drop"), (3, "drop"), (2, "pad"), (3, "repeat")]
    check(run(source, *loops), loops, [left] * 3)


def test_what_does_not_divide_ends_the_run_where_that_is_asked_for() -> None:
    sizes = iter((6, 0, 7))
    source = ghee.read(lambda: [{"id": np.arange(2)} for _ in range(next(sizes))], epochs=3)
    with pytest.raises(GheeError, match="epoch 2 has 7 batches for 2 ranks, which does not divide"):
        _ = run(source, (2, "error")).result


def test_sixty_four_ranks_share_two_cores() -> None:
    """32 filters and 32 ranks of a loop, each a process; the loop is behind them all."""
    epochs = [[np.arange(2) + 10 * number for number in range(70)], [np.arange(2)] * 3]
    following = iter(epochs)
    source = ghee.read(lambda: [{"id": ids} for ids in next(following)], epochs=len(epochs))
    handle = ghee.run(source.map(keep, replicas=32).loop(train, replicas=32, tail="pad"), wait=False, progress=False)
    assert isinstance(handle, ghee.Run)
    assert handle.wait(LIMIT), "the run hangs"
    for number, (steps, batches) in enumerate(zip((3, 1), epochs, strict=True)):
        seen = [rank[number] for rank in handle.results["train"]]
        assert [epoch.steps for epoch in seen] == [steps] * 32
        found = Counter(row for epoch in seen for row in epoch.ids)
        assert found == Counter(row for ids in batches for row in ids.tolist())
    assert handle.report.stage("train").padded == 32 * 4 - 73
    assert handle.report.balanced
