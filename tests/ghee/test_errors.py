"""Every way in which a run can fail: what the user is told, and that nothing of the run is left (conftest.py)."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pyarrow.parquet
import pytest

import ghee
from ghee.errors import (
    BatchError,
    PickleError,
    RankError,
    RankKilledError,
    RankStartError,
    RemoteTraceback,
    SchemaError,
    SourceCorruptError,
    SourceNotFoundError,
)
from ghee.pipeline import Pipeline

ENDS_WITHIN = 10.0
"""Seconds after which a failed run must be over. The promise is two; a machine that is busy is given more."""

both = pytest.mark.parametrize("on", ["local", "inline"])

Case = Callable[[type[Exception]], tuple[Pipeline, str, str]]
"""Gives a pipeline that raises, the stage, and what is said of the batch."""


def source() -> Pipeline:
    """Two batches of five rows."""
    return ghee.read([numpy.arange(5), numpy.arange(5, 10)])


# The functions of this file stand inside others: ranks cannot import a test module, so they must travel by value.


def a_loop() -> Callable[[Any], int]:
    """A loop that takes everything."""
    return lambda batches: sum(1 for _ in batches)


def case_map(boom: type[Exception]) -> tuple[Pipeline, str, str]:
    """A function raises in its second batch."""

    def work(batch: Any) -> Any:
        if batch[0] == 5:
            raise boom("here", 7)
        return batch

    return source().map(work).loop(a_loop()), "work", "batch 1 of split 0 in epoch 0"


def case_generator(boom: type[Exception]) -> tuple[Pipeline, str, str]:
    """A generator function raises after its first batch."""

    def work(batch: Any) -> Iterator[Any]:
        yield batch
        raise boom("here", 7)

    return source().map(work).loop(a_loop()), "work", "batch 0 of split 0 in epoch 0"


def case_constructor(boom: type[Exception]) -> tuple[Pipeline, str, str]:
    """A class raises while it is built."""

    class Work:
        def __init__(self) -> None:
            raise boom("here", 7)

        def __call__(self, batch: Any) -> Any:
            return batch

    return source().map(Work).loop(a_loop()), "Work", ""


def case_call(boom: type[Exception]) -> tuple[Pipeline, str, str]:
    """An instance raises when it is called."""

    class Work:
        def __call__(self, batch: Any) -> Any:
            raise boom("here", 7)

    return source().map(Work).loop(a_loop()), "Work", "batch 0 of split 0 in epoch 0"


def case_loop(boom: type[Exception]) -> tuple[Pipeline, str, str]:
    """A loop raises at its first batch."""

    def train(batches: Any) -> None:
        for _ in batches:
            raise boom("here", 7)

    return source().map(lambda batch: batch).loop(train), "train", "batch 0 of split 0 in epoch 0"


def case_loop_generator(boom: type[Exception]) -> tuple[Pipeline, str, str]:
    """A loop that yields batches raises."""

    def predict(batches: Any) -> Iterator[Any]:
        for batch in batches:
            yield batch
            raise boom("here", 7)

    return source().loop(predict).write([]), "predict", "batch 0 of split 0 in epoch 0"


def case_callback(boom: type[Exception]) -> tuple[Pipeline, str, str]:
    """The callback of a write raises."""

    def store(batch: Any) -> None:
        raise boom("here", 7)

    return source().map(lambda batch: batch).write(store), "write", "batch 0 of split 0 in epoch 0"


def case_source(boom: type[Exception]) -> tuple[Pipeline, str, str]:
    """The iterable that is read raises after its first batch."""

    def batches() -> Iterator[Any]:
        yield numpy.arange(5)
        raise boom("here", 7)

    return ghee.read(batches).map(lambda batch: batch).loop(a_loop()), "read", ""


CASES = [
    case_map, case_generator, case_constructor, case_call, case_loop, case_loop_generator, case_callback, case_source,
]  # fmt: skip


def make_exception(kind: str) -> type[Exception]:
    """An exception class of the user's: one that pickles as it is, and one that does not unpickle."""
    if kind == "plain":

        class Boom(Exception):
            pass

        return Boom

    class Stubborn(Exception):
        def __init__(self, place: str, number: int) -> None:
            super().__init__(f"{place} went wrong")
            self.number = number
            self.lock = threading.Lock()

    return Stubborn


@both
@pytest.mark.parametrize(
    ("case", "kind"),
    [*((case, "plain") for case in CASES), *((case, "does not unpickle") for case in (case_map, case_callback))],
    ids=lambda value: value if isinstance(value, str) else value.__name__.removeprefix("case_"),
)
def test_what_a_function_raises_reaches_the_user(case: Case, kind: str, on: Any) -> None:
    boom = make_exception(kind)
    pipeline, stage, batch = case(boom)
    with pytest.raises(boom) as caught:
        ghee.run(pipeline, on=on)
    error = caught.value
    if kind != "plain":
        assert (error.args, error.number) == (("here went wrong",), 7)  # type: ignore[attr-defined]
    else:
        assert error.args == ("here", 7)
    line, place = error.__notes__[0].splitlines()
    assert line.startswith(__file__)
    assert line.endswith('raise boom("here", 7)')
    assert place == f"stage {stage!r}, rank 0" + (f", {batch}" if batch else place.partition("rank 0")[2])
    assert isinstance(error.__cause__, RemoteTraceback)
    assert 'raise boom("here", 7)' in str(error.__cause__)
    assert "packages/ghee" not in str(error.__cause__).partition("File")[2].partition("\n")[0]  # the user's frame is first


def test_a_failure_ends_the_run_though_all_other_ranks_are_busy_for_good(tmp_path: Path) -> None:
    failed = tmp_path / "failed"

    def wait_for_ever(batch: Any) -> Any:
        if batch[0] == 0:
            signal.pause()
        return batch

    def train(batches: Any) -> None:
        for _ in batches:
            failed.write_text(str(time.time()))
            raise ValueError("in rank", ghee.rank())

    pipeline = source().map(wait_for_ever, replicas=2).loop(train)
    with pytest.raises(ValueError, match="in rank"):
        ghee.run(pipeline)
    assert time.time() - float(failed.read_text()) < ENDS_WITHIN


@both
def test_exceptions_that_are_no_errors_do_not_end_the_users_program(on: Any) -> None:
    def leave(batch: Any) -> Any:
        sys.exit(3)

    with pytest.raises(RankError, match=r"SystemExit\(3\)") as caught:
        ghee.run(source().map(leave).loop(a_loop()), on=on)
    assert "sys.exit(3)" in caught.value.__notes__[0]
    assert "stage 'leave', rank 0, batch 0" in caught.value.__notes__[0]


@both
def test_an_exception_that_cannot_even_say_what_it_is(on: Any) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def work(batch: Any) -> Any:
        raise Mute("hidden")

    with pytest.raises(Mute) as caught:
        ghee.run(source().map(work).loop(a_loop()), on=on)
    assert caught.value.args == ("hidden",)


@both
def test_a_base_exception_of_the_users_own_ends_the_run(on: Any) -> None:
    class Abandon(BaseException):
        pass

    def work(batch: Any) -> Any:
        raise Abandon("all hope")

    with pytest.raises(RankError, match=r"Abandon\(all hope\)"):
        ghee.run(source().map(work).loop(a_loop()), on=on)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────


def table(rows: int, kind: Any = None) -> pa.Table:
    """Numbers in one column."""
    return pa.table({"x": pa.array(range(rows), kind or pa.int64())})


@both
def test_a_missing_file(tmp_path: Path, on: Any) -> None:
    pipeline = ghee.read(str(tmp_path / "absent.parquet")).map(lambda batch: batch).loop(a_loop())
    with pytest.raises(SourceNotFoundError, match=r"absent\.parquet"):
        ghee.run(pipeline, on=on)


@both
def test_a_pattern_that_matches_nothing(tmp_path: Path, on: Any) -> None:
    pipeline = ghee.read(str(tmp_path / "*.parquet")).map(lambda batch: batch).loop(a_loop())
    with pytest.raises(SourceNotFoundError, match=r"\*\.parquet"):
        ghee.run(pipeline, on=on)


@both
@pytest.mark.parametrize("damage", ["noise", "truncated", "empty"])
def test_a_damaged_file_is_found_before_anything_starts(tmp_path: Path, damage: str, on: Any) -> None:
    pyarrow.parquet.write_table(table(1000), tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    content = {"noise": os.urandom(1000), "truncated": whole[: len(whole) // 2], "empty": b""}[damage]
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(SourceCorruptError, match=r"bad\.parquet"):
        ghee.run(ghee.read(str(tmp_path / "*.parquet")).map(lambda batch: batch).loop(a_loop()), on=on)


@both
def test_a_file_whose_data_is_damaged_is_found_by_the_rank(tmp_path: Path, on: Any) -> None:
    path = tmp_path / "rotten.parquet"
    rows = pa.table({"x": pa.array(numpy.random.default_rng(0).integers(0, 1 << 60, 10_000))})
    pyarrow.parquet.write_table(rows, path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)  # the footer is whole, the first page is not
    path.write_bytes(content)
    with pytest.raises(SourceCorruptError, match=r"rotten\.parquet") as caught:
        ghee.run(ghee.read(str(path)).map(lambda batch: batch, name="reads").loop(a_loop()), on=on)
    assert "stage 'reads', rank 0" in caught.value.__notes__[0]


@both
def test_files_of_different_schemas(tmp_path: Path, on: Any) -> None:
    pyarrow.parquet.write_table(table(10), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(table(10, pa.string() and pa.float64()), tmp_path / "b.parquet")
    with pytest.raises(SchemaError, match=r"(?s)b\.parquet.*x.*") as caught:
        ghee.run(ghee.read(str(tmp_path / "*.parquet")).map(lambda batch: batch).loop(a_loop()), on=on)
    assert "int64" in str(caught.value)
    assert "double" in str(caught.value)


# ── what cannot travel ───────────────────────────────────────────────────────────────────────────────────────────


@both
def test_a_function_that_does_not_pickle_names_the_object_inside_it(on: Any) -> None:
    inner = {"settings": {"guard": threading.Lock()}}

    def work(batch: Any) -> Any:
        return batch if inner else None

    with pytest.raises(PickleError, match=r"stage 'work'.*`inner\.settings\.guard` is a _thread\.lock"):
        ghee.run(source().map(work).loop(a_loop()), on=on)


def test_a_partial_that_does_not_pickle_names_its_argument() -> None:
    def work(batch: Any, file: Any) -> Any:
        return batch

    with open(os.devnull, "w") as file, pytest.raises(PickleError, match=r"`file` is a _io\.TextIOWrapper"):
        ghee.run(source().map(functools.partial(work, file=file)).loop(a_loop()))


def test_a_module_that_only_the_driver_has(monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = types.ModuleType("ghost")
    exec("def work(batch): return batch", ghost.__dict__)
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    with pytest.raises(ModuleNotFoundError, match="ghost") as caught:
        ghee.run(source().map(ghost.work).loop(a_loop()))
    note = "\n".join(caught.value.__notes__)
    assert "stage 'work', rank 0" in note
    assert "could not be loaded in the rank" in note


@both
def test_a_module_that_is_imported_where_it_is_not(on: Any) -> None:
    def work(batch: Any) -> Any:
        import no_such_module_anywhere

        return no_such_module_anywhere.f(batch)

    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere") as caught:
        ghee.run(source().map(work).loop(a_loop()), on=on)
    assert caught.value.__notes__[0].splitlines()[0].endswith("import no_such_module_anywhere")


@both
@pytest.mark.parametrize("where", ["map", "loop"])
def test_a_result_that_is_no_batch(where: str, on: Any) -> None:
    def work(batch: Any) -> Any:
        return {"x": batch, "guard": threading.Lock()}

    def predict(batches: Any) -> Iterator[Any]:
        for batch in batches:
            yield {"x": batch, "guard": threading.Lock()}

    pipeline = source().map(work).loop(a_loop()) if where == "map" else source().loop(predict).write([])
    with pytest.raises(BatchError, match=r"got a dict that cannot be sent.*_thread\.lock") as caught:
        ghee.run(pipeline, on=on)
    assert f"stage {'work' if where == 'map' else 'predict'!r}, rank 0, batch 0" in caught.value.__notes__[0]


@both
def test_a_result_of_a_loop_that_does_not_pickle(on: Any) -> None:
    def train(batches: Any) -> Any:
        list(batches)
        return threading.Lock()

    with pytest.raises(BatchError, match=r"the result of the loop 'train'.*_thread\.lock"):
        ghee.run(source().loop(train), on=on)


@both
def test_a_loop_that_yields_to_nobody(on: Any) -> None:
    def train(batches: Any) -> Iterator[Any]:
        yield from batches

    with pytest.raises(BatchError, match="no stage comes after it"):
        ghee.run(source().loop(train), on=on)


# ── ranks that die ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT], ids=lambda n: n.name)
def test_a_killed_rank_is_named_with_its_signal(number: signal.Signals) -> None:
    def work(batch: Any) -> Any:
        print("a last word", flush=True)
        os.kill(os.getpid(), number)
        signal.pause()

    with pytest.raises(RankKilledError, match=rf"rank 0 of stage 'work'.*was killed by {number.name}") as caught:
        ghee.run(source().map(work).loop(a_loop()))
    assert "a last word" in str(caught.value)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_of_a_world_is_the_one_that_is_named(victim: int) -> None:
    def train(batches: Any) -> None:
        for _ in batches:
            if ghee.rank() == victim:
                os.kill(os.getpid(), signal.SIGSEGV)
            signal.pause()

    with pytest.raises(RankKilledError, match=rf"rank {victim} of stage 'train'.*was killed by SIGSEGV"):
        ghee.run(source().loop(train, replicas=2))


@pytest.mark.parametrize("code", [0, 3])
def test_a_rank_that_leaves_by_itself(code: int) -> None:
    def work(batch: Any) -> Any:
        os._exit(code)

    with pytest.raises(RankError, match=rf"rank 0 of stage 'work'.*exit code {code}") as caught:
        ghee.run(source().map(work).loop(a_loop()))
    assert not isinstance(caught.value, RankKilledError)


def test_a_rank_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.exit('this interpreter is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RankStartError, match=r"before it had joined the run.*(?s:.*)this interpreter is broken"):
        ghee.run(source().loop(a_loop()))


def test_a_rank_whose_memory_is_limited_raises_a_memory_error() -> None:
    def work(batch: Any) -> Any:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        return numpy.ones((64 << 30,), numpy.uint8)

    with pytest.raises(MemoryError) as caught:
        ghee.run(source().map(work).loop(a_loop()))
    assert "numpy.ones" in caught.value.__notes__[0]


def test_the_users_line_is_named_where_a_compiled_module_raises() -> None:
    def f(batch: Any) -> Any:
        return {"x": batch["nope"]}  # pyarrow raises in a frame of its own source

    with pytest.raises(KeyError) as caught:
        ghee.run(ghee.read([pa.record_batch({"y": [1]})]).map(f).write([]), on="inline")
    assert "test_errors.py" in caught.value.__notes__[0]
    assert 'return {"x": batch["nope"]}' in caught.value.__notes__[0]
