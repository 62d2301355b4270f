"""Child processes of an agent that is process 1 of its container: started, read, reaped and killed."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from swimmy.channel import Loop

_PR_SET_CHILD_SUBREAPER = 36


class Processes:
    """Every process below this one: orphans come to it too, so that none outlives the agent and no zombie stays."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._exits: dict[int, Callable[[int], None]] = {}
        # Where the agent is not process 1 (a shared process namespace), orphans come to it all the same.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        loop.watch(_Descriptor(self._read), self._woken)

    def start(
        self,
        argv: list[str],
        environment: dict[str, str],
        on_line: Callable[[str], None],
        on_exit: Callable[[int], None],
    ) -> int:
        """Starts a program in a session of its own; ``on_line`` gets what it prints, ``on_exit`` its wait status. Its pid.

        Raises OSError where the program cannot be run.
        """
        child = subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        assert child.stdout is not None
        lines = Lines(self._loop, child.stdout.fileno(), on_line, child.stdout.close)

        def ended(status: int) -> None:
            child.returncode = os.waitstatus_to_exitcode(status)  # reaped here: Popen must not look for it again
            lines.drain()
            on_exit(status)

        self._exits[child.pid] = ended
        return child.pid

    def _woken(self) -> None:
        try:
            while os.read(self._read, 4096):
                pass
        except BlockingIOError:
            pass
        self.reap()

    def reap(self) -> None:
        """Takes the exit status of every child that has ended, started here or orphaned."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._exits.pop(pid, None)
            if ended is not None:
                ended(status)

    def signal_all(self, number: int) -> int:
        """Signals every process below this one and says how many there were."""
        found = _descendants(os.getpid())
        for pid in found:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return len(found)


class _Descriptor:
    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


class Lines:
    """Cuts what a descriptor gives into lines. A line of more than ``limit`` bytes is given in pieces: a log line must not
    fill memory.
    """

    def __init__(self, loop: Loop, descriptor: int, on_line: Callable[[str], None], on_end: Callable[[], None]) -> None:
        self._loop, self._descriptor = loop, _Descriptor(descriptor)
        self._on_line, self._on_end = on_line, on_end
        self.limit = 16 * 1024
        self._rest = b""
        self._open = True
        os.set_blocking(descriptor, False)
        loop.watch(self._descriptor, self._read)

    def _read(self) -> bool:
        """Takes one piece; False when nothing is there now."""
        try:
            data = os.read(self._descriptor.fileno(), 64 * 1024)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            self._end()
            return False
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._on_line(line.decode(errors="replace").rstrip("\r"))
        while len(self._rest) > self.limit:
            self._on_line(self._rest[: self.limit].decode(errors="replace"))
            self._rest = self._rest[self.limit :]
        return True

    def drain(self) -> None:
        """Reads what is left without waiting: the writer has ended, though its own children may hold the pipe open."""
        while self._open and self._read():
            pass

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._loop.forget(self._descriptor)
            if self._rest:
                self._on_line(self._rest.decode(errors="replace"))
            self._on_end()


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:  # it has ended meanwhile
                continue
            parents[int(folder.name)] = int(text.rpartition(")")[2].split()[1])
    found: list[int] = []
    waiting = [root]
    while waiting:
        parent = waiting.pop()
        children = [pid for pid, above in parents.items() if above == parent]
        found += children
        waiting += children
    return found
