"""A stream with transactions in a process of its own, whose sink stops at named points and has somebody killed there.

The kills come in their order: each when its point is next reached by a rank of the sink. Whoever was killed is brought
back by `Killed.bring_back`: the broker is started again, the driver goes on with `ghee.resume`; ranks come back by
themselves. Used by the tests and by `benchmarks/kafka_soak.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from servers.kafka import Kafka
from servers.topics import committed, make_topic, numbers, produce

POINTS = ("before produce", "before commit", "after commit")
VICTIMS = ("sink", "reader", "driver", "broker")

Kills = Sequence[tuple[str, str]]
"""Who is killed, and at which point of the life of a transaction."""

PROGRAM = """
import os, pathlib, sys, threading
import ghee
from ghee.io.kafka import sink

address, first, second, folder = sys.argv[1:]


def make():
    import fcntl, json, os, pathlib, signal
    from ghee.io.kafka import sink

    def at(point):
        with open(pathlib.Path(folder, "kills"), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            kills = json.load(file)
            if not kills or kills[0][1] != point:
                return
            who, _ = kills[0]
            victim = os.getpid() if who == "sink" else int(pathlib.Path(folder, who).read_text())
            gone = pathlib.Path(folder, "gone")  # a sink goes on for a moment when its driver has died, which dies once
            if gone.exists() and str(victim) in gone.read_text().split():
                return
            with gone.open("a") as victims:
                victims.write(f"{victim} ")
            file.seek(0)
            file.truncate()
            json.dump(kills[1:], file)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            pass

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
        pathlib.Path(folder, "reader.new").write_text(str(os.getpid()))
        os.replace(pathlib.Path(folder, "reader.new"), pathlib.Path(folder, "reader"))
        return batch

    def forward(batch):
        return batch

    return Sink, remember, forward


sink.KafkaSink, remember, forward = make()
pathlib.Path(folder, "driver").write_text(str(os.getpid()))
began = pathlib.Path(folder, "run")
if began.exists():
    run = ghee.resume(began.read_text(), wait=False, retries=20)
else:
    url = f"kafka://{address}"
    source = ghee.read(f"{url}/{first}?group={first}&session.timeout.ms=6000", batch_size=200)
    settings = {"transaction.timeout.ms": 20000}
    ready = source.map(remember).map(forward)
    write = ready.write(f"{url}/{second}", transactions=True, settings=settings)
    run = ghee.run(write, wait=False, retries=20)
    began.write_text(run.id)
threading.Thread(target=lambda: sys.stdin.readline() and run.stop(), daemon=True).start()
run.wait()  # a run that fails ends this process, which the test sees
print(len(run.report.restarts), run.result is not None)
"""


class Killed:
    """The program, begun again when it was killed. Topics of two partitions: `first` to `second`."""

    def __init__(self, kafka: Kafka, folder: Path, kills: Kills = (), *, program: str = PROGRAM, rows: int = 0) -> None:
        """`rows` are in the first topic before the program begins."""
        self._kafka, self.folder = kafka, folder
        self.first, self.second = make_topic(kafka.address, 2), make_topic(kafka.address, 2)
        produce(kafka.address, self.first, numbers(rows, 2))
        (folder / "program.py").write_text(program)
        (folder / "kills").write_text(json.dumps(kills))
        (folder / "broker").write_text(str(kafka.programs[0].pid))
        self._clock = threading.Event()  # never set: nobody is told of a commit, or of a process that ended
        self.starts = 0
        self._begin()

    def _begin(self) -> None:
        self.starts += 1
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(self.folder / "program.py"), self._kafka.address, self.first, self.second,
                 str(self.folder)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, "GHEE_HOME": str(self.folder)},
            )  # fmt: skip

    def kill_driver(self) -> None:
        """At this moment, whatever it does."""
        self._process.kill()
        self._process.wait(30)

    def kill_everything(self) -> int:
        """The driver and every process of its run, as near to one moment as can be; how many there were."""
        ours = f"GHEE_HOME={self.folder}".encode()
        found = [self._process.pid]
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and ours in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                pass  # it has ended since
        for victim in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        self._process.wait(30)
        return len(set(found))

    @property
    def is_over(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() == 0

    def add_kill(self, who: str, point: str) -> None:
        """One more, once the others have come."""
        assert not self.left
        (self.folder / "kills.new").write_text(json.dumps([(who, point)]))
        os.replace(self.folder / "kills.new", self.folder / "kills")

    @property
    def left(self) -> Kills:
        """The kills that have not come yet."""
        try:
            return [(who, point) for who, point in json.loads((self.folder / "kills").read_text())]
        except json.JSONDecodeError:  # it is being written
            return [("", "")]

    def bring_back(self) -> None:
        """Start again what was killed."""
        if not self._kafka.programs[0].runs:
            self._kafka.restart()
            (self.folder / "broker").write_text(str(self._kafka.programs[0].pid))
        if self._process.poll():
            assert self._process.returncode == -signal.SIGKILL, self.log()
            self._process.communicate()
            self._begin()

    def wait_for(self, rows: int, seconds: float = 400) -> None:
        """Bring back what was killed until the offsets of so many rows are committed."""
        deadline = time.monotonic() + seconds
        while True:
            self.bring_back()
            found = committed(self._kafka.address, self.first, self.first, 2)
            if found == [rows // 2] * 2:
                return
            assert time.monotonic() < deadline, (found, self.left, self.log())
            self._clock.wait(0.1)

    def wait_for_end(self, seconds: float = 400) -> None:
        """Bring back what was killed until it has ended by itself."""
        deadline = time.monotonic() + seconds
        while not self.is_over:
            self.bring_back()
            assert time.monotonic() < deadline, self.log()
            self._clock.wait(0.1)

    def stop(self) -> None:
        """End it in order."""
        self._process.communicate(b"\n", timeout=100)
        assert self._process.returncode == 0, self.log()

    def close(self) -> None:
        """End it whatever it does."""
        self._process.kill()
        self._process.communicate()

    def log(self) -> str:
        """The end of what it has printed."""
        return (self.folder / "log").read_text(errors="replace")[-3000:]
