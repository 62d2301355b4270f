"""Sinks: whatever is interrupted, a reader sees the old output or the new one, whole."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghee.errors import BatchError, PipelineError, SinkError, SinkExistsError
from ghee.io.contract import PartFile, Sink
from ghee.io.manifest import read_manifest
from ghee.io.opening import open_sink, open_source
from ghee.io.sinks import files as sink_files
from ghee.io.sinks.writer import FileWriter

FORMATS = ["parquet", "csv", "jsonl", "arrow"]


def write(target: Any, batches: list[Any], ranks: int = 2, **options: Any) -> list[PartFile]:
    """As a run does it: prepared in the driver, pickled to the ranks, published at the end."""
    sink = open_sink(target, **options)
    sink.prepare()
    try:
        writers = [pickle.loads(pickle.dumps(sink)).writer(rank) for rank in range(ranks)]
        for n, batch in enumerate(batches):
            writers[n % ranks].write(batch)
        parts = [part for writer in writers for part in writer.close()]
        sink.publish(parts)
    finally:
        sink.abort()  # as a driver's clean-up does; after a publish nothing may happen
    return parts


def rows(target: Any, **options: Any) -> list[dict[str, Any]]:
    source = open_source(target, **options)
    return [row for split in source.splits() for batch in source.read(split, epoch=0) for row in batch.to_pylist()]


def ids(target: Any, **options: Any) -> list[int]:
    return sorted(row["x"] for row in rows(target, **options))


def visible(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def numbers(*values: int) -> dict[str, Any]:
    return {"x": np.array(values)}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("by", [None, "k"])
def test_files_are_closed_at_their_size(folder: Path, kind: str, by: str | None) -> None:
    rng = np.random.default_rng(1)
    tables = [pa.table({"x": rng.random(500), "k": [n % 2] * 500}) for n in range(60)]
    parts = write(folder / "out", tables, format=kind, file_size="40Ki", partition_by=by)
    assert sum(part.rows for part in parts) == 30_000
    sizes = sorted(part.bytes for part in parts)
    assert len(sizes) >= 4
    assert sizes[-1] < 4 * 40_960  # a row group of so many bytes in memory may come on top: in text it is longer
    assert sizes[2] >= 40_960  # but for the last of each partition


@pytest.mark.parametrize("kind", FORMATS)
def test_a_write_appears_with_a_manifest_that_says_what_it_is(folder: Path, kind: str) -> None:
    target = folder / "out"
    parts = write(target, [numbers(*range(n * 10, n * 10 + 10)) for n in range(10)], format=kind, rows_per_file=30)
    assert ids(target) == list(range(100))
    assert {part.rows for part in parts} == {30, 20}
    assert visible(target) == sorted(["_ghee.json", *(part.path for part in parts)])
    for part in parts:
        data = (target / part.path).read_bytes()
        assert (len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") == (part.bytes, part.digest)
    manifest = json.loads((target / "_ghee.json").read_text())
    assert (manifest["rows"], manifest["format"]) == (100, kind)
    assert [file["path"] for file in manifest["writes"][0]["files"]] == [part.path for part in parts]


def test_the_suffix_decides_the_format_and_others_read_it(tmp_path: Path) -> None:
    for kind in FORMATS:
        write(tmp_path / f"out.{kind}", [numbers(1, 2)], ranks=1)
    assert ds.dataset(tmp_path / "out.parquet").to_table().to_pydict() == {"x": [1, 2]}
    (path,) = (tmp_path / "out.csv").glob("*.csv")
    assert pacsv.read_csv(path).to_pydict() == {"x": [1, 2]}
    (path,) = (tmp_path / "out.jsonl").glob("*.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"x": 1}, {"x": 2}]
    (path,) = (tmp_path / "out.arrow").glob("*.arrow")
    assert pa.ipc.open_file(path.read_bytes()).read_all().to_pydict() == {"x": [1, 2]}


VALUES = st.fixed_dictionaries(
    {
        "x": st.integers(-(2**63), 2**63 - 1),
        "text": st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
        "real": st.none() | st.floats(allow_nan=False),
        "key": st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4),
        "number": st.integers(-5, 5),
    }
)
SCHEMA = pa.schema(
    [("x", pa.int64()), ("text", pa.string()), ("real", pa.float64()), ("key", pa.string()), ("number", pa.int32())]
)


@settings(max_examples=60)
@given(
    st.lists(st.lists(VALUES, max_size=12), max_size=5),
    st.sampled_from(FORMATS),
    st.integers(1, 9),
    st.sampled_from([None, "key", ["number"], ["key", "number"]]),
)
def test_what_was_written_is_read(batches: list[list[dict[str, Any]]], kind: str, per_file: int, by: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables = [pa.Table.from_pylist(batch, SCHEMA) for batch in batches]
        parts = write(folder, tables, format=kind, rows_per_file=per_file, partition_by=by)
        wanted = [row for batch in batches for row in batch]
        assert sum(part.rows for part in parts) == len(wanted)
        assert all(part.rows <= per_file for part in parts)
        if not wanted:
            assert parts == []
            return
        keys = [by] if isinstance(by, str) else by or []
        stored = pa.schema([field for field in SCHEMA if field.name not in keys])
        found = rows(folder, schema=stored if kind in ("csv", "jsonl") else None)
        # A path has no types: a column of whole numbers in text form is read as numbers, as in every hive layout.
        text = [{name: str(v) if name in keys else v for name, v in row.items()} for row in found]
        expected = [{name: str(v) if name in keys else v for name, v in row.items()} for row in wanted]
        assert sorted(map(_canonical, text)) == sorted(map(_canonical, expected))


def _canonical(row: dict[str, Any]) -> str:
    return repr(sorted(row.items()))


def test_partitions_are_folders_that_others_know(tmp_path: Path) -> None:
    batch = {"x": np.arange(4), "day": ["1", "2", "1", None], "ok": [True, True, False, True]}
    write(tmp_path / "out", [batch], partition_by=["day", "ok"])
    folders = sorted({os.path.dirname(name) for name in visible(tmp_path / "out")} - {""})
    assert folders == ["day=1/ok=false", "day=1/ok=true", "day=2/ok=true", "day=__HIVE_DEFAULT_PARTITION__/ok=true"]
    theirs = ds.dataset(tmp_path / "out", partitioning="hive").to_table().sort_by("x").to_pydict()
    assert theirs["day"] == [1, 2, 1, None]
    assert ids(tmp_path / "out", filter=[("day", "==", 1)]) == [0, 2]


def test_many_partitions_do_not_keep_as_many_files_open(tmp_path: Path) -> None:
    open_files: list[int] = []
    sink = open_sink(tmp_path / "out", partition_by="k")
    sink.prepare()
    writer = sink.writer(0)
    for start in range(0, 400, 40):
        writer.write({"x": np.arange(40), "k": np.arange(start, start + 40)})
        open_files.append(len(os.listdir("/proc/self/fd")))
    sink.publish(writer.close())
    assert max(open_files) - min(open_files) <= 64
    assert len(rows(tmp_path / "out")) == 400


def test_small_batches_become_large_row_groups(tmp_path: Path) -> None:
    write(tmp_path / "out", [numbers(*range(100)) for _ in range(50)], ranks=1)
    (path,) = (tmp_path / "out").glob("*.parquet")
    assert pq.read_metadata(path).num_row_groups == 1


def test_the_caller_may_use_its_arrays_again(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    sink.prepare()
    writer = sink.writer(0)
    array = np.arange(10)
    for _ in range(3):
        writer.write({"x": array})
        array += 10
    sink.publish(writer.close())
    assert ids(tmp_path / "out") == list(range(30))


def test_nothing_is_visible_before_publish_and_nothing_is_left_after_abort(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "deep" / "out")
    sink.prepare()
    writer = sink.writer(0)
    writer.write(numbers(1))
    parts = writer.close()
    assert not [name for name in os.listdir(sink.target) if not name.startswith("_")]  # type: ignore[attr-defined]
    assert len(parts) == 1
    sink.abort()
    sink.abort()
    assert not (tmp_path / "deep" / "out").exists()
    with pytest.raises(RuntimeError, match="publish"):
        sink.publish(parts)


def test_a_writer_that_aborts_leaves_no_file(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out", rows_per_file=2)
    sink.prepare()
    writer = sink.writer(0)
    writer.write(numbers(1, 2, 3))
    writer.abort()
    writer.abort()
    assert not list((tmp_path / "out").rglob("*.parquet"))
    with pytest.raises(RuntimeError, match="closed"):
        writer.write(numbers(1))
    sink.abort()


def test_a_bad_batch_is_refused_whole_and_the_writer_goes_on(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out", partition_by="k")
    sink.prepare()
    writer = sink.writer(0)
    writer.write({"x": [1], "k": ["a"]})
    for bad, word in [
        ({"x": ["text"], "k": ["a"]}, "'x' is string, before it was int64"),
        ({"x": [1], "y": [1], "k": ["a"]}, r"has the columns \['x', 'y'\]"),
        ({"x": [1]}, "no column"),
        ({"x": [1, 2], "k": ["a", "__HIVE_DEFAULT_PARTITION__"]}, "stands for null"),
        ({"x": [1, 2], "k": [1.5, 2.5]}, "allowed are strings"),
        ({"k": ["a"]}, "no columns besides"),
    ]:
        with pytest.raises(BatchError, match=word):
            writer.write(bad)
    writer.write({"x": [2], "k": ["a"]})
    sink.publish(writer.close())
    assert ids(tmp_path / "out") == [1, 2]


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    for kind, batch in [("csv", {"x": np.zeros((2, 2))}), ("jsonl", {"x": [b"bytes"]})]:
        sink = open_sink(tmp_path / kind, format=kind)
        sink.prepare()
        with pytest.raises(BatchError, match="has no form for"):
            sink.writer(0).write(batch)
        sink.abort()


def test_types_may_widen_and_ranks_that_differ_are_found_before_anything_is_visible(tmp_path: Path) -> None:
    batches = [{"x": [None]}, {"x": np.array([1], dtype=np.int8)}, {"x": np.array([2**40])}, {"x": [None]}]
    write(tmp_path / "out", batches, ranks=1)
    assert [row["x"] for row in rows(tmp_path / "out")] == [None, 1, 2**40, None]
    with pytest.raises(SinkError, match="cannot be read as one table"):
        write(tmp_path / "differ", [{"x": [1]}, {"x": ["a"]}])
    with pytest.raises(SinkError, match="cannot be read as one table"):
        write(tmp_path / "out", [{"x": ["a"]}], mode="append")
    assert len(rows(tmp_path / "out")) == 4


def test_modes(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, [numbers(1, 2)])
    with pytest.raises(SinkExistsError, match=r'holds 1 files.*mode="overwrite" or mode="append"'):
        open_sink(target).prepare()
    write(target, [numbers(3)], mode="append")
    assert ids(target) == [1, 2, 3]
    assert read_manifest(pafs.LocalFileSystem(), str(target))["rows"] == 3  # type: ignore[index]
    write(target, [numbers(4), numbers(5)], mode="overwrite")
    assert ids(target) == [4, 5]
    assert len(visible(target)) == 3
    write(target, [{"x": [1], "k": [1]}], mode="overwrite", partition_by="k")
    write(target, [numbers(6)], mode="overwrite")
    assert [path.name for path in target.iterdir() if path.is_dir()] == []
    with pytest.raises(SinkExistsError, match="another format"):
        open_sink(target, mode="append", format="csv").prepare()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(SinkExistsError, match=r"no data[\s\S]*notes\.txt"):
        open_sink(target, mode="overwrite").prepare()
    assert ids(str(target / "*.parquet")) == [6]
    file = tmp_path / "file.parquet"
    file.write_bytes(b"")
    with pytest.raises(SinkExistsError, match="is a file"):
        open_sink(file, mode="overwrite").prepare()


def test_a_write_without_rows_is_finished_too(tmp_path: Path) -> None:
    write(tmp_path / "out", [])
    write(tmp_path / "out", [numbers()], mode="append")
    assert visible(tmp_path / "out") == ["_ghee.json"]
    with pytest.raises(SinkExistsError, match="a finished write without rows"):
        open_sink(tmp_path / "out").prepare()


def test_a_staged_file_that_is_not_what_the_rank_wrote_stops_the_publish(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    sink.prepare()
    writer = sink.writer(0)
    writer.write(numbers(1))
    (part,) = writer.close()
    (staged,) = (tmp_path / "out").rglob("*.parquet")
    staged.write_bytes(staged.read_bytes()[:-1])
    with pytest.raises(SinkError, match="bytes were written"):
        sink.publish([part])
    with pytest.raises(SinkError, match="is there twice"):
        sink.publish([part, part])
    sink.abort()
    assert not (tmp_path / "out").exists()


def test_two_runs_at_once_the_second_of_two_fresh_ones_fails_at_its_publish(tmp_path: Path) -> None:
    first, second = open_sink(tmp_path / "out"), open_sink(tmp_path / "out")
    first.prepare()
    second.prepare()  # does not take the first one's staging for a dead one's
    done = []
    for n, sink in enumerate((first, second)):
        writer = sink.writer(0)
        writer.write(numbers(n))
        done.append(writer.close())
    first.publish(done[0])
    with pytest.raises(SinkExistsError):
        second.publish(done[1])
    second.abort()
    assert ids(tmp_path / "out") == [0]
    assert not list((tmp_path / "out").glob("_staging*"))


_KILLED = """
import os, pickle, signal, sys
import numpy as np
from ghee.io.opening import open_sink
from ghee.io.sinks import files, staging

class Dying:
    # The filesystem, which kills the process at its n-th change of names: before, between and after all renames.
    def __init__(self, real, point):
        self.real, self.left = real, point
    def __getattr__(self, name):
        call = getattr(self.real, name)
        if name not in ("move", "delete_file", "delete_dir"):
            return call
        def counted(*args):
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return call(*args)
        return counted

def dying(sink, point):
    staging.is_local = lambda filesystem: True
    sink._place = files.Place(Dying(sink._place.filesystem, point), sink._place.path, sink._place.given)
    if sink._staging is not None:
        sink._staging.filesystem = sink._place.filesystem

def write(target, mode, values, point=None):
    sink = open_sink(target, mode=mode, rows_per_file=2 if point is not None else 10)
    sink.prepare()
    writer = sink.writer(0)
    writer.write({"x": np.array(values)})
    parts = writer.close()
    if point is not None:
        with open(target + ".parts", "wb") as file:  # as the journal would have it
            pickle.dump((sink.token, parts), file)
        dying(sink, point)
    sink.publish(parts)

def go_on(target, mode, point):
    sink = open_sink(target, mode=mode, rows_per_file=2)
    with open(target + ".parts", "rb") as file:
        token, parts = pickle.load(file)
    dying(sink, point)
    assert sink.adopt(token, parts)
    sink.publish(parts)

folder, mode = sys.argv[1:3]
if len(sys.argv) > 3:  # kill it once more at every point of taking over and publishing again
    status, point = 1, 0
    while status:
        child = os.fork()
        if child == 0:
            go_on(folder, mode, point)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        point += 1
    print(point)
    sys.exit()
status, point = 1, 0
while status:
    child = os.fork()
    if child == 0:
        target = f"{folder}/{point}"
        if mode != "error":
            write(target, "error", [1, 2, 3])
        write(target, mode, range(100, 110), point)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    point += 1
print(point)
"""


@pytest.mark.parametrize("mode", ["error", "overwrite", "append"])
def test_a_driver_killed_at_any_point_of_its_publish_leaves_the_old_or_the_new(tmp_path: Path, mode: str) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path), mode]
    points = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    old = [] if mode == "error" else [1, 2, 3]
    new = list(range(100, 110)) if mode != "append" else [*old, *range(100, 110)]
    files = {len(old): min(len(old), 1), len(new): 5 + (mode == "append")}
    seen = []
    for point in range(points):
        target = tmp_path / str(point)
        found = ids(target) if old or (target / "_ghee.json").exists() else []
        assert found in (old, new)
        seen.append(found)
        # The next run clears up; what it finds is the old or the new, and nothing else.
        sink = open_sink(target, mode="append")
        sink.prepare()
        sink.abort()
        assert [name for name in visible(target) if "staging" in name] == []
        assert (ids(target) if found else []) == found
        assert len([name for name in visible(target) if name.endswith(".parquet")]) == files[len(found)]
    assert points >= 7  # five files, the manifest, the staging
    assert seen[0] == old
    assert seen[-1] == new


@pytest.mark.parametrize("mode", ["error", "overwrite", "append"])
def test_a_publish_that_was_killed_at_any_point_is_gone_on_with_and_killed_again(tmp_path: Path, mode: str) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path), mode]
    points = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    new = [*([1, 2, 3] if mode == "append" else []), *range(100, 110)]
    again = 0
    for point in range(points):
        target = tmp_path / str(point)
        token, parts = pickle.loads(Path(f"{target}.parts").read_bytes())
        command = [sys.executable, "-c", _KILLED, str(target), mode, "go on"]
        again += int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) - 1
        assert ids(target) == new
        manifest = json.loads((target / "_ghee.json").read_text())
        assert [write["token"] for write in manifest["writes"]].count(token) == 1
        for part in parts:  # what was stored is what is there: nothing was written again
            assert hashlib.sha256((target / part.path).read_bytes()).hexdigest() == part.digest.partition(":")[2]
        assert [name for name in visible(target) if "staging" in name] == []
    assert again > 3 * points


def test_a_released_staging_is_adopted_without_what_nobody_has_recorded(tmp_path: Path) -> None:
    def begin() -> tuple[Any, Any, list[Any]]:
        sink: Any = open_sink(tmp_path / "out", rows_per_file=2)
        sink.prepare()
        writer = sink.writer(0)
        for n in range(5):
            writer.write(numbers(n))
        return sink, writer, writer.stored()

    sink, writer, parts = begin()
    token = sink.token
    assert sum(part.rows for part in parts) == 4
    with pytest.raises(SinkError, match="is being written by another process"):
        open_sink(tmp_path / "out").adopt(token, parts)  # type: ignore[attr-defined]
    writer.abort()
    sink.release()
    again: Any = open_sink(tmp_path / "out", rows_per_file=2)
    stray = tmp_path / "out" / f"_staging-{token}" / "data" / "half-written.parquet"
    stray.write_bytes(b"PAR1")
    assert again.adopt(token, parts)
    assert not stray.exists()
    writer = again.writer(0)
    writer.write(numbers(4))
    again.publish([*parts, *writer.close()])
    assert ids(tmp_path / "out") == [0, 1, 2, 3, 4]
    assert visible(tmp_path / "out")[0] == "_ghee.json"
    shutil.rmtree(tmp_path / "out")

    sink, writer, parts = begin()  # a part that is damaged, and a staging that is not there: it begins anew
    writer.abort()
    sink.release()
    (tmp_path / "out" / f"_staging-{sink_token(tmp_path)}" / "data" / parts[0].path).write_bytes(b"PAR1")
    again = open_sink(tmp_path / "out")
    assert not again.adopt(sink_token(tmp_path), parts)
    assert not again.adopt("0123456789abcdef", parts)
    sink, writer, parts = begin()  # another run into the folder removes what was left for one that goes on
    writer.abort()
    sink.release()
    token = sink_token(tmp_path)
    other: Any = open_sink(tmp_path / "out", mode="append")
    other.prepare()
    assert not open_sink(tmp_path / "out").adopt(token, parts)  # type: ignore[attr-defined]
    other.abort()


def sink_token(folder: Path) -> str:
    (staging,) = (folder / "out").glob("_staging-*")
    return staging.name.removeprefix("_staging-")


def test_parts_that_are_closed_together_hold_whole_batches(tmp_path: Path) -> None:
    sink: Any = open_sink(tmp_path / "out", rows_per_file=10, partition_by="k")
    sink.prepare()
    now = 0.0
    writer = FileWriter(sink._place.filesystem, sink._staging.data, 0, "parquet", 10, ("k",), lambda: now)
    told: list[Any] = []
    for number in range(40):
        now += 10.0
        writer.write({"x": np.full(4, number), "k": np.arange(4) % (1 + number % 3)})
        if parts := writer.stored():
            told += parts
            assert sum(part.rows for part in told) == 4 * number  # all before this batch, and nothing of it
    told += writer.close()
    assert sum(part.rows for part in told) == 160
    assert all(part.rows <= 10 for part in told)
    sink.publish(told)
    assert Counter(ids(tmp_path / "out")) == Counter(dict.fromkeys(range(40), 4))

    sink = open_sink(tmp_path / "slow")
    sink.prepare()
    writer = FileWriter(sink._place.filesystem, sink._staging.data, 0, "parquet", 1000, (), lambda: now)
    rows = []
    for number in range(100):
        now += 10.0
        writer.write({"x": np.full(1, number)})
        rows += [part.rows for part in writer.stored()]
    assert rows == [31, 31, 31]  # five minutes each
    writer.abort()
    sink.abort()


def test_dead_stagings_are_removed_and_living_ones_are_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    code = (
        "import sys; from ghee.io.opening import open_sink; s = open_sink(sys.argv[1]); s.prepare(); import os; os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    (dead,) = target.glob("_staging-*")
    alive = open_sink(target)
    alive.prepare()
    assert not dead.exists()
    (living,) = target.glob("_staging-*")
    other = open_sink(target)
    other.prepare()
    assert living.exists()
    other.abort()
    alive.abort()
    assert not target.exists() or not list(target.iterdir())


def test_a_reader_sees_no_half_of_a_publish(tmp_path: Path, monkeypatch: Any) -> None:
    """Reads from inside a publish, before and after each of its renames."""
    target = tmp_path / "out"
    write(target, [numbers(1, 2, 3)])
    seen: list[list[int]] = []

    class Watching:
        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, name: str) -> Any:
            call = getattr(self.real, name)
            if name not in ("move", "delete_file", "delete_dir"):
                return call

            def watched(*args: Any) -> Any:
                result = call(*args)
                seen.append(ids(target))
                return result

            return watched

    sink: Any = open_sink(target, mode="overwrite", rows_per_file=1)
    sink.prepare()
    writer = sink.writer(0)
    writer.write(numbers(7, 8, 9))
    parts = writer.close()
    monkeypatch.setattr("ghee.io.sinks.staging.is_local", lambda filesystem: True)
    place = sink._place
    sink._place = sink_files.Place(Watching(place.filesystem), place.path, place.given)
    sink._staging.filesystem = sink._place.filesystem
    sink.publish(parts)
    assert seen[:3] == [[1, 2, 3]] * 3
    assert seen[3:] == [[7, 8, 9]] * len(seen[3:])
    assert len(seen) >= 5


def test_a_disk_that_is_full_is_said_and_nothing_becomes_visible(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full: run on Linux with /dev mounted")
    sink = open_sink(tmp_path / "out")
    sink.prepare()
    writer: Any = sink.writer(0)
    writer.write(numbers(1))
    (path,) = (tmp_path / "out").rglob("*.parquet")
    part = next(iter(writer._open.values()))
    part.stream._file.close()
    path.unlink()
    os.symlink("/dev/full", path)
    part.stream._file = open(path, "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(SinkError, match=r"part-00000.*No space left"):
        writer.write(numbers(*range(200_000)))
    writer.abort()
    sink.abort()
    assert not (tmp_path / "out").exists()


def test_a_target_that_cannot_be_written_is_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="prepare failed"):
        open_sink(tmp_path / "file" / "out").prepare()
    with pytest.raises(SinkError, match="prepare failed"):
        open_sink("/proc/ghee-cannot-write-here").prepare()


def test_other_filesystems(tmp_path: Path) -> None:
    import fsspec

    filesystem = fsspec.filesystem("file")
    write(str(tmp_path / "out"), [numbers(1, 2), numbers(3)], filesystem=filesystem)
    write(str(tmp_path / "out"), [numbers(4)], mode="append", filesystem=filesystem)
    assert ids(tmp_path / "out") == [1, 2, 3, 4]
    sink = open_sink(str(tmp_path / "out"), mode="overwrite", filesystem=filesystem)
    sink.prepare()
    sink.abort()
    assert ids(tmp_path / "out") == [1, 2, 3, 4]
    assert not list((tmp_path / "out").glob("_staging*"))


def test_lists_and_functions(tmp_path: Path) -> None:
    for target, got in [(kept := [], kept), ((calls := []).append, calls)]:
        sink: Sink = open_sink(target)
        assert sink.hosted
        sink.prepare()
        writer = sink.writer(0)
        batch = object()
        writer.write(batch)
        assert writer.close() == []
        sink.publish([])
        sink.abort()
        assert got == [batch]
        with pytest.raises(RuntimeError, match="closed"):
            writer.write(batch)
    with pytest.raises(PipelineError, match="mode: a list as a sink takes no options"):
        open_sink([], mode="append")
    with pytest.raises(PipelineError, match="int is no sink"):
        open_sink(3)
    with pytest.raises(PipelineError) as caught:
        open_sink(tmp_path, mode="replace", format="xml", rows_per_file=0, file_size="big", partition_by=["a", "a"])
    for word in ("mode='replace'", "format='xml'", "rows_per_file=0", "file_size='big'", "partition_by="):
        assert word in str(caught.value)
