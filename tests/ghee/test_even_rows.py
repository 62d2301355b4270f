"""Rows in real worlds: `batch_size` is the size of every batch but an epoch's last, whatever the files' sizes."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ghee
from ghee.errors import PipelineError, SourceError
from ghee.observe.report import RankReport, StageReport

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

pytestmark = pytest.mark.usefixtures("own_home")

FILES = (0, 1, 70, 500, 33, 500, 500, 2, 499, 500)
BATCH = 64
IDS = list(range(sum(FILES)))


@pytest.fixture
def uneven(tmp_path: Path) -> str:
    """Ten files of no row to many, in row groups of other sizes than a batch."""
    folder, begin = tmp_path / "uneven", 0
    folder.mkdir()
    for number, rows in enumerate(FILES):
        ids = np.arange(begin, begin + rows)
        table = pa.table({"id": ids, "file": np.full(rows, number)})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=150)
        begin += rows
    return str(folder)


def collect(batches: ghee.Batches) -> list[list[list[int]]]:
    """By epoch and batch the ids."""
    return [[[int(i) for i in batch["id"]] for batch in epoch] for epoch in batches.epochs()]


READINGS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "whole": ({}, IDS),
    "columns and a limit": ({"columns": ["id"], "limit": 1000}, IDS[:1000]),
    "a filter and a limit": ({"filter": [("file", "!=", 3)], "limit": 1500}, [i for i in IDS if not 71 <= i < 571][:1500]),
    "shuffled": ({"shuffle": 3, "shuffle_buffer": 256}, IDS),
    "shuffled, with a limit": ({"shuffle": 3, "limit": 1111}, IDS[:1111]),
}


@pytest.mark.parametrize("reading", READINGS)
def test_batches_of_every_rank_are_full_but_an_epochs_last(uneven: str, reading: str) -> None:
    options, wanted = READINGS[reading]
    source = ghee.read(uneven, batch_size=BATCH, epochs=2, replicas=2, **options)
    loops = [source.loop(collect, name=f"loop {ranks}", replicas=ranks, tail="pad") for ranks in (1, 2, 3)]
    run = ghee.run(ghee.branches(*loops), progress=False)
    for ranks in (1, 2, 3):
        results = run.results[f"loop {ranks}"]
        for epoch in range(2):
            given = [[len(batch) for batch in of_rank[epoch] if batch] for of_rank in results]
            rows = [sum(sizes) for sizes in given]
            # One that is padded has a batch less, and it may be the one that was given the short batch.
            assert max(rows) - min(rows) <= 2 * BATCH - len(wanted) % BATCH
            short = [size for sizes in given for size in sizes if size != BATCH]
            assert short == [len(wanted) % BATCH]
            found = Counter(i for of_rank in results for batch in of_rank[epoch] for i in batch)
            assert found == Counter(wanted)
        stage = run.report.stage(f"loop {ranks}")
        assert not stage.is_uneven(2)
        assert [rank.rows for rank in stage.by_rank] == [
            sum(len(batch) for epoch in of_rank for batch in epoch) for of_rank in results
        ]
        assert (f"rows by rank of loop {ranks}: " in str(run.report)) is (ranks > 1)
    assert "they differ" not in str(run.report)


@pytest.mark.parametrize("shuffle", [None, 7])
def test_ranks_get_rows_that_differ_by_a_batch_at_most(uneven: str, shuffle: int | None) -> None:
    source = ghee.read(uneven, batch_size=BATCH, shuffle=shuffle)
    loops = [source.loop(collect, name=f"loop {ranks}", replicas=ranks) for ranks in (2, 3)]
    run = ghee.run(ghee.branches(*loops), progress=False)
    for results in run.results.values():
        rows = [sum(len(batch) for epoch in of_rank for batch in epoch) for of_rank in results]
        assert max(rows) - min(rows) < BATCH


def test_batches_of_a_filter_are_full_within_a_split(uneven: str) -> None:
    """Nobody knows before how many rows pass: without a limit only what is read together is made into full batches."""
    source = ghee.read(uneven, batch_size=BATCH, filter=[("file", "!=", 3)])
    (batches,) = ghee.run(source.loop(collect, ordered=True), on="inline", progress=False).result
    assert [i for batch in batches for i in batch] == [i for i in IDS if not 71 <= i < 571]
    assert all(len(batch) <= BATCH for batch in batches)


def test_a_report_says_that_rows_are_uneven() -> None:
    """Batches of 100 rows and of 1 in turn."""
    batches = [{"id": np.arange(100 if number % 2 else 1)} for number in range(40)]
    run = ghee.run(ghee.read(batches).loop(collect, replicas=2, ordered=True), on="inline", progress=False)
    stage = run.report.stage("collect")
    rows = [sum(len(batch) for epoch in of_rank for batch in epoch) for of_rank in run.results["collect"]]
    assert [rank.rows for rank in stage.by_rank] == rows
    assert stage.is_uneven(1)
    assert f"they differ by {max(rows) - min(rows):,}, more than one batch an epoch" in str(run.report)


def test_what_is_uneven_is_more_than_a_batch() -> None:
    def loop(*rows: int) -> StageReport:
        return StageReport("l", "loop", len(rows), by_rank=[RankReport(n, rows=r, largest=10) for n, r in enumerate(rows)])

    assert not loop(100).is_uneven(1)
    assert not loop(100, 90).is_uneven(1)
    assert loop(100, 89).is_uneven(1)
    assert loop(100, 100, 89).is_uneven(1)
    assert not loop(100, 80).is_uneven(2)
    assert loop(100).rows_said(1) == ""
    assert "they differ" in loop(100, 89).rows_said(1)
    assert "they differ" not in loop(100, 89).rows_said(1, judged=False)


@pytest.mark.parametrize("reading", [name for name in READINGS if name != "shuffled"])
def test_drop_last_leaves_an_epochs_short_batch_out(uneven: str, reading: str) -> None:
    options, wanted = READINGS[reading]
    source = ghee.read(uneven, batch_size=BATCH, epochs=2, drop_last=True, **options)
    run = ghee.run(source.loop(collect, replicas=2, tail="pad"), on="inline", progress=False)
    full = len(wanted) // BATCH
    for epoch in range(2):
        given = [batch for of_rank in run.results["collect"] for batch in of_rank[epoch] if batch]
        assert [len(batch) for batch in given] == [BATCH] * full
        found = Counter(i for batch in given for i in batch)
        assert set(found.values()) == {1}
        assert found <= Counter(wanted)
    assert run.report.stages[0].dropped == 2 * (len(wanted) % BATCH)
    assert run.report.balanced


def test_drop_last_needs_rows_that_can_be_counted(uneven: str) -> None:
    with pytest.raises(
        PipelineError, match=r"nobody knows which batch is an epoch's last.*Write \.rebatch\(rows, drop_last"
    ):
        ghee.run(ghee.read(uneven, drop_last=True, filter=[("file", "!=", 3)]).loop(collect), on="inline", progress=False)
    with pytest.raises(PipelineError, match=r"drop_last: a Python iterable gives its batches as they are.*Write \.rebatch"):
        ghee.run(ghee.read([np.arange(3)], drop_last=True).loop(collect), on="inline", progress=False)
    with pytest.raises(PipelineError, match=r"read\(drop_last=1\): allowed are True and False"):
        ghee.read(uneven, drop_last=1)  # type: ignore[arg-type]


class Dies:
    """Collects ids, makes a checkpoint after every third batch, and its last rank is killed once."""

    def __init__(self, mark: Path, at: int) -> None:
        self.mark, self.at = mark, at

    def __call__(self, batches: ghee.Batches) -> list[tuple[int, list[int]]]:
        seen: list[tuple[int, list[int]]] = ghee.restored() or []
        for epoch in batches.epochs():
            for batch in epoch:
                seen.append((epoch.number, batch["id"].to_pylist()))
                if len(seen) % 3 == 0:
                    ghee.checkpoint(seen)
                if len(seen) == self.at and ghee.rank() == ghee.size() - 1 and not self.mark.exists():
                    self.mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return seen


@pytest.mark.parametrize(("ranks", "readers", "shuffle"), [(1, 2, 5), (2, 1, None), (3, 2, 5)])
def test_a_killed_loop_sees_the_same_batches(
    uneven: str, tmp_path: Path, ranks: int, readers: int, shuffle: int | None
) -> None:
    """Killed in the second epoch: what it has seen in the end is what a run sees in which nothing dies, whoever reads."""
    buffer = {} if shuffle is None else {"shuffle": shuffle, "shuffle_buffer": 300}
    per_epoch = -(-len(IDS) // BATCH) // ranks
    mark = tmp_path / "died"

    def run(train: Dies, readers: int, on: str) -> ghee.Run:
        source = ghee.read(uneven, batch_size=BATCH, epochs=2, replicas=readers, **buffer)  # type: ignore[arg-type]
        found = ghee.run(source.loop(train, name="train", replicas=ranks, ordered=True), on=on, progress=False)
        assert isinstance(found, ghee.Run)
        return found

    killed = run(Dies(mark, per_epoch + per_epoch // 2), readers, "local")
    assert mark.exists()
    assert killed.report.restarts
    assert killed.results["train"] == run(Dies(mark, -1), 1, "inline").results["train"]
    epochs = [[batch for epoch, batch in killed.results["train"][0] if epoch == number] for number in range(2)]
    assert (epochs[0] == epochs[1]) is (shuffle is None)
    assert all(len(batch) == BATCH for epoch in epochs for batch in epoch[:-1])


@pytest.mark.parametrize("on", ["inline", "local"])
@pytest.mark.parametrize("source", [lambda: [np.arange(3), None, np.arange(4)], lambda: iter([np.arange(3), None])])
def test_a_none_in_a_source_is_an_error(source: Any, on: str) -> None:
    out: list[Any] = []
    with pytest.raises(SourceError, match="gave None as item 1, and the items of a source are batches"):
        ghee.run(ghee.read(source).write(out), on=on, progress=False)
