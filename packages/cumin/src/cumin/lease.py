"""One builder at a time, as far as that can be had: the others wait for its dataset, not for its lock.

A lease is a create-only file per generation, with a heartbeat beside it. A waiter that sees no new heartbeat for
`patience` seconds of its own clock, or the holder's process gone from its own machine, takes the next generation.
Losing a lease costs work done twice, never a wrong dataset: publishing does not rely on it.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cumin.errors import CorruptError
from cumin.store import Store

BEAT_SECONDS = 2.0
PATIENCE_SECONDS = 3 * BEAT_SECONDS + 1.0
_POLL_FIRST, _POLL_LAST = 0.02, 0.5


class Heart:
    """Writes a heartbeat at ``<path>.beat`` from a thread of its own until it is stopped."""

    def __init__(self, store: Store, path: str, seconds: float = BEAT_SECONDS) -> None:
        self._store, self._path, self._seconds = store, path, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cumin-lease", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(self._seconds):
            count += 1
            try:
                self._store.place.replace(f"{self._path}.beat", str(count).encode())
            except OSError:
                continue  # a missed beat at worst lets another builder do the work too

    def stop(self) -> None:
        """Beat no more; the file goes."""
        self._stop.set()
        self._thread.join()
        self._store.place.delete(f"{self._path}.beat")


class Lease:
    """A held lease; `release` ends it. Its heart beats in a thread of its own."""

    def __init__(self, store: Store, path: str, beat: float) -> None:
        self._store, self._path = store, path
        self._heart = Heart(store, path, beat)

    @property
    def needs(self) -> str:
        """Where its holder says what it needs (`cumin.needs`)."""
        return f"{self._path}.needs"

    def release(self) -> None:
        """Stop beating and let waiters look at once."""
        self._heart.stop()
        self._store.place.delete(f"{self._path}.json")
        self._store.place.delete(self.needs)


@contextmanager
def beating(store: Store, path: str) -> Iterator[None]:
    """A heartbeat at ``<path>.beat`` for as long as the context is open."""
    heart = Heart(store, path)
    try:
        yield
    finally:
        heart.stop()


def holder() -> dict[str, Any]:
    """Who this process is, for others to see whether it still runs."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid()), "token": uuid.uuid4().hex}


def _born(pid: int) -> str:
    """When a process of this machine started, so that a pid used again is not taken for its first owner."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def gone(holder: Mapping[str, Any]) -> bool:
    """Whether the holder ran on this machine and runs no more."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(holder["born"]) and _born(int(holder["pid"])) != holder["born"]


def acquire(
    store: Store,
    build_id: str,
    *,
    done: Callable[[], bool],
    waiting: Callable[[dict[str, Any]], None] = lambda holder: None,
    beat: float = BEAT_SECONDS,
    patience: float = PATIENCE_SECONDS,
) -> Lease | None:
    """The lease on a build, or None as soon as `done()` says that another builder has finished it."""
    folder = f"leases/{build_id[3:]}"
    seen: tuple[Any, ...] | None = None
    since, pause = time.monotonic(), _POLL_FIRST
    while True:
        if done():
            return None
        generations = [name for name in store.place.names(folder) if name.endswith(".json")]
        if not generations:
            number, held_by = 1, None
        else:
            number = int(generations[-1].removesuffix(".json"))
            held_by = _read(store, f"{folder}/{generations[-1]}")
            if held_by is None:
                continue  # released this moment
            state = (number, held_by.get("token"), _beat_of(store, f"{folder}/{number:06}.beat"))
            if state != seen:
                seen, since = state, time.monotonic()
            if not gone(held_by) and time.monotonic() - since < patience:
                waiting(held_by)
                time.sleep(pause)  # who holds a lease elsewhere tells nobody that it has ended
                pause = min(_POLL_LAST, pause * 1.5)
                continue
            number += 1
        path = f"{folder}/{number:06}"
        if store.put_record(f"{path}.json", holder()):
            if done():  # finished between the look and the lease
                store.place.delete(f"{path}.json")
                return None
            return Lease(store, path, beat)


def _read(store: Store, path: str) -> dict[str, Any] | None:
    try:
        return store.record(path)
    except CorruptError:
        return {"host": "", "pid": 0, "born": "", "token": "unreadable"}  # waited for, then passed over


def _beat_of(store: Store, path: str) -> bytes:
    try:
        return store.place.read(path)
    except FileNotFoundError:
        return b""
