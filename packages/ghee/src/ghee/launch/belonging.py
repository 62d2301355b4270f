"""What belongs to a run, known by its environment: found wherever it has gone, and ended with the run.

`mpiexec` gives every rank a session of its own, and a rank whose proxy was killed is nobody's child any more; so is what a
function has started and left. Neither the tree of processes nor their groups find those. What stands in the environment
goes with every `fork` and `exec`; a program that is started with another environment leaves the run by that.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from ghee.launch.mpi import mapped, unlink

MARK = "GHEE_WORLD"
"""The variable in the environment of every process of a world: FOLDER/STAGE-REPLICA-LIFE/, the folder being the run's."""

KILL_SECONDS = 5.0
"""How long the kernel may take to end a process that was killed (one that waits for a dead disk does not end)."""

_WATCH = r"""
while read -r _; do :; done
rounds=0 names=
while [ $rounds -lt 50 ]; do
    found=$(grep -lFs "$1" /proc/[0-9]*/environ)
    [ -n "$found" ] || break
    for one in $found; do
        one=${one%/environ}
        names="$names $(sed -n 's|.*\(/dev/shm/mpich_shm_[^ ]*\)$|\1|p' "$one/maps" 2>/dev/null)"
        kill -9 "${one#/proc/}" 2>/dev/null
    done
    rounds=$((rounds + 1))
    [ $rounds -gt 2 ] && sleep 0.1
done
rm -rf "$2" $names
"""
"""Waits for the end of its input, then kills what has the mark and removes the run's folder."""


class Guard:
    """A small process that ends a run whose driver was killed, from before the first rank on.

    It holds the other end of a pipe. Ranks watch the driver themselves (ghee.launch.process), but only those that have got
    as far as that.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to watch; once."""
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "ghee-guard", f"{MARK}={self._folder}/", self._folder],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
            env={name: value for name, value in os.environ.items() if name != MARK},  # not of the run that it watches over
        )  # fmt: skip
        assert self._process.stdin is not None
        _held.add(self._process.stdin.fileno())

    def end(self) -> None:
        """The run was ended in order. May be called twice."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.kill()
            process.wait()
            _held.discard(process.stdin.fileno())
            process.stdin.close()


_held: set[int] = set()
"""Guards' pipes: a forked child of the driver that held one would keep the driver alive in the guard's eyes."""


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def mark(folder: str, world: str = "") -> str:
    """What is in the variable: of one world, or what that of every world of the run begins with."""
    return f"{folder}/{world}/" if world else f"{folder}/"


def environment(of: Mapping[str, str], marked: str) -> dict[str, str]:
    """An environment with the mark."""
    return {**of, MARK: marked}


def end_marked(marked: str, seconds: float) -> list[str]:
    """Ask what has the mark to end (SIGTERM), and kill what has not within `seconds`; returns what it was, as `ps` would."""
    found = _marked(marked)
    try:
        named = [f"{pid} ({_command(pid)})" for pid in found]
        for descriptor in found.values():
            _signal(descriptor, signal.SIGTERM)
        _wait(found.values(), seconds)
    finally:
        _close(found)
    kill_marked(marked)
    return named


def kill_marked(marked: str) -> None:
    """Kill what has the mark, and what it starts meanwhile; take the names of MPI's memory away that it had mapped."""
    deadline = time.monotonic() + KILL_SECONDS
    while (found := _marked(marked)) and time.monotonic() < deadline:
        try:
            for descriptor in found.values():
                _signal(descriptor, signal.SIGSTOP)  # what it has mapped is not to change any more
            names = {name for pid in found for name in mapped(str(pid))}
            for descriptor in found.values():
                _signal(descriptor, signal.SIGKILL)
            unlink(names)
            _wait(found.values(), deadline - time.monotonic())
        finally:
            _close(found)


def _marked(marked: str) -> dict[int, int]:
    """Processes with the mark, each with a descriptor of it, so that no other that gets its number is taken for it."""
    wanted = f"\0{MARK}={marked}".encode()
    found: dict[int, int] = {}
    for pid in [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]:
        if pid == os.getpid() or wanted not in _environment(pid):
            continue
        try:
            found[pid] = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if wanted not in _environment(pid):
            os.close(found.pop(pid))
    return found


def _environment(pid: int) -> bytes:
    try:
        return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it is gone, or another user's
        return b""


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    except OSError:
        return "gone"


def _signal(descriptor: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass


def _wait(descriptors: Iterable[int], seconds: float) -> None:
    poll, left = select.poll(), set(descriptors)
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + seconds
    while left and (rest := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(rest * 1000):
            poll.unregister(descriptor)
            left.discard(descriptor)


def _close(found: Mapping[int, int]) -> None:
    for descriptor in found.values():
        os.close(descriptor)
