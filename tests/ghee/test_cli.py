"""The command `ghee`: as a process where it runs something, in this process for each wrong input."""

from __future__ import annotations

import enum
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ghee
from ghee.cli import run_command
from ghee.pipeline_file import convert, find_pipeline

FILE = '''\
"""A user's file, with a module beside it."""
from pathlib import Path
from typing import Literal

import ghee
import beside_it

def double(batch):
    return {"x": [beside_it.twice(x) for x in batch["x"]]}

def total(batches):
    return sum(sum(batch["x"]) for batch in batches)

def divide(batches):
    for batch in batches:
        batch["x"][0] / 0

def wait(batches):
    import os, threading
    print("waiting", os.getpid(), flush=True)
    threading.Event().wait()

source = ghee.read([{"x": [1, 2, 3]}, {"x": [4, 5]}])
pipeline = source.map(double).loop(total)
failing = source.loop(divide)
stuck = source.loop(wait)
number = 3

def make(times: int = 1, name="total", kind: Literal["a", "b"] = "a", *, needed: float):
    assert isinstance(times, int) and isinstance(needed, float)
    return ghee.read([{"x": [times]}] * 2).map(double).loop(total, name=name)

def make_nothing():
    return 7

def make_error():
    raise LookupError("no such table")
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the user's files; what loading them changes in this process is undone."""
    monkeypatch.setenv("GHEE_HOME", str(tmp_path / "ghee"))
    (tmp_path / "my-pipelines.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("import ghee\nx = = 3\n")
    (tmp_path / "lacking.py").write_text("import ghee\nimport no_such_thing\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "inner.py").write_text("import ghee\npipeline = ghee.read([1]).loop(print)\n")
    (tmp_path / "beside_it.py").write_text("def twice(x):\n    return 2 * x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def ghee_process(*arguments: str, **options) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).parent / "ghee"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# ── real processes ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_prints_the_report_and_the_result(folder):
    with ghee_process("run", "my-pipelines.py:pipeline", "--set", "double.replicas=2", "--no-progress") as process:
        out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    assert "5 rows read in 1 epochs; the ledger balances" in out
    assert "total returned 30" in out
    assert any(line.split()[:3] == ["double", "2", "5"] for line in out.splitlines()), "two ranks, five rows"


def test_a_function_that_raises_shows_the_users_line_first(folder):
    with ghee_process("run", "my-pipelines.py:failing", "--no-progress") as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 1
    first, error, where, hint = err.splitlines()
    assert first.endswith('my-pipelines.py:16 in divide: batch["x"][0] / 0')
    assert error == "ZeroDivisionError: division by zero"
    assert where == "in stage 'divide', rank 0, batch 0 of split 0 in epoch 0"
    assert hint == "(--traceback shows the rank's traceback)"
    assert "Traceback" not in out


def test_ctrl_c_is_one_line_and_ends_every_process(folder):
    with ghee_process("run", "my-pipelines.py:stuck", "--no-progress", start_new_session=True) as process:
        assert process.stdout is not None
        pid = next(int(line.split()[-1]) for line in process.stdout if "waiting" in line)
        rank = os.pidfd_open(pid)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("ghee: interrupted after ")
    assert err.count("\n") == 1
    gone, _, _ = select.select([rank], [], [], 10)  # readable once the process has ended
    os.close(rank)
    assert gone, "the rank outlived the command"


def test_cancel_ends_a_run_of_another_process(folder, capsys):
    with ghee_process("run", "my-pipelines.py:stuck", "--no-progress") as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "waiting" in line)
        (run,) = (folder / "ghee" / "runs").iterdir()
        assert run_command(["cancel", run.name]) == 0
        assert capsys.readouterr().out == f"run {run.name} is cancelled\n"
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "CancelledError: the run was cancelled (ghee cancel)" in err
    assert run_command(["cancel", run.name]) == 2
    assert f"run {run.name} is not running" in capsys.readouterr().err


def test_help_names_the_commands():
    with ghee_process("--help") as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert {"run", "explain"} <= {line.split()[0] for line in out.splitlines() if line.startswith("    ")}


# ── in this process ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_inline(folder, capsys):
    assert run_command(["run", "my-pipelines.py:make", "--on", "inline", "--set", "needed=1", "--set", "times=5"]) == 0
    assert "total returned 20" in capsys.readouterr().out


def test_explain_shows_the_tree_and_runs_nothing(folder, capsys):
    code = run_command(["explain", "my-pipelines.py:stuck", "--set", "wait.memory=2Gi", "--set", "read.limit=10"])
    assert code == 0
    assert capsys.readouterr().out == (
        "read a list  (batch_size=4096, limit=10, epochs=1)\n"
        "└─ loop wait  (replicas=1, cpus=1, memory=2Gi, credit=96Mi, tail=drop)\n"
    )
    assert not (folder / "ghee").exists()


def test_a_stage_whose_name_holds_signs(folder):
    settings = ["name=lr=0.1", "needed=2", "lr=0.1.tail=pad", "lr=0.1.replicas=3", "double.cpus=500m"]
    assert str(find_pipeline("my-pipelines.py:make", settings)) == (
        "read a list  (batch_size=4096, epochs=1)\n"
        "└─ map double  (replicas=1, cpus=0.5, credit=96Mi)\n"
        "   └─ loop lr=0.1  (replicas=3, cpus=1, credit=96Mi, tail=pad)"
    )


def test_a_module_in_a_package(folder):
    assert find_pipeline("package.inner:pipeline").ends[0].name == "builtin_function_or_method"


WRONG = {
    "no colon": (["my-pipelines.py"], "'my-pipelines.py' is not FILE:PIPELINE, such as train.py:pipeline"),
    "no file": (["nowhere.py:pipeline"], "nowhere.py: there is no such file (the current folder is"),
    "no module": (["nowhere.inner:pipeline"], "no module of this name can be imported"),
    "no name": (
        ["my-pipelines.py:pipelin"],
        "has no 'pipelin'; pipelines and functions in it: double, total, divide, wait, source, pipeline, failing, stuck",
    ),
    "no pipeline": (["my-pipelines.py:number"], "'number' in my-pipelines.py is a int: expected a pipeline or a function"),
    "returns none": (["my-pipelines.py:make_nothing"], "make_nothing() returned 7: expected a pipeline"),
    "raises": (["my-pipelines.py:make_error"], 'make_error: raise LookupError("no such table")\nLookupError: no such table'),
    "syntax": (["broken.py:pipeline"], "broken.py:2: x = = 3\nSyntaxError: invalid syntax"),
    "import": (["lacking.py:p"], "import no_such_thing\nModuleNotFoundError: No module named 'no_such_thing'"),
    "ends nowhere": (["my-pipelines.py:source"], "PipelineError: the pipeline ends in 'read', whose batches go nowhere"),
    "arguments of a pipeline": (
        ["my-pipelines.py:pipeline", "--set", "rate=3"],
        "--set rate=3: 'pipeline' is a pipeline, which takes no arguments; an option of a stage is set with stage.option",
    ),
    "unknown argument": (
        ["my-pipelines.py:make", "--set", "tmes=3"],
        "--set tmes=3: make() takes times: int = 1, name='total', kind: Literal['a', 'b'] = 'a', needed: float",
    ),
    "missing argument": (["my-pipelines.py:make"], "give --set needed=..."),
    "wrong types, all at once": (
        ["my-pipelines.py:make", "--set", "times=2.5", "--set", "needed=much", "--set", "kind=c"],
        "--set times=2.5: expected a whole number; --set needed=much: expected a number; --set kind=c: expected one of a, b",
    ),
    "no equals": (["my-pipelines.py:make", "--set", "times"], "--set times: expected name=value or stage.option=value"),
    "unknown stage and option and value": (
        ["my-pipelines.py:pipeline", "--set", "treble.cpus=1", "--set", "double.tail=pad", "--set", "total.replicas=no"],
        "there is no stage 'treble'; the stages are read, double, total; stage 'double' has no option 'tail'; it has "
        "replicas, ranks, cpus, memory, gpus, image, credit; stage 'total': replicas='no': expected a whole number",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_said_and_nothing_starts(folder, capsys, case):
    arguments, message = WRONG[case]
    assert run_command(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert not (folder / "ghee").exists()


def test_traceback_is_shown_on_request(folder, capsys):
    assert run_command(["run", "my-pipelines.py:failing", "--on", "inline", "--traceback"]) == 1
    assert capsys.readouterr().err.count("Traceback (most recent call last)") == 2


@pytest.mark.parametrize(
    "arguments", [["walk"], ["run"], ["run", "a.py:b", "--on", "mars"], ["explain", "a.py:b", "--on", "inline"]]
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(arguments)
    assert caught.value.code == 2
    assert "usage: ghee" in capsys.readouterr().err


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Colour(enum.Enum):
    red = 1
    blue = 2


VALUES = [
    ("3", int, 3), ("3", float, 3.0), ("3", str, "3"), ("3", None, 3), ("a b", None, "a b"), ("no", bool, False),
    ("true", bool, True), ("a/b", Path, Path("a/b")), ("red", Colour, Colour.red), ("2", Literal[1, 2], 2),
    ("none", int | None, None), ("7", int | None, 7), ("7", str | int, 7), ("x", str | int, "x"),
    ("0.1, 0.2", list[float], [0.1, 0.2]), ("[1,2]", list[int], [1, 2]), ("a,b", tuple[str, ...], ("a", "b")),
    ("", list[int], []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "value"), VALUES)
def test_values(text, kind, value):
    made = convert(text, kind)
    assert made == value
    assert type(made) is type(value)


@given(st.integers() | st.floats(allow_nan=False) | st.booleans() | st.text() | st.lists(st.integers()).map(tuple))
def test_a_value_comes_back_from_its_text(value):
    assert convert(str(value), type(value) if not isinstance(value, tuple) else tuple[int, ...]) == value


def test_override_keeps_branches_and_leaves_the_old_pipeline():
    ready = ghee.read("folder", epochs=3, shuffle=1).map(str, name="prepare", replicas=2)
    both = ghee.branches(ready.loop(print, name="a", ordered=True), ready.write("out", mode="append"))
    before = str(both)
    from ghee.pipeline import override

    after = override(both, {"prepare": {"replicas": 5}, "write": {"replicas": 2}, "read": {"epochs": 1}})
    assert str(both) == before
    assert str(after) == (
        before.replace("prepare  (replicas=2", "prepare  (replicas=5")
        .replace("out  (replicas=1", "out  (replicas=2")
        .replace("epochs=3", "epochs=1")
    )
    assert after.ends[0].parent is after.ends[1].parent, "one stage feeds both, as before"
    assert override(both, {}).ends[0].ordered
