"""Read, process, write, with transactions: each row once for whoever reads what is committed, whatever is killed when.

The stream runs in a process of its own (`PROGRAM`), whose sink stops at named points of the life of a transaction and
kills somebody there, each once. It is begun again with `ghee.resume` until the group's offsets are at the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ghee
from servers.kafka import Kafka
from servers.topics import committed, make_topic, numbers, produce, read_all

pytestmark = pytest.mark.server

ROWS = 6_000


def test_rows_and_offsets_appear_together(kafka: Kafka) -> None:
    first, second = make_topic(kafka.address, 3), make_topic(kafka.address, 2)
    produce(kafka.address, first, numbers(ROWS, 3))
    url = f"kafka://{kafka.address}"
    source = ghee.read(f"{url}/{first}?group={first}", batch_size=500)
    pipeline = source.map(lambda batch: batch).write(f"{url}/{second}", transactions=True, replicas=2)
    run = ghee.run(pipeline, wait=False)
    wait_for_commit(kafka, first, [ROWS // 3] * 3)
    run.stop()
    assert run.wait(60)
    assert run.report.balanced
    assert sorted(int(message.value()) for message in read_all(kafka.address, second)) == list(range(ROWS))


def test_nothing_is_seen_before_it_is_committed(kafka: Kafka) -> None:
    """A run that fails in the middle of a cut leaves no row of it."""
    first, second = make_topic(kafka.address), make_topic(kafka.address)
    produce(kafka.address, first, numbers(1_000))
    url = f"kafka://{kafka.address}"

    def broken(batch: Any) -> Any:
        if batch["offset"][0].as_py() >= 500:
            raise RuntimeError("broken")
        return batch

    source = ghee.read(f"{url}/{first}?group={first}", batch_size=100)
    with pytest.raises(RuntimeError, match="broken"):
        ghee.run(source.map(broken).write(f"{url}/{second}", transactions=True), on="inline")
    assert read_all(kafka.address, second) == []
    wait_for_commit(kafka, first, [-1001])


def wait_for_commit(kafka: Kafka, topic: str, offsets: list[int]) -> None:
    clock = threading.Event()  # the broker tells nobody of a commit
    for _ in range(450):
        if committed(kafka.address, topic, topic, len(offsets)) == offsets:
            return
        clock.wait(0.2)
    raise AssertionError(committed(kafka.address, topic, topic, len(offsets)))


PROGRAM = """
import json, os, signal, sys, pathlib
import ghee
from ghee.io.kafka import sink

address, first, second, folder, kills = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], json.loads(sys.argv[5])
driver = os.getpid()


def make():
    import os, pathlib, signal
    from ghee.io.kafka import sink

    def at(point):
        for who, where in kills:
            mark = pathlib.Path(folder, f"{who}-{where}")
            if where != point or mark.exists():
                continue
            victim = {"sink": os.getpid, "driver": lambda: int(pathlib.Path(folder, "driver").read_text())}.get(who)
            pid = victim() if victim else int(pathlib.Path(folder, who).read_text())
            mark.touch()
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            return

    class Writer(sink.KafkaWriter):
        def write(self, batch):
            at("before produce")
            super().write(batch)

        def end_epoch(self, commit=None):
            if self._open:
                self._wait_for(lambda: self._producer.flush(0.1) == 0)
                at("before commit")
            super().end_epoch(commit)
            if commit is not None:
                at("after commit")

    class Sink(sink.KafkaSink):
        def writer(self, rank):
            made = super().writer(rank)
            made.__class__ = Writer
            return made

    def remember(batch):
        pathlib.Path(folder, "reader").write_text(str(os.getpid()))
        return batch

    return Sink, remember


sink.KafkaSink, remember = make()
pathlib.Path(folder, "driver").write_text(str(driver))
began = pathlib.Path(folder, "run")
if began.exists():
    run = ghee.resume(began.read_text(), wait=False)
else:
    url = f"kafka://{address}"
    source = ghee.read(f"{url}/{first}?group={first}&session.timeout.ms=6000", batch_size=200)
    settings = {"transaction.timeout.ms": 20000}
    run = ghee.run(source.map(remember).write(f"{url}/{second}", transactions=True, settings=settings), wait=False)
    began.write_text(run.id)
sys.stdin.readline()
run.stop()
run.wait()
print(len(run.report.restarts), run.result is not None)
"""


class Stream:
    """The program, begun again when it was killed."""

    def __init__(self, kafka: Kafka, folder: Path, kills: list[tuple[str, str]]) -> None:
        self._kafka, self.folder = kafka, folder
        self.first, self.second = make_topic(kafka.address, 2), make_topic(kafka.address, 2)
        (folder / "program.py").write_text(PROGRAM)
        self._arguments = [kafka.address, self.first, self.second, str(folder), json.dumps(kills)]
        self.starts = 0
        self.begin()

    def begin(self) -> None:
        self.starts += 1
        self.process = subprocess.Popen(
            [sys.executable, str(self.folder / "program.py"), *self._arguments], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "GHEE_HOME": str(self.folder)},
        )  # fmt: skip

    def wait_for(self, rows: int) -> None:
        """Bring back what was killed until the offsets of so many rows are committed."""
        deadline, clock = time.monotonic() + 150, threading.Event()
        while True:
            if not self._kafka.programs[0].runs:
                self._kafka.restart()
                (self.folder / "broker").write_text(str(self._kafka.programs[0].pid))
            if self.process.poll() is not None:
                assert self.process.returncode == -signal.SIGKILL, self.process.communicate()
                self.process.communicate()
                self.begin()
            if committed(self._kafka.address, self.first, self.first, 2) == [rows // 2] * 2:
                return
            assert time.monotonic() < deadline, committed(self._kafka.address, self.first, self.first, 2)
            clock.wait(0.1)

    def stop(self) -> str:
        said, _ = self.process.communicate(b"\n", timeout=100)
        assert self.process.returncode == 0, said
        return said.decode()


@pytest.fixture
def streams() -> Iterator[Any]:
    """Makes a stream, and ends its process whatever happens."""
    made: list[Stream] = []

    def make(*arguments: Any) -> Stream:
        made.append(Stream(*arguments))
        return made[-1]

    yield make
    for stream in made:
        stream.process.kill()
        stream.process.communicate()


POINTS = ("before produce", "before commit", "after commit")


@pytest.mark.parametrize("who", ["sink", "reader", "driver"])
@pytest.mark.timeout(200)
def test_somebody_is_killed_at_every_point(own_kafka: Kafka, tmp_path: Path, streams: Any, who: str) -> None:
    kills = [(who, point) for point in POINTS]
    stream = streams(own_kafka, tmp_path, kills)
    (tmp_path / "broker").write_text(str(own_kafka.programs[0].pid))
    for part in range(3):  # so that each point is come to in a cut of its own
        produce(own_kafka.address, stream.first, numbers(ROWS, 2, first=part * ROWS))
        stream.wait_for((part + 1) * ROWS)
    stream.stop()
    assert [(tmp_path / f"{who}-{point}").exists() for point in POINTS] == [True] * 3
    found = Counter(int(message.value()) for message in read_all(own_kafka.address, stream.second))
    assert found == Counter(range(3 * ROWS))
    assert stream.starts == (4 if who == "driver" else 1)
