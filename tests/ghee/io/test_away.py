"""A store that goes away while it is read, written and published to, at any of its calls: who waits says so and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest

from ghee.errors import SinkError
from ghee.io.location import Place
from ghee.io.opening import open_sink, open_source
from ghee.io.stores import patience

CHANGES = ("move", "delete_file", "delete_dir", "create_dir", "open_output_stream")


class Store:
    """No local disk, and away at its n-th change. Where the `answer` is lost, the change was made all the same."""

    def __init__(self, folder: Path) -> None:
        self.real = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
        self.left: int | None = None
        self.answer_lost = self.for_ever = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.real, name)
        if name not in CHANGES:
            return call

        def counted(*args: Any, **options: Any) -> Any:
            if self.left is None:
                return call(*args, **options)
            self.left -= 1
            if self.left > 0 or (self.left < 0 and not self.for_ever):
                return call(*args, **options)
            if self.answer_lost and name != "open_output_stream":
                call(*args, **options)
            raise ConnectionResetError("connection reset by peer")

        return counted


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of which takes time."""
    made: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", made.append)
    return made


def begun(store: Store, mode: str) -> tuple[Any, Any]:
    sink: Any = open_sink("out", filesystem=store.real, mode=mode, rows_per_file=2, partition_by="k")
    sink._place = Place(store, "out", "out")
    sink.prepare()
    return sink, sink.writer(0)


def write(writer: Any, numbers: list[int]) -> Any:
    for n in numbers:
        writer.write({"n": np.array([n]), "k": np.array([n % 2])})
    return writer.close()


def ids(store: Store) -> list[int]:
    source = open_source("out", filesystem=store.real)
    return sorted(n for split in source.splits() for batch in source.read(split, epoch=0) for n in batch["n"].to_pylist())


@pytest.mark.parametrize("answer_lost", [False, True])
@pytest.mark.parametrize("mode", ["overwrite", "append"])
def test_away_at_any_change(mode: str, answer_lost: bool, tmp_path: Path, pauses: list[float]) -> None:
    point, away = 0, True
    while away:
        point += 1
        folder = tmp_path / str(point)
        folder.mkdir()
        store = Store(folder)
        sink, writer = begun(store, "error")
        sink.publish(write(writer, [1, 2]))
        sink, writer = begun(store, mode)
        store.left, store.answer_lost = point, answer_lost
        sink.publish(write(writer, [10, 11, 12, 13, 14]))
        away = store.left <= 0
        assert ids(store) == [*([1, 2] if mode == "append" else []), 10, 11, 12, 13, 14]
        assert not [path for path in folder.rglob("*") if "_staging" in path.name]
    assert point > 10
    assert pauses


def test_away_for_longer_than_the_patience(tmp_path: Path, pauses: list[float]) -> None:
    store = Store(tmp_path)
    _, writer = begun(store, "error")
    store.left, store.for_ever = 1, True
    with pytest.raises(SinkError, match=r"out/_staging.*cannot be written: connection reset by peer"):
        write(writer, [1])
    assert sum(pauses) == pytest.approx(patience.PATIENCE)


def test_nothing_lies_in_the_store_before_a_part_is_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sink, writer = begun(store, "error")
    writer.write({"n": np.arange(1), "k": np.zeros(1, np.int64)})
    assert not list(tmp_path.rglob("*.parquet"))
    parts = writer.close()
    assert [path.stat().st_size for path in tmp_path.rglob("*.parquet")] == [part.bytes for part in parts]
    sink.abort()


class LooksAway:
    """Answers what is asked of files, but not the n-th time."""

    def __init__(self, real: Any) -> None:
        self._real, self.left = real, 0

    def __getattr__(self, name: str) -> Any:
        if name in ("get_file_info", "open_input_file"):
            self.left -= 1
            if self.left == 0:
                raise ConnectionResetError("connection reset by peer")
        return getattr(self._real, name)


def test_a_read_says_that_its_store_was_away_and_is_back(
    tmp_path: Path, pauses: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    """Before the first row, between rows, and after the last, when the file is looked at once more."""
    (tmp_path / "in.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(100)))
    point, away = 0, True
    while away:
        point += 1
        source: Any = open_source(str(tmp_path / "in.jsonl"), batch_size=10)
        (split,) = source.splits()
        store = LooksAway(source._state.filesystem)
        source._state = replace(source._state, filesystem=store)
        store.left = point
        assert [n for batch in source.read(split, epoch=0) for n in batch["n"].to_pylist()] == list(range(100))
        away = store.left <= 0
        said = capfd.readouterr().err
        assert ("is away" in said, "is back after" in said) == (away, away)
    assert point > 3
    assert len(pauses) == point - 1
