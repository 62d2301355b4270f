"""Sinks on real stores: a publish that was cut anywhere, and a run whose driver was killed, are gone on with."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Store

import ghee
from ghee.driver.journal import parse
from ghee.entry import home
from ghee.io.opening import open_sink, open_source
from ghee.io.sinks import files


class Cut(BaseException):
    """Stands for the death of the driver: nothing of a sink is used after it."""


class Cutting:
    """The filesystem, which ends the work at its n-th change of names; a move may have got half way there."""

    def __init__(self, real: Any, point: int, *, half: bool) -> None:
        self.real, self.left, self.half = real, point, half

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.real, name)
        if name not in ("move", "delete_file", "delete_dir"):
            return call

        def counted(*args: Any) -> Any:
            if not self.left:
                if self.half and name == "move":
                    self.real.copy_file(*args)  # a move on S3 is a copy and a delete
                raise Cut
            self.left -= 1
            return call(*args)

        return counted


def ids(url: str) -> list[int]:
    source = open_source(url)
    return sorted(n for split in source.splits() for batch in source.read(split, epoch=0) for n in batch["n"].to_pylist())


def write(url: str, mode: str, numbers: list[int]) -> tuple[Any, list[Any]]:
    sink: Any = open_sink(url, mode=mode, rows_per_file=2)
    sink.prepare()
    writer = sink.writer(0)
    for n in numbers:
        writer.write({"n": np.array([n])})
    return sink, writer.close()


@pytest.mark.server
@pytest.mark.parametrize("kind", ["hdfs", "s3"])
def test_a_publish_that_was_cut_at_any_point_is_gone_on_with(kind: str, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue(kind)
    old, new, mode = [1, 2], [10, 11, 12], "overwrite"
    point, cut = 0, True
    while cut:
        url = store.url(f"out-{point}")
        sink, parts = write(url, "error", old)
        sink.publish(parts)
        sink, parts = write(url, mode, new)
        place = sink._place
        sink._place = files.Place(Cutting(place.filesystem, point, half=store.scheme == "s3"), place.path, place.given)
        sink._staging.filesystem = sink._place.filesystem
        try:
            sink.publish(parts)
            cut = False
        except Cut:
            assert ids(url) in (old, new)
            again: Any = open_sink(url, mode=mode, rows_per_file=2)
            assert again.adopt(sink._staging.token, parts)
            again.publish(parts)
        assert ids(url) == new
        left = [name for name in store.names(f"out-{point}") if "_staging" in name]
        assert left == []
        point += 1
    assert point > 3


SCRIPT = """
import os, signal
from pathlib import Path

import numpy
import ghee
from ghee.driver.journal import Journal

append, left = Journal.append, [3]

def dies(self, **record):
    left[0] -= record["kind"] == "stored"
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, **record)

Journal.append = dies

def note(batch):
    with Path({folder!r}, f"passed-{{os.getpid()}}").open("ab") as file:
        file.write(numpy.asarray(batch["n"], dtype=numpy.int64).tobytes())
    return batch

pipeline = ghee.read({read!r}, batch_size=10).map(note).write({out!r}, rows_per_file=40, replicas=2)
if __name__ == "__main__":
    ghee.run(pipeline, progress=False)
"""


@pytest.mark.server
@pytest.mark.parametrize("kind", ["hdfs", "s3"])
def test_a_killed_driver_is_resumed_after_what_is_on_the_store(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    store: Store = request.getfixturevalue(kind)
    for part in range(4):
        store.put_table(f"in/{part}.parquet", pa.table({"n": range(part * 100, part * 100 + 100)}))
    script = tmp_path / "job.py"
    script.write_text(SCRIPT.format(folder=str(tmp_path), read=store.url("in"), out=store.url("out")))
    died = subprocess.run([sys.executable, str(script)], check=False, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    (run_id,) = (path.parent.name for path in (home() / "runs").glob("*/journal"))
    records, _ = parse((home() / "runs" / run_id / "journal").read_bytes())
    kept = [part for record in records if record["kind"] == "stored" for part in record["parts"]]
    assert kept
    assert not [name for name in store.names("out") if "_staging" not in name.split("/")[1]]
    ghee.resume(run_id, progress=False)
    assert [name for name in store.names("out") if "_staging" in name] == []
    assert ids(store.url("out")) == list(range(400))
    early = [
        n
        for part in kept
        for n in pq.read_table(store.path(f"out/{part['path']}"), filesystem=store.filesystem)["n"].to_pylist()
    ]
    passed = Counter(n for path in tmp_path.glob("passed-*") for n in np.frombuffer(path.read_bytes(), dtype=np.int64))
    assert early
    assert all(passed[n] == 1 for n in early), "what was stored was made again"
