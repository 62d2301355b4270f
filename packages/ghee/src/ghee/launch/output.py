"""What the ranks print: one named pipe and one log file for each rank, read by one thread of the driver's process."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ghee.protocol.messages import RankId

TAIL_LINES = 20


@dataclass
class _Pipe:
    source: str
    log: Path
    file: IO[bytes]
    descriptor: int
    rest: bytes = b""
    last: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))


class Output:
    """Reads what ranks print until `close`. What a rank has written is read even if it was killed right after."""

    def __init__(self, logs: Path, line: Callable[[str, str], None] | None, failed: Callable[[BaseException], None]) -> None:
        """`line` is called with (source, line) for each line; `failed` with what the reading thread has ended by.

        Nobody reads the pipes then, and ranks would wait for ever for room in them.
        """
        self._failed = failed
        self._logs = logs
        self._line = line
        self._pipes: dict[RankId, _Pipe] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._wake_end = os.pipe2(os.O_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, rank: RankId, stage: str, path: str) -> None:
        """Make the pipe of a rank and begin to read it."""
        os.mkfifo(path, 0o600)
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # RDWR: never at its end while we hold it
        log = self._logs / f"{stage}-{rank.index}.log"
        pipe = _Pipe(f"{stage} {rank.index}", log, log.open("ab"), descriptor)
        with self._lock:
            self._pipes[rank] = pipe
            self._selector.register(descriptor, selectors.EVENT_READ, pipe)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ghee output", daemon=True)
            self._thread.start()
        else:
            os.write(self._wake_end, b"+")

    def log(self, rank: RankId) -> Path:
        """The log file of a rank."""
        return self._pipes[rank].log

    def tail(self, rank: RankId) -> str:
        """The last lines that a rank printed, up to this moment."""
        self._drain(self._pipes[rank])
        return "\n".join(self._pipes[rank].last)

    def close(self) -> None:
        """Read what is there and stop. Raises what could not be written, once all is closed."""
        if self._thread is not None:
            os.write(self._wake_end, b"x")
            self._thread.join()
            self._thread = None
        with contextlib.ExitStack() as closing:
            for descriptor in (self._wake, self._wake_end):
                closing.callback(os.close, descriptor)
            closing.callback(self._selector.close)
            for pipe in self._pipes.values():
                closing.callback(os.close, pipe.descriptor)
                closing.callback(pipe.file.close)
                closing.callback(self._drain_to_the_end, pipe)
            self._pipes = {}

    def _drain_to_the_end(self, pipe: _Pipe) -> None:
        self._drain(pipe)
        self._take(pipe, b"\n" if pipe.rest else b"")

    def _run(self) -> None:
        try:
            while self._read():
                pass
        except BaseException as error:  # the driver's thread raises it
            self._failed(error)

    def _read(self) -> bool:
        for key, _ in self._selector.select():
            if key.data is not None:
                self._drain(key.data)
            elif b"x" in os.read(self._wake, 4096):
                return False
        return True

    def _drain(self, pipe: _Pipe) -> None:
        with self._reading:
            while True:
                try:
                    data = os.read(pipe.descriptor, 1 << 16)
                except BlockingIOError:
                    return
                self._take(pipe, data)

    def _take(self, pipe: _Pipe, data: bytes) -> None:
        pipe.file.write(data)
        pipe.file.flush()
        *lines, pipe.rest = (pipe.rest + data).split(b"\n")
        for raw in lines:
            line = raw.decode(errors="replace").rstrip("\r")
            pipe.last.append(line)
            if self._line is not None:
                self._line(pipe.source, line)
