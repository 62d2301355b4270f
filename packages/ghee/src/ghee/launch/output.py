"""What the ranks print: one named pipe and one log file for each rank, read by one thread of the driver's process."""

from __future__ import annotations

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

    def __init__(self, logs: Path, line: Callable[[str, str], None] | None) -> None:
        """`line` is called with (source, line) for each line."""
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
        """Read what is there and stop."""
        if self._thread is not None:
            os.write(self._wake_end, b"x")
            self._thread.join()
            self._thread = None
        for key in list(self._selector.get_map().values() if self._selector.get_map() else ()):
            if key.data is not None:
                self._drain(key.data)
                self._take(key.data, b"\n" if key.data.rest else b"")
                key.data.file.close()
            os.close(key.fd)
            self._selector.unregister(key.fd)
            if key.fd == self._wake:
                os.close(self._wake_end)
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    if b"x" in os.read(self._wake, 4096):
                        return
                else:
                    self._drain(key.data)

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
