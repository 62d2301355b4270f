"""A server that dies while its files are read, written and published, and comes back: who waits says so and goes on."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from stores import Store

from ghee.io.location import Place
from ghee.io.opening import open_sink, open_source
from ghee.io.stores import patience

ROWS = 4000

VICTIMS = {
    "hdfs, name node": lambda server: server.name_node,
    "hdfs, data node": lambda server: server.data_node,
    "s3": lambda server: server.programs[0],
}


class Outage:
    """Kills one program of a server, once; it is started again when somebody has said that it is away."""

    def __init__(self, store: Store, victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self._store, self._program = store, VICTIMS[victim](store.server)
        monkeypatch.setattr(patience, "say", self._hear)

    def begin(self) -> None:
        self._program.kill()

    def _hear(self, text: str) -> None:
        self.said.append(text)
        if " is away " in text:
            self._store.server.restart()

    def check(self) -> None:
        """It was told that the store is away, and that it is back."""
        assert any(" is away " in text for text in self.said), self.said
        assert " is back after " in self.said[-1], self.said


class Watched:
    """A filesystem; before the n-th call of a name something is done, once."""

    def __init__(self, real: Any, name: str, number: int, do: Callable[[], None]) -> None:
        self._real, self._name, self._left, self._do = real, name, number, do

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                self._do()
        return getattr(self._real, name)


@pytest.fixture(params=[pytest.param(victim, marks=pytest.mark.server) for victim in VICTIMS])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Outage]:
    store: Store = request.getfixturevalue(request.param.partition(",")[0])
    return store, Outage(store, request.param, monkeypatch)


def table(start: int, rows: int) -> Any:
    """Rows that no compression makes small: a file has several blocks and is not read at once."""
    payload = np.random.default_rng(start).bytes(1024 * rows)
    return pa.table({"n": range(start, start + rows), "x": [payload[1024 * i : 1024 * (i + 1)] for i in range(rows)]})


def put(store: Store) -> None:
    for start in range(0, ROWS, ROWS // 2):
        name, rows = f"in/{start:05}.parquet", table(start, ROWS // 2)
        write = functools.partial(store.put_table, name, rows, row_group_size=100)
        patience.patiently(write, 60.0, name)  # a data node that the test before has killed may just be back


def ids(url: str) -> list[int]:
    source = open_source(url)
    return sorted(n for split in source.splits() for batch in source.read(split, epoch=0) for n in batch["n"].to_pylist())


def check(store: Store) -> None:
    assert ids(store.url("out")) == list(range(ROWS))
    assert not [name for name in store.names("out") if "_staging" in name]


def test_while_it_is_read(broken: tuple[Store, Outage]) -> None:
    store, outage = broken
    put(store)
    source = open_source(store.url("in"), batch_size=50, split_rows=ROWS)
    seen: list[int] = []
    for split in source.splits():
        for batch in source.read(split, epoch=0):
            seen += batch["n"].to_pylist()
            if len(seen) == 100:
                outage.begin()
    assert seen == list(range(ROWS))
    outage.check()


@pytest.mark.parametrize("moment", ["written", "published"])
def test_while_it_is(moment: str, broken: tuple[Store, Outage]) -> None:
    store, outage = broken
    if moment == "published" and outage._program.name == "datanode":
        call, number = "open_output_stream", 2  # what publishing needs of the data node: the manifest is written there
    else:
        call, number = {"written": ("open_output_stream", 2), "published": ("move", 3)}[moment]
    sink: Any = open_sink(store.url("out"), rows_per_file=ROWS // 4)
    place = sink._place
    sink.prepare()
    watched = Watched(place.filesystem, call, number, outage.begin)
    if moment == "written":
        sink._place = Place(watched, place.path, place.given)
    writer = sink.writer(0)
    for start in range(0, ROWS, 100):
        writer.write(table(start, 100))
    parts = writer.close()
    if moment == "published":
        sink._place = Place(watched, place.path, place.given)
        sink._staging.filesystem = watched
    sink.publish(parts)
    outage.check()
    check(store)


SCRIPT = """
import sys
import ghee

read, write, pipe = sys.argv[1:]  # a rank has other arguments

def gate(batch):
    if 0 in batch["n"].to_pylist():
        print("at the gate", file=sys.stderr, flush=True)
        open(pipe, "w").close()  # until the test opens it too
    return batch

if __name__ == "__main__":
    ghee.run(ghee.read(read, batch_size=1000).map(gate).write(write, rows_per_file=1000), progress=False)
"""


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["hdfs", "s3"])
def test_a_whole_run_waits_for_a_server_that_is_killed(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    store: Store = request.getfixturevalue(kind)
    put(store)
    (tmp_path / "job.py").write_text(SCRIPT)
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, tmp_path / "job.py", store.url("in"), store.url("out"), tmp_path / "pipe"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        said: list[str] = []
        assert _until("at the gate", job, said), said
        store.server.kill()  # a batch is there, and nothing has been written
        (tmp_path / "pipe").read_bytes()
        assert _until(" is away ", job, said), said
        store.server.restart()
        assert _until(" is back after ", job, said), said
        assert job.stdout is not None
        said.append(job.stdout.read())
    assert job.returncode == 0, said
    check(store)


def _until(words: str, job: subprocess.Popen[str], said: list[str]) -> bool:
    """Listen until a line holds the words; False where the job ends before."""
    assert job.stdout is not None
    for line in iter(job.stdout.readline, ""):
        said.append(line)
        if words in line:
            return True
    return False
