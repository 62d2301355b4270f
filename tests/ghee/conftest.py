"""After every test nothing is left: processes, threads, descriptors, shared memory, files."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

SESSION = "GHEE_TEST_SESSION"
"""In the environment of everything that the tests start, however far it has gone from its parent."""

GRACE = 10.0
"""Seconds within which what is on its way out has to be gone; a limit, never something that is waited for."""


def started_processes() -> dict[int, str]:
    """Processes that the tests have started and that are still there, by pid; their environment says whose they are."""
    mark = f"{SESSION}={os.environ[SESSION]}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found[int(entry.name)] = "a child that ended and was not waited for"
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it is gone, or it is not ours
            continue
    return found


def wait_gone(pid: int, seconds: float = GRACE) -> bool:
    """Wait for a process to end, by its pidfd; whether it has."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def open_descriptors() -> dict[str, str]:
    """Sockets, memfds, pidfds and the like of this process."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if target.startswith(("socket:", "pipe:", "anon_inode:", "/memfd:")) or "ghee" in target:
            found[entry] = target
    return found


def our_threads() -> set[threading.Thread]:
    """All threads but the main one."""
    return {thread for thread in threading.enumerate() if thread is not threading.main_thread()}


def shared_memory() -> set[str]:
    """The names in /dev/shm, but for those that belong to processes which the tests have not started."""
    if not os.path.isdir("/dev/shm"):
        return set()
    names = {name for name in os.listdir("/dev/shm") if not _mapped_elsewhere(f"/dev/shm/{name}")}
    return names & set(os.listdir("/dev/shm"))  # without those of others who were just about to end


def _mapped_elsewhere(path: str) -> bool:
    ours = {os.getpid(), *started_processes()}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) not in ours and path in (entry / "maps").read_text():
                return True
        except OSError:
            continue
    return False


def mapped_memory() -> set[str]:
    """Mappings of memfds of ours in this process."""
    found: set[str] = set()
    for _ in range(2):
        found = {line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:ghee" in line}
        if not found:
            break
        gc.collect()
    return found


def leftovers(before: dict[str, Any], processes: dict[int, str]) -> dict[str, Any]:
    """What is there now and was not there before."""
    mapped = mapped_memory()  # first: it collects garbage, which may hold descriptors too
    now = {
        "threads": {t.name for t in our_threads() - before["threads"]},
        "processes": processes,
        "descriptors": {f"{fd}: {to}" for fd, to in open_descriptors().items() if before["descriptors"].get(fd) != to},
        "temporary files": {
            name
            for name in os.listdir(tempfile.gettempdir())
            if not name.startswith("torchinductor_")  # torch's own cache, made when some of its modules are imported
        },
        "shared memory": shared_memory() - before["shared memory"],
        "mapped memory": mapped - before["mapped memory"],
    }
    return {what: left for what, left in now.items() if left}


@pytest.fixture(scope="session", autouse=True)
def _session() -> Iterator[None]:
    os.environ[SESSION] = f"{os.getpid()}-{time.time_ns()}"
    _send_without_copy()
    if os.geteuid() == 0:
        _own_shared_memory()
    yield
    del os.environ[SESSION]


def _send_without_copy() -> None:
    """Once before the tests: pyzmq starts a thread for messages that it does not copy, one for the process, for good."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://warm")
        other.connect("inproc://warm")
        one.send(bytearray(1 << 20), copy=False)
        other.recv()


def _own_shared_memory() -> None:
    """A /dev/shm of the session's own, so that other programs of this machine do not come and go in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive_private = 0x00020000, 0x4000 | 0x40000
    if libc.unshare(new_namespace) == 0 and libc.mount(None, b"/", None, recursive_private, None) == 0:
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, None)


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Own temp folder and GHEE_HOME for each test; whatever it leaves fails it."""
    temporary = tempfile.mkdtemp(prefix="t-")  # short: a socket's path has 107 characters at the most
    monkeypatch.setenv("GHEE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", temporary)
    monkeypatch.setattr(tempfile, "tempdir", temporary)
    before = {
        "threads": our_threads(),
        "descriptors": open_descriptors(),
        "shared memory": set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set(),
        "mapped memory": mapped_memory(),
    }
    yield
    for thread in our_threads() - before["threads"]:
        thread.join(GRACE)
    processes = started_processes()
    for pid in processes:
        wait_gone(pid)
    left = leftovers(before, started_processes() if processes else {})
    if left:
        gc.collect()  # what only garbage holds is not left behind
        left = leftovers(before, started_processes() if processes else {})
    shutil.rmtree(temporary)
    if request.node.get_closest_marker("server") is not None:
        left.pop("descriptors", None)  # clients of stores keep their connections, for the process's life
    assert not left, f"the test left behind: {left}"


@pytest.fixture
def running() -> Callable[[], dict[int, str]]:
    """The processes that the test has started and that still run."""
    return started_processes


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the runs of this test are the only ones there."""
    monkeypatch.setenv("GHEE_HOME", str(tmp_path / "ghee"))
