"""Checkpoints, restarts and resume, with real processes that are really killed."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cloudpickle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ghee
from ghee.driver.journal import Journal, parse
from ghee.entry import home
from ghee.errors import CheckpointError, RankKilledError

cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS, BATCH = 400, 10


pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    """400 numbers in 8 files."""
    folder = tmp_path / "numbers"
    folder.mkdir()
    for part in range(8):
        table = pa.table({"n": range(part * 50, part * 50 + 50)})
        pq.write_table(table, folder / f"{part}.parquet")
    return str(folder)


def same(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


class Train:
    """Collects what it is given, makes a checkpoint now and then, and dies once at a chosen place."""

    def __init__(self, folder: Path, *, every: int = 3, die_at: tuple[int, int] | None = None) -> None:
        """`die_at` is the epoch and the number of batches; -1: at the epoch's edge, after a checkpoint there."""
        self.mark, self.every, self.die_at = folder / "has-died", every, die_at

    def __call__(self, batches: ghee.Batches) -> list[tuple[int, list[int]]]:
        seen: list[tuple[int, list[int]]] = ghee.restored() or []
        for epoch in batches.epochs():
            for batch in epoch:
                seen.append((epoch.number, batch["n"].to_pylist()))
                if len(seen) % self.every == 0:
                    ghee.checkpoint(seen)
                self.die_if_at((epoch.number, len(seen)))
            if self.die_at == (epoch.number, -1):
                ghee.checkpoint(seen)
                self.die_if_at((epoch.number, -1))
        return seen

    def die_if_at(self, place: tuple[int, int]) -> None:
        if place == self.die_at and ghee.rank() == ghee.size() - 1 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def rows(results: list[list[tuple[int, list[int]]]]) -> Counter[tuple[int, int]]:
    return Counter((epoch, n) for of_rank in results for epoch, batch in of_rank for n in batch)


EVERYTHING = Counter({(epoch, n): 1 for epoch in range(2) for n in range(ROWS)})


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("place", ["before any checkpoint", "mid-epoch", "second epoch", "edge"])
def test_a_killed_loop_goes_on_from_its_checkpoint(
    numbers: str, tmp_path: Path, ranks: int, place: str, ordered: bool
) -> None:
    per_epoch = ROWS // BATCH // ranks
    die_at = {
        "before any checkpoint": (0, 2),
        "mid-epoch": (0, per_epoch // 2),
        "second epoch": (1, per_epoch + per_epoch // 2),
        "edge": (0, -1),
    }[place]
    source = ghee.read(numbers, batch_size=BATCH, epochs=2)
    train = Train(tmp_path, die_at=die_at)
    run = ghee.run(source.map(same, replicas=2).loop(train, replicas=ranks, ordered=ordered, name="train"), progress=False)
    assert (tmp_path / "has-died").exists()
    assert rows(run.results["train"]) == EVERYTHING
    assert len({len(of_rank) for of_rank in run.results["train"]}) == 1
    assert "begun again at" in run.report.restarts[0]
    if ordered:
        loop = source.loop(Train(tmp_path), replicas=ranks, ordered=True, name="train")
        assert run.results["train"] == ghee.run(loop, on="inline", progress=False).results["train"]


def test_retries_bound_the_restarts(numbers: str) -> None:
    def always_dies(batches: ghee.Batches) -> None:
        for _ in batches:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RankKilledError, match="SIGKILL"):
        ghee.run(ghee.read(numbers, batch_size=BATCH).loop(always_dies), progress=False, retries=1)


def test_a_killed_sink_begins_again_and_each_row_is_there_once(numbers: str, tmp_path: Path) -> None:
    mark, out = tmp_path / "died", tmp_path / "out"

    def kill_the_writer(batch: pa.RecordBatch) -> pa.RecordBatch:
        if batch["n"][0].as_py() == 200 and not mark.exists():
            mark.touch()
            for pid in _ranks("write", _bootstrap(os.getpid())):
                os.kill(pid, signal.SIGKILL)
        return batch

    run = ghee.run(ghee.read(numbers, batch_size=BATCH).map(kill_the_writer).write(str(out)), progress=False)
    assert mark.exists()
    assert "begun again at the beginning" in run.report.restarts[0]
    assert sorted(pq.read_table(out)["n"].to_pylist()) == list(range(ROWS))


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _bootstrap(pid: int) -> bytes:
    """The file that names a rank's run."""
    words = _words(pid)
    return words[words.index(b"ghee.launch.process") + 1]


def _ranks(stage: str, bootstrap: bytes) -> list[int]:
    """The processes that are a rank of a run's stage."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [
        pid
        for pid in pids
        if (words := _words(pid))[1:3] == [b"-m", b"ghee.launch.process"] and words[3:5] == [bootstrap, stage.encode()]
    ]


SCRIPT = """
import os, sys, time
import ghee

def same(batch):
    return batch

def train(batches):
    seen = ghee.restored() or []
    for epoch in batches.epochs():
        for batch in epoch:
            seen.append((epoch.number, batch["n"].to_pylist()))
            if len(seen) % 3 == 0:
                ghee.checkpoint(seen)
            if len(seen) == 8 and not os.path.exists({mark!r}):
                if ghee.rank() == 0:
                    print("REACHED", flush=True)
                while True:
                    time.sleep(60)
    return seen

pipeline = ghee.read({numbers!r}, batch_size=10, epochs=2).map(same, replicas=2).loop(train, replicas={ranks})
if __name__ == "__main__":
    run = ghee.run(pipeline, progress=False)
"""


@pytest.mark.parametrize(("before", "after", "replicas"), [(1, 1, 2), (1, 2, 3), (2, 1, 1), (2, 2, 2)])
def test_a_killed_driver_leaves_nothing_and_its_run_is_resumed(
    numbers: str, tmp_path: Path, before: int, after: int, replicas: int
) -> None:
    mark, script = tmp_path / "go-on", tmp_path / "job.py"
    script.write_text(SCRIPT.format(mark=str(mark), numbers=numbers, ranks=before))
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    for line in driver.stdout:
        if "REACHED" in line:
            break
    ranks = [os.pidfd_open(pid) for pid in _descendants(driver.pid)]
    driver.kill()
    driver.wait()
    driver.stdout.close()
    assert len(ranks) >= before + 2
    for pidfd in ranks:
        assert select.select([pidfd], [], [], 30)[0], "a process outlives its driver"
        os.close(pidfd)
    run_id = max(path.parent.name for path in (home() / "runs").glob("*/journal"))
    mark.touch()
    run = ghee.resume(run_id, options={"train": {"replicas": after}, "same": {"replicas": replicas}}, progress=False)
    kept = 6  # the last checkpoint before batch 8
    late = rows([of_rank[kept:] for of_rank in run.results["train"]])
    assert all(count == 1 for count in late.values())
    assert sum(late.values()) == 2 * ROWS - before * kept * BATCH
    if after >= before:  # else what the ranks that are no more had is not in the results
        early = rows([of_rank[:kept] for of_rank in run.results["train"][:before]])
        assert early + late == EVERYTHING
    with pytest.raises(CheckpointError, match="has finished"):
        ghee.resume(run_id)
    command = [sys.executable, "-m", "ghee.cli", "resume", run_id]
    said = subprocess.run(command, check=False, capture_output=True, text=True)
    assert said.returncode == 2
    assert "has finished" in said.stderr


def _descendants(driver: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = []
    for pid in parents:
        at = pid
        while at in parents and at != driver:
            at = parents[at]
        if at == driver and pid != driver:
            found.append(pid)
    return found


@pytest.mark.parametrize("on", ["inline", "local"])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_state_is_small_and_a_run_goes_on_after_it(numbers: str, on: str, ordered: bool) -> None:
    def look(batches: ghee.Batches) -> list[tuple[list[int], dict[str, object]]]:
        return [(batch["n"].to_pylist(), batches.state()) for batch in batches]

    def collect(batches: ghee.Batches) -> list[list[int]]:
        return [batch["n"].to_pylist() for batch in batches]

    source = ghee.read(numbers, batch_size=BATCH, epochs=2, shuffle=3)
    taken = ghee.run(source.loop(look, name="train", ordered=ordered), on=on, progress=False).result
    assert max(len(json.dumps(state)) for _, state in taken) < 120
    for at in (0, 39, 40, 79) if on == "local" else (0, 1, 17, 38, 39, 40, 41, 78, 79):
        run = ghee.run(source.loop(collect, name="train", ordered=ordered), on=on, progress=False, resume=taken[at][1])
        if ordered:
            assert run.result == [batch for batch, _ in taken[at + 1 :]]
        else:
            assert Counter(map(tuple, run.result)) == Counter(tuple(batch) for batch, _ in taken[at + 1 :])


def test_a_resume_of_something_else_is_refused(numbers: str) -> None:
    def stop(batches: ghee.Batches) -> dict[str, object]:
        next(iter(batches))
        return batches.state()

    pipeline = ghee.read(numbers, batch_size=BATCH).loop(stop, name="train")
    state = ghee.run(pipeline, on="inline", progress=False).result
    with pytest.raises(CheckpointError, match="has no checkpoint 7"):
        ghee.run(pipeline, on="inline", progress=False, resume={**state, "checkpoint": 7})
    other = ghee.read(numbers, batch_size=BATCH).map(same).loop(stop, name="train")
    with pytest.raises(CheckpointError, match="must be the same"):
        ghee.run(other, on="inline", progress=False, resume=state["run"])
    pq.write_table(pa.table({"n": range(51)}), f"{numbers}/0.parquet")
    with pytest.raises(CheckpointError, match="a file has changed"):
        ghee.run(pipeline, on="inline", progress=False, resume=state)
    with pytest.raises(CheckpointError, match="there is no run"):
        ghee.resume("20000101-000000-abcdef")


def test_checkpoint_outside_of_a_loop_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="loop stage"):
        ghee.checkpoint({"a": 1})
    with pytest.raises(CheckpointError, match="loop stage"):
        ghee.restored()


def test_ranks_that_do_not_make_a_checkpoint_together_are_told(numbers: str) -> None:
    def only_the_first(batches: ghee.Batches) -> None:
        for number, _ in enumerate(batches):
            if number == 2 and ghee.rank() == 0:
                ghee.checkpoint([number])

    with pytest.raises(CheckpointError, match="all ranks"):
        ghee.run(ghee.read(numbers, batch_size=BATCH).loop(only_the_first, replicas=2), on="inline", progress=False)


def test_a_value_that_does_not_pickle_is_an_error_in_the_loop(numbers: str) -> None:
    def wrong(batches: ghee.Batches) -> None:
        next(iter(batches))
        ghee.checkpoint(n for n in range(3))

    with pytest.raises(CheckpointError, match="cannot be pickled"):
        ghee.run(ghee.read(numbers, batch_size=BATCH).loop(wrong), on="inline", progress=False)


def test_a_journal_is_read_up_to_its_last_whole_record(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for number in range(5):
        journal.append(kind="checkpoint", number=number, text="a line\nand another")
    with pytest.raises(CheckpointError, match="is running"):
        Journal(tmp_path / "journal")
    journal.close()
    data = (tmp_path / "journal").read_bytes()
    ends = [at.end() for at in re.finditer(rb"\n", data)]
    assert len(ends) == 5
    for cut in range(len(data) + 1):
        records, length = parse(data[:cut])
        assert [record["number"] for record in records] == list(range(sum(end <= cut for end in ends)))
        assert length == max((end for end in ends if end <= cut), default=0)
    for at in re.finditer(rb"number", data):  # a flipped bit ends it as well
        broken = bytearray(data)
        broken[at.start()] ^= 1
        assert len(parse(bytes(broken))[0]) == data[: at.start()].count(b"\n")
    (tmp_path / "journal").write_bytes(data[:-3])
    again = Journal(tmp_path / "journal")
    assert len(again.records) == 4
    again.append(kind="end")
    again.close()
    assert len(parse((tmp_path / "journal").read_bytes())[0]) == 5
