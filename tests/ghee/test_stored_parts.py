"""A run that only writes is killed, and goes on after what it has stored: each row is there once, little is made twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ghee
from ghee.driver.journal import parse
from ghee.entry import home
from ghee.errors import CheckpointError
from ghee.io.manifest import read_manifest

cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS, BATCH, PER_FILE = 400, 10, 40
EVERYTHING = Counter(dict.fromkeys(range(ROWS), 2))


pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    """400 numbers in 4 files."""
    folder = tmp_path / "numbers"
    folder.mkdir()
    for part in range(4):
        pq.write_table(pa.table({"n": range(part * 100, part * 100 + 100)}), folder / f"{part}.parquet")
    return str(folder)


class Note:
    """Writes down every number that passes, in a file of the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, batch: Any) -> Any:
        with (self.folder / f"passed-{os.getpid()}").open("ab") as file:
            file.write(np.asarray(batch["n"], dtype=np.int64).tobytes())
        return batch


def passed(folder: Path) -> Counter[int]:
    return Counter(int(n) for path in folder.glob("passed-*") for n in np.frombuffer(path.read_bytes(), dtype=np.int64))


def journal(run: Path) -> list[dict[str, Any]]:
    return parse((run / "journal").read_bytes())[0]


def stored_before(records: list[dict[str, Any]], kind: str) -> list[str]:
    """The parts that were recorded before the first record of a kind that came after the run's beginning."""
    cut = next(number for number, record in enumerate(records) if record["kind"] == kind and number)
    return [part["path"] for record in records[:cut] if record["kind"] == "stored" for part in record["parts"]]


def published(out: Path) -> list[str]:
    import pyarrow.fs as pafs

    manifest = read_manifest(pafs.LocalFileSystem(), str(out))
    assert manifest is not None
    assert manifest["rows"] == 2 * ROWS
    return [file["path"] for write in manifest["writes"] for file in write["files"]]


def check(out: Path, kept: list[str], tmp_path: Path) -> None:
    """Every row is there once for each epoch; parts that were recorded are the ones that are there, and were made once."""
    assert Counter(pq.read_table(out)["n"].to_pylist()) == EVERYTHING
    assert set(kept) <= set(published(out)), "a part that was recorded was written again"
    assert [path.name for path in out.iterdir() if path.name.startswith("_") and path.name != "_ghee.json"] == []
    early = Counter(n for path in kept for n in pq.read_table(out / path)["n"].to_pylist())
    made = passed(tmp_path)
    assert all(made[n] == 2 for n, times in early.items() if times == 2), "what was stored was made again"
    assert sum(made.values()) <= 2 * (2 * ROWS) - sum(early.values())


@pytest.mark.parametrize("point", ["after a write", "parts closed", "parts recorded"])
def test_a_killed_sink_goes_on_after_what_it_has_stored(
    numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "killing"))
    monkeypatch.setenv("GHEE_TEST_KILL", f"sink|{point}|{marks}|1")
    pipeline = ghee.read(numbers, batch_size=BATCH, epochs=2).map(Note(tmp_path)).write(
        str(out), rows_per_file=PER_FILE, replicas=2, name="sink"
    )  # fmt: skip
    run = ghee.run(pipeline, progress=False)
    assert len(list(marks.iterdir())) == 1, "nothing was killed"
    assert len(run.report.restarts) == 1
    kept = stored_before(journal(run.folder), "restart")
    if point in ("parts closed", "parts recorded"):
        assert kept
        assert "stored rows" in run.report.restarts[0]
    check(out, kept, tmp_path)


SCRIPT = """
import os, signal, sys
from pathlib import Path

import cloudpickle, numpy
import ghee
from ghee.driver.journal import Journal
from ghee.io.sinks import files

point, left = {point!r}, [{at}]

def dies_at(name, call, *arguments, **options):
    if point == name:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return call(*arguments, **options)

append, write_file = Journal.append, files.write_file
Journal.append = lambda self, **record: dies_at(
    "before the record" if record["kind"] == "stored" else "", append, self, **record)
files.write_file = lambda *arguments: dies_at("in the publish", write_file, *arguments)

class Note:
    def __call__(self, batch):
        with Path({folder!r}, f"passed-{{os.getpid()}}").open("ab") as file:
            file.write(numpy.asarray(batch["n"], dtype=numpy.int64).tobytes())
        return batch

source = ghee.read({numbers!r}, batch_size=10, epochs=2)
pipeline = source.map(Note, replicas=2).write({out!r}, rows_per_file=40, replicas={sinks})
if __name__ == "__main__":
    ghee.run(pipeline, progress=False)
"""


@pytest.mark.parametrize(
    ("point", "at", "sinks"),
    # The publish writes its intent first, the manifest second; test_sinks.py has every point of it.
    [("before the record", 4, 2), ("in the publish", 2, 1)],
)
def test_a_killed_driver_is_resumed_after_what_its_sink_has_stored(
    numbers: str, tmp_path: Path, point: str, at: int, sinks: int
) -> None:
    out, script = tmp_path / "out", tmp_path / "job.py"
    script.write_text(SCRIPT.format(point=point, at=at, folder=str(tmp_path), numbers=numbers, out=str(out), sinks=sinks))
    died = subprocess.run([sys.executable, str(script)], check=False, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    assert not (out / "_ghee.json").exists()
    (run_id,) = (path.parent.name for path in (home() / "runs").glob("*/journal"))
    run = ghee.resume(run_id, options={"write": {"replicas": 3 - sinks}}, progress=False)
    kept = stored_before(journal(run.folder), "run")
    assert kept
    check(out, kept, tmp_path)
    if point == "in the publish":
        assert passed(tmp_path) == EVERYTHING, "all was stored, and nothing was to be made again"
    with pytest.raises(CheckpointError, match="has finished"):
        ghee.resume(run_id)


class Fragile:
    """Raises in the middle, once something was stored, as long as it was not mended."""

    def __init__(self, mended: Path) -> None:
        self.mended = mended

    def __call__(self, batch: Any) -> Any:
        if batch["n"][0].as_py() == 200 and not self.mended.exists():
            deadline = time.monotonic() + 30
            while not any(b'"stored"' in path.read_bytes() for path in (home() / "runs").glob("*/journal")):
                assert time.monotonic() < deadline, "nothing is ever stored"
                time.sleep(0.01)  # another process writes the journal, and tells nobody
            raise ValueError("no good number")
        return Note(self.mended.parent)(batch)


def test_a_failed_run_keeps_what_it_has_stored_for_resume(numbers: str, tmp_path: Path) -> None:
    out, mended = tmp_path / "out", tmp_path / "mended"

    def pipeline(**options: Any) -> Any:
        source = ghee.read(numbers, batch_size=BATCH, epochs=2)
        return source.map(Fragile(mended), name="fragile").write(str(out), rows_per_file=PER_FILE, **options)

    with pytest.raises(ValueError, match="no good number"):
        ghee.run(pipeline(), on="inline", progress=False)
    (run_id,) = (path.parent.name for path in (home() / "runs").glob("*/journal"))
    records = journal(home() / "runs" / run_id)
    assert any(record["kind"] == "stored" for record in records)
    assert not (out / "_ghee.json").exists()
    mended.touch()
    with pytest.raises(CheckpointError, match="has begun to write parquet to"):
        ghee.run(pipeline(format="csv"), on="inline", progress=False, resume=run_id)
    ghee.run(pipeline(), on="inline", progress=False, resume=run_id)
    check(out, stored_before(journal(home() / "runs" / run_id), "end"), tmp_path)


def test_a_run_whose_staging_was_removed_begins_anew_and_says_so(
    numbers: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, mended = tmp_path / "out", tmp_path / "mended"

    pipeline = (
        ghee.read(numbers, batch_size=BATCH, epochs=2).map(Fragile(mended)).write(str(out), mode="append", rows_per_file=20)
    )
    with pytest.raises(ValueError, match="no good number"):
        ghee.run(pipeline, on="inline", progress=False)
    (run_id,) = (path.parent.name for path in (home() / "runs").glob("*/journal"))
    assert list(out.glob("_staging-*"))
    mended.touch()
    other = ghee.read([{"n": np.arange(3)}]).write(str(out), mode="append")
    ghee.run(other, on="inline", progress=False)
    assert not list(out.glob("_staging-*"))
    ghee.run(pipeline, on="inline", progress=False, resume=run_id)
    assert "it is written anew" in capfd.readouterr().err
    assert Counter(pq.read_table(out)["n"].to_pylist()) == EVERYTHING + Counter(range(3))
