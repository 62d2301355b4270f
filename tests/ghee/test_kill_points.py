"""`kill -9` inside the transfer, for every kind of stage: half way in a send, before and after each message that matters.

The points are in `killing/sitecustomize.py`, which runs in the ranks before anything of ghee. What a function of the user's
can do to its own rank is in `test_recovery.py`.
"""

from __future__ import annotations

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
import ghee.entry
from ghee.launch.local import LocalLauncher

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

ROWS, BATCH, EPOCHS = 1200, 100, 2

# Points that the kinds of stages pass in the same way are here once; "laid down" of a small batch, "arrived" at a loop and
# at a sink are in the last test.
KILLED = [
    # stage, point, carrier, bytes of a batch
    ("reading", "starting", "shm", 1000),
    ("map", "starting", "shm", 1000),
    ("loop", "starting", "shm", 1000),
    ("sink", "starting", "shm", 1000),
    ("reading", "half of the frames queued", "tcp", 100_000),
    ("reading", "half on the wire", "tcp", 30_000_000),
    ("reading", "sent", "tcp", 100_000),
    ("map", "half of the frames queued", "tcp", 100_000),
    ("reading", "laid down", "shm", 30_000_000),
    ("reading", "done with an input", "shm", 1000),
    ("reading", "counted the epoch", "shm", 1000),
    ("map", "arrived", "shm", 1000),
    ("map", "sent", "shm", 100_000),
    ("map", "told of the epoch's end", "shm", 1000),
    ("map", "returned", "shm", 1000),
    ("loop", "batch taken", "shm", 1000),
    ("loop", "told of the epoch's end", "shm", 1000),
    ("loop", "returned", "shm", 1000),
    ("sink", "counted the epoch", "shm", 1000),
    ("sink", "returned", "shm", 1000),
]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """A file of three row groups."""
    pq.write_table(pa.table({"id": np.arange(ROWS)}), tmp_path / "rows.parquet", row_group_size=ROWS // 3)
    return str(tmp_path / "rows.parquet")


class Fatten:
    """Batches of so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, batch: Any) -> dict[str, Any]:
        ids = np.asarray(batch["id"])
        return {"id": ids, "more": np.zeros((len(ids), self.size // len(ids)), np.uint8)}


def slim(batch: dict[str, Any]) -> dict[str, Any]:
    """Without the ballast: what a table can hold."""
    return {"id": batch["id"]}


def whole(batch: dict[str, Any]) -> dict[str, Any]:
    """As it came."""
    return batch


def train(batches: Any) -> list[list[int]]:
    """The ids of each epoch; a checkpoint after every fourth batch."""
    seen = ghee.restored() or [[] for _ in range(EPOCHS)]
    for epoch in batches.epochs():
        for number, batch in enumerate(epoch):
            seen[epoch.number] += [int(row) for row in batch["id"]]
            if number % 4 == 3:
                ghee.checkpoint(seen)
    return seen


def run_with_kills(
    rows: str, tmp_path: Path, patch: pytest.MonkeyPatch, stage: str, point: str, carrier: str, size: int, lives: int
) -> ghee.Run:
    """Run the pipeline, in which a rank of a stage is killed; checks that every row has arrived once in each epoch."""
    marks = tmp_path / "marks"
    marks.mkdir()
    patch.setenv("PYTHONPATH", str(Path(__file__).parent / "killing"))
    patch.setenv("GHEE_TEST_KILL", f"{stage}|{point}|{marks}|{lives}")
    patch.setattr(ghee.entry, "_launcher", lambda on, folder, shown: LocalLauncher(folder / "logs", carrier=carrier))
    batches = ghee.read(rows, batch_size=BATCH, epochs=EPOCHS).map(Fatten(size), name="reading").map(slim, name="map")
    if stage == "map":  # what it sends is to be as large as what it gets
        batches = ghee.read(rows, batch_size=BATCH, epochs=EPOCHS).map(Fatten(size), name="reading").map(whole, name="map")
    if stage in ("loop", "sink") and size > 1000:
        batches = ghee.read(rows, batch_size=BATCH, epochs=EPOCHS).map(Fatten(size), name="reading")
    if stage == "sink":
        run = ghee.run(batches.map(flat, name="flat").write(str(tmp_path / "out"), name="sink"))
        found = [int(row) for row in pq.read_table(tmp_path / "out", columns=["id"])["id"].to_pylist()]
        assert Counter(found) == Counter(list(range(ROWS)) * EPOCHS)
    else:
        run = ghee.run(batches.loop(train, name="loop"))
        assert [Counter(epoch) for epoch in run.result] == [Counter(range(ROWS))] * EPOCHS
    assert len(list(marks.iterdir())) == lives, "nothing was killed"
    assert run.report.balanced
    return run


class Told:
    """Items that can be iterated over again; near the end a file says that others have been read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(ROWS // BATCH):
            if number == ROWS // BATCH - 2:
                self.file.touch()
            yield {"id": np.arange(number * BATCH, (number + 1) * BATCH)}


def test_a_rank_killed_before_it_has_joined_while_batches_wait_for_it_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instruction to send to it can never be carried out, and must not keep those behind it waiting."""
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "killing"))
    monkeypatch.setenv("GHEE_TEST_KILL", f"map|starting, batches wait|{marks}|1")
    run = ghee.run(ghee.read(Told(tmp_path / "read")).map(whole, name="map").loop(list))
    assert Counter(int(row) for batch in run.result for row in batch["id"]) == Counter(range(ROWS))
    assert len(run.report.restarts) == 1
    assert run.report.balanced


def flat(batch: dict[str, Any]) -> dict[str, Any]:
    """Columns of one dimension, as a table has them."""
    width = np.shape(batch["more"])[1] if "more" in batch else 0
    return {"id": np.asarray(batch["id"]), **{f"x{column}": batch["more"][:, column] for column in range(min(width, 700))}}


@pytest.mark.parametrize(("stage", "point", "carrier", "size"), KILLED, ids=str)
def test_a_rank_killed_at_any_point_costs_no_row(
    rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, point: str, carrier: str, size: int
) -> None:
    run = run_with_kills(rows, tmp_path, monkeypatch, stage, point, carrier, size, lives=1)
    assert len(run.report.restarts) == 1
    assert "SIGKILL" in run.report.restarts[0]


@pytest.mark.parametrize("stage", ["reading", "map", "loop", "sink"])
def test_a_rank_killed_once_more_while_it_is_started_again_costs_no_row(
    rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    point = "laid down" if stage == "reading" else "arrived"
    run = run_with_kills(rows, tmp_path, monkeypatch, stage, point, "shm", 1000, lives=2)
    assert len(run.report.restarts) == 2
    assert "before it had joined" in run.report.restarts[1]
