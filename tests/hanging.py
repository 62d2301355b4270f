"""Where a test hangs: the stacks of this process's threads and of all Python processes that the tests have started."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

FOLDER = "SUITE_STACKS"
"""In the environment of everything that the tests start: where stacks are written, by pid."""

HUNG = pytest.StashKey[bool]()

STUCK = 60.0
"""Seconds after the time-out at which pytest itself is ended: its main thread does not come back from a call into C."""

_WRITTEN = 5.0
"""Seconds that a process may take to write its stacks."""


def all_stacks() -> str:
    """The text of a hang."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"── thread {names.get(ident, ident)!r} of pytest\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    ]
    asked = {pid: command for pid, command in processes().items() if _would_answer(pid)}
    for pid in asked:
        os.kill(pid, signal.SIGUSR2)
    parts += [f"── process {pid}: {command}\n{_answer(pid)}" for pid, command in asked.items()]
    return "\n".join(parts)


def processes() -> dict[int, str]:
    """The processes that the tests have started and that still run, with their command lines."""
    mark = f"{FOLDER}={os.environ[FOLDER]}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it is gone, or it is not ours
            continue
    found.pop(os.getpid(), None)
    return found


def _would_answer(pid: int) -> bool:
    """Whether it handles the signal, which would end any other, and has the file."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGUSR2 - 1) & 1) and (Path(os.environ[FOLDER]) / str(pid)).exists()


def _answer(pid: int) -> str:
    """What it has written, once that does not grow any more."""
    file, seen, deadline = Path(os.environ[FOLDER]) / str(pid), "", time.monotonic() + _WRITTEN
    while time.monotonic() < deadline:
        text = file.read_text()
        if text and text == seen:
            return text
        seen = text
        time.sleep(0.1)  # another process writes the file, and tells nobody
    return seen or "(it has not answered)\n"


def end(pids: Iterable[int]) -> None:
    """Kill processes, and wait until they are gone."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], _WRITTEN)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)


def end_if_stuck(config: pytest.Config, timeout: float) -> None:
    """From now on: the time-out's signal is handled in time, or the session ends, with the stacks of this process."""
    faulthandler.dump_traceback_later(timeout + STUCK, exit=True, file=config.stash[fault_handler_stderr_fd_key])


def is_not_stuck() -> None:
    """The test has ended."""
    faulthandler.cancel_dump_traceback_later()
