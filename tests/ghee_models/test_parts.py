"""Published splits are made once and kept: taken again, made anew for other rows, and whole whoever else makes them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ghee_models import parts
from ghee_models.settings import DataConfig, SplitConfig, interactions_schema


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 40 rows; published splits are kept in a folder of this test's own."""
    monkeypatch.setenv("GHEE_DATA", str(tmp_path / "cache"))
    return write(tmp_path / "rows.parquet")


def write(path: Path, first_item: int = 0) -> Path:
    rows = np.arange(40)
    table = pa.table({"user_id": rows % 4, "item_id": rows + first_item})
    pq.write_table(table, path, compression="none", use_dictionary=False)  # of one size whatever the numbers
    return path


def prepare(path: Path, **split: Any) -> parts.Parts:
    described = DataConfig(path=str(path))
    return parts.prepare(described, SplitConfig(**{"kind": "recbole", **split}), interactions_schema(described))


def items(part: parts.Part | None) -> list[int]:
    assert part is not None
    return [item for batch in part.batches(["item_id"]) for item in batch.column(0).to_pylist()]


def whole(made: parts.Parts) -> list[int]:
    return sorted(items(made.train) + items(made.valid) + items(made.test))


def test_the_second_use_takes_what_the_first_has_made(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(data)
    assert whole(first) == list(range(40))
    assert set(first.digests) == {"train", "valid", "test"}

    def never(*_: Any) -> None:
        raise AssertionError("it is made already")

    monkeypatch.setattr(parts, "_write_parts", never)
    assert prepare(data) == first
    with pytest.raises(AssertionError, match="made already"):
        prepare(data, seed=7)  # another split


def test_rows_that_have_changed_are_split_anew(data: Path) -> None:
    first = prepare(data)
    before = data.stat()
    write(data, first_item=1000)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # of the same size: the time alone tells
    assert data.stat().st_size == before.st_size
    second = prepare(data)
    assert whole(second) == list(range(1000, 1040))
    assert second.digests != first.digests
    assert whole(first) == list(range(40)), "a training that goes on still has the old one"


@pytest.mark.parametrize("lost", ["split.json", "train.parquet", "test.parquet"])
def test_a_split_of_which_a_file_was_removed_is_made_anew(data: Path, lost: str) -> None:
    first = prepare(data)
    (folder,) = parts.splits_folder().iterdir()
    (folder / lost).unlink()
    again = prepare(data)
    assert again.digests == first.digests
    assert whole(again) == list(range(40))
    assert prepare(data) == again


def test_what_was_used_lately_stays_and_the_rest_goes_after_a_week(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_KEPT_SPLITS", 1)
    for seed in (1, 2):
        prepare(data, seed=seed)
    old, used = sorted(parts.splits_folder().iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    half = parts.splits_folder() / ".making-killed"
    half.mkdir()
    for folder in (old, used, half):
        os.utime(folder, (time.time() - 8 * 24 * 3600,) * 2)
    prepare(data, seed=2)  # which is used, so it is not old any more
    prepare(data, seed=3)
    left = set(parts.splits_folder().iterdir())
    assert used in left
    assert old not in left
    assert half not in left
    assert len(left) == 2


TOGETHER = """
import sys
from pathlib import Path
import test_parts
from ghee_models import parts

write = parts._write_parts

def both(*given):
    write(*given)
    print("written", flush=True)
    sys.stdin.readline()  # until the other one has written too

parts._write_parts = both
made = test_parts.prepare(Path(sys.argv[1]))
print(made.train.paths[0], len(test_parts.whole(made)), flush=True)
"""


@pytest.mark.slow  # two processes that import torch
def test_two_that_make_one_split_at_once_both_get_a_whole_one(data: Path, tmp_path: Path) -> None:
    here = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(data)], env={**os.environ, "PYTHONPATH": here},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "written\n"
        assert not list(parts.splits_folder().glob("[0-9a-f]*")), "what is half made has not its name yet"
        said = [process.communicate("go\n", timeout=60)[0].split() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1]
    assert said[0][1] == "40"
    (kept,) = parts.splits_folder().iterdir()  # and nothing beside it
    assert Path(said[0][0]).parent == kept
