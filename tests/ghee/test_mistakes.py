"""What beginners write: each is caught before anything starts, or named in the end."""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import ghee
from ghee.errors import BatchError, MachineError, PipelineError
from ghee.launch.local import LONGEST_TMPDIR, make_folder


def scaled(batch: Any, scale: float) -> Any:
    return batch


def count(batches: ghee.Batches) -> int:
    return sum(1 for _ in batches)


class Model:
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, batch: Any) -> Any:
        return batch


class TwoInputs:
    def __call__(self, batch: Any, other: Any) -> Any:
        return batch


def over_epochs(batches: Any) -> None:
    for epoch in batches:
        for _ in epoch:
            pass


def some() -> ghee.Pipeline:
    return ghee.read([{"x": np.arange(3)} for _ in range(4)])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (scaled, "missing a required argument: 'scale'"),
        (lambda: None, "too many positional arguments"),
        (Model, "Model is a class, which each rank makes without arguments"),
        (TwoInputs, "missing a required argument: 'other'"),
        (TwoInputs(), "missing a required argument: 'other'"),
    ],
)
def test_a_wrong_number_of_arguments_is_found_where_it_is_written(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(PipelineError, match=r"functools.partial|let it take one argument") as caught:
        some().map(function)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(scaled, scale=2.0),
        functools.partial(Model, "here"),
        Model("here"),
        Model("here").__call__,
        np.asarray,
        dict,
        lambda batch, scale=2: batch,
        lambda *batches: batches[0],
    ],
)
def test_what_can_be_called_with_one_batch_passes(function: Callable[..., Any]) -> None:
    some().map(function)


def test_a_loop_that_takes_nothing_is_found_where_it_is_written() -> None:
    def train() -> None:
        pass

    with pytest.raises(PipelineError, match=r"\.loop\(\) calls train \(.*test_mistakes.py:\d+\) with the stream of batches"):
        some().loop(train)  # type: ignore[arg-type]


def test_epochs_over_the_stream_itself_are_found_where_they_are_written() -> None:
    with pytest.raises(PipelineError, match=r"write `for epoch in batches.epochs\(\):`"):
        some().loop(over_epochs)


def test_a_map_that_forgot_its_return_is_named_last(capsys: pytest.CaptureFixture[str]) -> None:
    def forgot(batch: Any) -> None:
        {"x": batch["x"] * 2}

    run = ghee.run(some().map(forgot).loop(count), on="inline")
    assert run.result == 0
    said = "WARNING: forgot gave no batch in any of its 4 calls, so all its 12 rows were dropped"
    assert said in str(run.report).splitlines()[-1]
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_filter_that_drops_some_batches_is_not_named() -> None:
    kept = iter([True, False, False, False])
    run = ghee.run(some().map(lambda batch: batch if next(kept) else None).loop(count), on="inline")
    assert run.report.warnings == []


def test_a_list_of_tables_is_no_batch() -> None:
    def halves(batch: Any) -> list[pa.Table]:
        return [pa.table({"x": [1]}), pa.table({"x": [2]})]

    with pytest.raises(BatchError, match=r"returned a list of 2 Table.*`yield` for each"):
        ghee.run(some().map(halves).loop(count), on="inline")


def test_a_temporary_folder_with_a_long_name_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * LONGEST_TMPDIR)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(MachineError, match="set TMPDIR to a shorter one"):
        make_folder()


SCRIPT = """
import ghee
print(ghee.run(ghee.read([{"x": 1}]).map(lambda batch: batch).loop(lambda batches: len(list(batches)))).result)
"""


def test_the_longest_temporary_folder_is_short_enough(tmp_path: Path) -> None:
    name = tempfile.mkdtemp(prefix="x" * (LONGEST_TMPDIR - 13), dir="/tmp")  # it adds eight characters
    assert len(name) == LONGEST_TMPDIR
    try:
        (tmp_path / "script.py").write_text(SCRIPT)
        command = [sys.executable, str(tmp_path / "script.py")]
        done = subprocess.run(command, env={**os.environ, "TMPDIR": name}, check=False, capture_output=True, timeout=100)
        assert (done.stdout, done.stderr) == (b"1\n", b"")
    finally:
        os.rmdir(name)


def test_a_home_that_cannot_be_written_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GHEE_HOME", str(tmp_path / "file" / "ghee"))
    with pytest.raises(MachineError, match="set GHEE_HOME to a folder that you can write to"):
        ghee.run(some().loop(count), on="inline")


@pytest.mark.parametrize("url", ["s4://bucket/x", "gs://bucket/x", "abfs://bucket/x"])
def test_a_store_whose_library_is_missing_says_so_at_once(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(PipelineError, match=r'python -m pip install "') as caught:
        ghee.run(ghee.read(url).loop(count), on="inline")
    assert "ghee[" not in str(caught.value)


def test_explain_prints_no_password() -> None:
    pipeline = ghee.read("s3://bucket/x", storage_options={"secret_key": "hush"}, settings={"sasl.password": "hush"})
    assert "hush" not in str(pipeline.loop(count))
