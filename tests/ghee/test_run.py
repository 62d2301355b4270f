"""What a user writes, run as MPI processes and as threads: each line of the table is a pipeline and what must come of it."""

from __future__ import annotations

import functools
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import ghee

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

ROWS = 10  # rows in a batch


@pytest.fixture(autouse=True)
def ghee_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GHEE_HOME", str(tmp_path / "ghee"))


# ── the user's functions ─────────────────────────────────────────────────────────────────────────────────────────────


def batches_of(count, rows=ROWS):
    """`count` batches, numbered through: {"n": 0 .. 9}, {"n": 10 .. 19}, ..."""
    return [{"n": np.arange(number * rows, (number + 1) * rows)} for number in range(count)]


def double(batch):
    return {"n": batch["n"] * 2}


def halves(batch):
    yield {"n": batch["n"][: ROWS // 2]}
    yield None
    yield {"n": batch["n"][ROWS // 2 :]}


def only_even_batches(batch):
    return batch if batch["n"][0] // ROWS % 2 == 0 else None


def add(batch, number):
    return {"n": batch["n"] + number}


class Adder:
    """Counts in files how often it was made and closed."""

    def __init__(self, folder, number=1):
        self.folder, self.number = folder, number
        (folder / f"made-{id(self)}-{os.getpid()}-{threading.get_ident()}").touch()

    def __call__(self, batch):
        return {"n": batch["n"] + self.number}

    def close(self):
        (self.folder / f"closed-{id(self)}-{os.getpid()}-{threading.get_ident()}").touch()


def rows_in(batch):
    return np.asarray(batch["n"]).tolist()


def collect(batches):
    """All rows, epoch by epoch."""
    return [[int(row) for batch in epoch for row in rows_in(batch)] for epoch in batches.epochs()]


def collect_flat(batches):
    return [int(row) for batch in batches for row in rows_in(batch)]


def count(batches):
    """Rows of each batch, epoch by epoch, and where this rank is."""
    return [[len(batch["n"]) for batch in epoch] for epoch in batches.epochs()], ghee.rank(), ghee.size(), ghee.stage()


def first_of_each_epoch(batches):
    found = []
    for epoch in batches.epochs():
        for batch in epoch:
            found.append((epoch.number, int(batch["n"][0])))
            break
    return found


def return_early(batches):
    for batch in batches:
        return int(batch["n"][0])
    return None


def yield_sums(batches):
    for batch in batches:
        yield {"sum": np.array([batch["n"].sum()])}
    return "done"


def pass_on(last):
    def loop(batches):
        yield from batches
        yield {"n": np.array([last])}

    return loop


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Case:
    make: Callable[[Path], ghee.Pipeline]
    check: Callable[[ghee.Run, Path], Any]


def numbers(count, times=1):
    return [times * number for number in range(count)]


def write_parquet(path, rows, group=20):
    pq.write_table(pa.table({"n": range(rows), "k": [number % 2 for number in range(rows)]}), path, row_group_size=group)
    return path


def hive(folder):
    for day in (1, 2):
        (folder / "in" / f"day={day}").mkdir(parents=True)
        write_parquet(folder / "in" / f"day={day}" / "part.parquet", 5)
    return folder / "in"


def days(batches):
    return sorted(pair for batch in batches for pair in zip(batch["day"].to_pylist(), batch["n"].to_pylist(), strict=True))


def two_loops_and_a_list(ready):
    return ghee.branches(ready.loop(collect), ready.loop(collect), ready.write([]))


def fresh_iterator():
    return iter(batches_of(2))


def columns_of(batches):
    return sorted({name for batch in batches for name in batch.schema.names})


def made_and_closed(folder):
    names = [path.name.split("-", 1) for path in folder.iterdir() if path.name.startswith(("made-", "closed-"))]
    made = {rest for kind, rest in names if kind == "made"}
    assert made == {rest for kind, rest in names if kind == "closed"}, "each one made is closed, by its own thread"
    return len(made)


def check_result(expected, sort=False):
    def check(handle, folder):
        assert (sorted(handle.result) if sort else handle.result) == expected

    return check


def check_rows(*expected_by_epoch):
    """The rows of each epoch, in any order."""

    def check(handle, folder):
        assert [sorted(epoch) for epoch in handle.result] == [sorted(expected) for expected in expected_by_epoch]
        assert handle.report.balanced

    return check


def check_class(expected_made):
    def check(handle, folder):
        assert sorted(handle.result) == [number + 1 for number in range(6 * ROWS)]
        assert made_and_closed(folder) == expected_made

    return check


def check_written_list(handle, folder):
    assert sorted(int(batch["n"][0]) for batch in handle.result) == numbers(4, 2 * ROWS)


def check_written_folder(handle, folder):
    assert handle.result == str(folder / "out")
    table = ds.dataset(folder / "out", format="parquet").to_table()
    assert sorted(table["n"].to_pylist()) == numbers(40, 2)


def check_branches(handle, folder):
    assert {name: [sorted(epoch) for epoch in rows] for name, rows in handle.result.items() if name != "write"} == {
        "collect": [numbers(30, 2)],
        "collect-2": [numbers(30, 2)],
    }
    assert sorted(int(row) for batch in handle.result["write"] for row in batch["n"]) == numbers(30, 2)


def check_shuffled(handle, folder):
    first, second = handle.result
    assert sorted(first) == sorted(second) == numbers(200)
    assert first != numbers(200)
    assert first != second, "another order in each epoch"


def check_tail(rows_by_rank, **figures):
    """`rows_by_rank`: sizes of the batches of each rank, in any order of ranks; every rank has as many batches."""

    def check(handle, folder):
        results = handle.results["count"]
        assert sorted(sorted(sizes) for (sizes,), *_ in results) == rows_by_rank
        report = handle.report.stage("count")
        assert {name: getattr(report, name) for name in figures} == figures
        assert handle.report.balanced

    return check


def check_places(handle, folder):
    assert sorted(place[1:] for place in handle.results["trainer"]) == [
        (0, 3, "trainer"),
        (1, 3, "trainer"),
        (2, 3, "trainer"),
    ]


def check_yielded(handle, folder):
    assert sorted(int(batch["sum"][0]) for batch in handle.result) == [int(batch["n"].sum()) for batch in batches_of(4)]
    assert handle.results == {"yield_sums": ["done"]}
    assert handle.report.balanced


def check_said_last(handle, folder):
    assert sorted(int(batch["n"][0]) for batch in handle.result) == [0, 0, 10, 10, 100, 200]
    assert handle.report.balanced


def read(count=6, **options):
    return ghee.read(batches_of(count), **options)


def halves_of_table(batch):
    middle = batch.num_rows // 2
    yield batch.slice(0, middle)
    yield batch.slice(middle)


def check_generator(handle, folder):
    (epoch,), *_ = handle.result
    assert epoch == [ROWS // 2] * 12
    assert handle.report.stage("halves").dropped == 0


def check_dropped(handle, folder):
    assert sorted(handle.result[0]) == [n for n in range(60) if n // ROWS % 2 == 0]
    report = handle.report.stage("only_even_batches")
    assert (report.rows, report.dropped) == (60, 30)
    assert handle.report.balanced


def check_object(handle, folder):
    assert sorted(handle.result) == list(range(1, 61))
    assert len(list(folder.glob("closed-*"))) == 1


def check_break(handle, folder):
    assert handle.result == [(0, 0), (1, 0), (2, 0)]
    report = handle.report.stage("first_of_each_epoch")
    assert (report.rows, report.skipped) == (3 * ROWS, 3 * 5 * ROWS)
    assert handle.report.balanced


CASES = {
    "map: function": Case(lambda f: read().map(double, replicas=2).loop(collect), check_rows(numbers(60, 2))),
    "map: lambda with a closure": Case(
        lambda f: read().map((lambda by: lambda batch: {"n": batch["n"] * by})(3)).loop(collect), check_rows(numbers(60, 3))
    ),
    "map: generator": Case(lambda f: read().map(halves).loop(count), check_generator),
    "map: None drops": Case(lambda f: read().map(only_even_batches).loop(collect), check_dropped),
    "map: partial": Case(lambda f: read().map(functools.partial(add, number=7)).loop(collect), check_rows(range(7, 67))),
    "map: class": Case(lambda f: read().map(functools.partial(Adder, f), replicas=2).loop(collect_flat), check_class(2)),
    "map: callable object": Case(lambda f: read().map(Adder(f)).loop(collect_flat), check_object),
    "map: three in a row": Case(
        lambda f: read().map(double, name="a").map(halves, name="b").map(double, name="c").loop(collect),
        check_rows(numbers(60, 4)),
    ),
    "loop: epochs": Case(lambda f: read(epochs=3).map(double).loop(collect), check_rows(*[numbers(60, 2)] * 3)),
    "loop: flat": Case(lambda f: read(epochs=2).loop(collect_flat), check_result(sorted(numbers(60) * 2), sort=True)),
    "loop: early return": Case(lambda f: read(epochs=3).loop(return_early), check_result(0)),
    "loop: break": Case(lambda f: read(epochs=3).loop(first_of_each_epoch, ordered=True), check_break),
    "loop: yields": Case(lambda f: read(4).loop(yield_sums).write([]), check_yielded),
    "loop: yields when its stream has ended": Case(
        lambda f: read(2, epochs=2).loop(pass_on(100), name="a").loop(pass_on(200), name="b").write([]),
        check_said_last,
    ),
    "branches": Case(
        lambda f: two_loops_and_a_list(read(3).map(double)),
        check_branches,
    ),
    "write: list": Case(lambda f: read(4).map(double).write([]), check_written_list),
    "write: folder": Case(lambda f: read(4).map(double).write(str(f / "out"), replicas=2), check_written_folder),
    "files: epochs and shuffle": Case(
        lambda f: ghee.read(str(write_parquet(f / "a.parquet", 200)), batch_size=8, epochs=2, shuffle=5).loop(collect),
        check_shuffled,
    ),
    "files: limit": Case(
        lambda f: ghee.read(str(write_parquet(f / "a.parquet", 200)), limit=33, epochs=2).loop(collect),
        check_rows(numbers(33), numbers(33)),
    ),
    "files: filter and columns": Case(
        lambda f: ghee.read(str(write_parquet(f / "a.parquet", 50)), filter=pc.field("k") == 1, columns=["n"]).loop(collect),
        check_rows(range(1, 50, 2)),
    ),
    "files: columns": Case(
        lambda f: ghee.read(str(write_parquet(f / "a.parquet", 50)), columns=["k"]).loop(columns_of), check_result(["k"])
    ),
    "files: read by a stage of its own": Case(
        lambda f: (
            ghee.read(str(write_parquet(f / "a.parquet", 100)), replicas=2, batch_size=7).map(halves_of_table).loop(collect)
        ),
        check_rows(range(100)),
    ),
    "files: hive folder": Case(
        lambda f: ghee.read(str(hive(f))).loop(days), check_result([(day, n) for day in (1, 2) for n in range(5)])
    ),
    "files: no rows": Case(
        lambda f: ghee.read(str(write_parquet(f / "a.parquet", 0)), epochs=2).loop(collect), check_result([[], []])
    ),
    "iterable: function": Case(
        lambda f: ghee.read(fresh_iterator, epochs=2).loop(collect), check_rows(numbers(20), numbers(20))
    ),
    "iterable: iterator": Case(lambda f: ghee.read(iter(batches_of(2))).loop(collect), check_rows(numbers(20))),
    "iterable: empty": Case(lambda f: ghee.read([], epochs=2).map(double).loop(collect, replicas=2), check_result([[], []])),
    "ordered": Case(
        lambda f: read(40, epochs=2).map(halves, replicas=3).loop(collect, ordered=True), check_result([numbers(400)] * 2)
    ),
    "tail: drop": Case(
        lambda f: read(5).loop(count, replicas=2), check_tail([[10, 10], [10, 10]], tail_dropped=10, padded=0, repeated=0)
    ),
    "tail: pad": Case(
        lambda f: read(5).loop(count, replicas=2, tail="pad"),
        check_tail([[0, 10, 10], [10, 10, 10]], tail_dropped=0, padded=1, repeated=0),
    ),
    "tail: repeat": Case(
        lambda f: read(5).loop(count, replicas=2, tail="repeat"),
        check_tail([[10, 10, 10], [10, 10, 10]], tail_dropped=0, padded=0, repeated=10),
    ),
    "tail: divides": Case(
        lambda f: read(4).loop(count, replicas=2, tail="error"),
        check_tail([[10, 10], [10, 10]], tail_dropped=0, padded=0, repeated=0),
    ),
    "rank and size": Case(lambda f: read(6).loop(count, name="trainer", replicas=3), check_places),
}  # fmt: skip


@pytest.mark.parametrize("on", ["local", "inline"])
@pytest.mark.parametrize("case", CASES)
def test_case(case, on, tmp_path):
    handle = ghee.run(CASES[case].make(tmp_path), on=on, progress=False)
    CASES[case].check(handle, tmp_path)


@pytest.mark.parametrize("on", ["local", "inline"])
def test_tail_error(on):
    with pytest.raises(
        ghee.errors.GheeError, match='epoch 0 has 5 batches for 2 ranks, which does not divide, and tail="error"'
    ):
        ghee.run(read(5).loop(count, replicas=2, tail="error"), on=on, progress=False)


@pytest.mark.parametrize("on", ["local", "inline"])
def test_callback_runs_in_the_drivers_process(on):
    seen = []

    def keep(batch):
        seen.append((os.getpid(), int(batch["n"][0])))

    ghee.run(read(4).map(double, replicas=2).write(keep), on=on, progress=False)
    assert sorted(seen) == [(os.getpid(), first) for first in numbers(4, 2 * ROWS)]


# ── the report and the handle ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("on", ["local", "inline"])
def test_the_report_says_who_waited_for_whom(on):
    def slow_map(batch):
        total = 0
        for number in range(2_000_000):  # over a second in all: less is no ground for advice
            total += number
        return batch

    def fast_loop(batches):
        return sum(len(batch["n"]) for batch in batches)

    handle = ghee.run(read(30).map(slow_map).loop(fast_loop), on=on, progress=False)
    report = handle.report
    assert handle.result == 300
    assert report.rows_read == 300
    assert report.epochs == 1
    assert report.balanced
    assert {stage.name: (stage.kind, stage.ranks, stage.rows, stage.batches) for stage in report.stages} == {
        "read": ("read", 1, 300, 30),
        "slow_map": ("map", 1, 300, 30),
        "fast_loop": ("loop", 1, 300, 30),
    }
    for stage in report.stages:
        assert stage.worked + stage.waited_input + stage.waited_room == pytest.approx(1.0)
    assert report.stage("slow_map").worked > report.stage("fast_loop").worked
    assert report.stage("fast_loop").waited_input > 0.5
    assert report.limited_by.startswith("slow_map limits the run: fast_loop waited")
    assert report.advice.startswith(("give slow_map ", "this machine's"))
    assert (handle.folder / "report.json").read_text() == report.to_json()
    assert "the ledger balances" in str(report)


def test_logs_hold_what_ranks_print():
    def chatty(batch):
        print("batch", int(batch["n"][0]))
        return batch

    def trainer(batches):
        for _ in batches:
            pass
        print("trained", file=sys.stderr)

    handle = ghee.run(read(2).map(chatty).loop(trainer, replicas=2), progress=False)
    assert handle.logs() == {"chatty-0": "batch 0\nbatch 10\n", "trainer-0": "trained\n", "trainer-1": "trained\n"}
    assert set(handle.logs("chatty")) == {"chatty-0"}


@pytest.mark.parametrize("on", ["local", "inline"])
def test_without_waiting(on, tmp_path):
    """The loop goes on when the test has seen that the run is under way."""
    go = tmp_path / "go"
    os.mkfifo(go)

    def train(batches):
        rows = sum(len(batch["n"]) for batch in batches)
        go.read_text()
        return rows

    handle = ghee.run(read(3).loop(train), on=on, wait=False, progress=False)
    assert not handle.wait(0)
    assert handle.report.run == handle.id
    go.write_text("go")
    assert handle.result == 30
    assert handle.results == {"train": [30]}
    assert handle.wait(0)


def test_cancel(tmp_path):
    started = tmp_path / "started"
    os.mkfifo(started)

    def train(batches):
        started.write_text(str(os.getpid()))
        threading.Event().wait()

    handle = ghee.run(read(3).loop(train), wait=False, progress=False)
    rank = os.pidfd_open(int(started.read_text()))
    handle.cancel()
    assert handle.wait(0)
    assert select.select([rank], [], [], 10)[0], "the rank outlived cancel()"
    os.close(rank)
    with pytest.raises(ghee.errors.CancelledError, match="the run was cancelled"):
        _ = handle.result
    handle.cancel()  # a second time does nothing


def test_cancel_inline():
    """Threads cannot be killed: the function ends when it asks for the next batch."""
    inside = threading.Event()

    def endless():
        while True:
            inside.set()
            yield {"n": np.zeros(1)}

    handle = ghee.run(ghee.read(endless).loop(collect), on="inline", wait=False, progress=False)
    inside.wait(60)
    handle.cancel()
    with pytest.raises(ghee.errors.CancelledError):
        handle.results  # noqa: B018


NOTEBOOK = """
import numpy as np
import ghee
factor = 3
class Model:
    def __call__(self, batch): return scale(batch)

def scale(batch): return {"n": batch["n"] * factor}

def train(batches): return int(sum(batch["n"].sum() for batch in batches)), type(Model()).__module__

handle = ghee.run(ghee.read([{"n": np.arange(5)}] * 2).map(Model).loop(train), progress=False)
print("came", "back", handle.result)
"""


def test_functions_of_a_notebook(tmp_path):
    command = [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--HistoryManager.enabled=False"]
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")}
    shell = subprocess.run(
        command, input=NOTEBOOK, capture_output=True, text=True, timeout=100, env=environment, check=False
    )
    assert "came back (60, '__main__')" in shell.stdout, shell.stdout + shell.stderr


@pytest.mark.parametrize("on", ["inline", "local"])
def test_a_batch_larger_than_the_credit_passes_with_a_warning(on, capfd):
    def large(batch):
        return {"x": np.full(1 << 18, batch["x"][0])}

    def total(batches):
        return sum(float(batch["x"][0]) * len(batch["x"]) for batch in batches)

    batches = [{"x": np.array([float(number)])} for number in range(5)]
    pipeline = ghee.read(batches).map(large, credit="1Mi").loop(total, credit="1Mi")
    said = "a batch of 2Mi from stage 'large' is larger than its credit of 1Mi"
    if on == "inline":
        with pytest.warns(RuntimeWarning, match=said) as warned:
            run = ghee.run(pipeline, on=on, progress=False)
        assert len(warned) == 1
    else:
        run = ghee.run(pipeline, on=on, progress=False)
        told = capfd.readouterr()
        assert (told.out + told.err).count(said) == 1
    assert run.result == 10 * (1 << 18)


def test_the_public_names():
    assert set(ghee.__all__) == {
        "read", "branches", "auto", "Pipeline", "run", "resume", "Run", "Kubernetes", "Batches", "Epoch", "checkpoint",
        "restored", "rank", "size", "stage", "errors",
    }  # fmt: skip
    assert (ghee.rank(), ghee.size(), ghee.stage()) == (0, 1, "")
