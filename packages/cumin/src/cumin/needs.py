"""What builders are about to publish and what gc is about to delete: each says so before it looks for the other.

A builder writes its *needs*, beside its lease, before it looks whether a file is there that it could lean on; gc writes
a *sweep*, the files it means to delete, before it reads the needs. So of two that meet, one at least sees the other: gc
keeps what is needed, and the builder waits until a sweep that names what it needs has ended.

```
leases/<build>/000001.needs     the paths a builder leans on: files, or folders that end in /
sweeps/<token>.json, .beat      the paths a running gc deletes, and its heartbeat
```
"""

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cumin.errors import CorruptError
from cumin.lease import PATIENCE_SECONDS, beating, gone, holder

if TYPE_CHECKING:
    from cumin.store import Store

# A builder on another machine is taken for dead when its heartbeat is so old, by the clock of the store.
_DEAD_SECONDS = 86_400.0
_POLL_SECONDS = 0.05


def covers(need: str, path: str) -> bool:
    """Whether a need, a file or a folder that ends in a slash, covers this file."""
    return path.startswith(need) if need.endswith("/") else path == need


def declare(store: "Store", path: str, needs: Iterable[str]) -> None:
    """Say that these paths are needed from now on, and wait for every gc that is deleting one of them."""
    wanted = sorted(set(needs))
    store.place.replace(path, json.dumps({"holder": holder(), "needs": wanted}).encode())
    wait_for_sweeps(store, wanted)


def wait_for_sweeps(store: "Store", needs: Iterable[str], *, patience: float = PATIENCE_SECONDS) -> None:
    """Return when no gc that is alive deletes one of these paths."""
    wanted = list(needs)
    for name in store.place.names("sweeps"):
        if name.endswith(".json"):
            _wait_for(store, f"sweeps/{name.removesuffix('.json')}", wanted, patience)


def _wait_for(store: "Store", path: str, needs: list[str], patience: float) -> None:
    seen: bytes | None = None
    since = time.monotonic()
    while True:
        try:
            sweep = store.record(f"{path}.json")
        except CorruptError:
            sweep = {"paths": needs, "holder": {}}  # half of one: waited for as long as its heart beats
        if sweep is None or not _meet(needs, sweep["paths"]):
            return
        try:
            beat = store.place.read(f"{path}.beat")
        except FileNotFoundError:
            beat = b""
        if beat != seen:
            seen, since = beat, time.monotonic()
        if gone(sweep["holder"]) or time.monotonic() - since > patience:
            # It was killed. A gc looks before each delete whether its sweep is still there.
            store.place.delete(f"{path}.json")
            store.place.delete(f"{path}.beat")
            return
        time.sleep(_POLL_SECONDS)  # who deletes elsewhere tells nobody that it has ended


def _meet(needs: list[str], doomed: Iterable[str]) -> bool:
    files = set(needs)
    folders = {each for each in needs if each.endswith("/")}
    return any(path in files or f"{path.rpartition('/')[0]}/" in folders for path in doomed)


class Sweep:
    """A sweep that was announced; `alive` says whether no builder took it for dead."""

    def __init__(self, store: "Store", path: str) -> None:
        self._store, self._path = store, path

    def alive(self) -> bool:
        """Whether the announcement is still there. Asked before each delete."""
        return self._store.place.size(f"{self._path}.json") is not None


@contextmanager
def announced(store: "Store", paths: Iterable[str]) -> Iterator[Sweep]:
    """Say which files will be deleted, for as long as the context is open."""
    path = f"sweeps/{uuid.uuid4().hex}"
    store.put_record(f"{path}.json", {"holder": holder(), "paths": sorted(paths)})
    try:
        with beating(store, path):
            yield Sweep(store, path)
    finally:
        store.place.delete(f"{path}.json")


def needed(store: "Store", now: float) -> set[str]:
    """All that living builders need. A record of a partition stands for the files that it names too."""
    found: set[str] = set()
    for folder in store.place.names("leases"):
        for name in store.place.names(f"leases/{folder}"):
            if name.endswith(".needs"):
                found |= _of_builder(store, f"leases/{folder}/{name}", now)
    return found


def _of_builder(store: "Store", path: str, now: float) -> set[str]:
    try:
        said: dict[str, Any] = json.loads(store.place.read(path))
        beat = f"{path.removesuffix('.needs')}.beat"
        last = beat if store.place.size(beat) is not None else path
        if gone(said["holder"]) or store.place.age(last, now) > _DEAD_SECONDS:
            return set()
    except FileNotFoundError:
        return set()  # released this moment: what it published has an entry now
    found = set(said["needs"])
    for each in said["needs"]:
        record = store.record(each) if each.startswith("partitions/") else None
        if record is not None and record["unit"] is not None:
            found |= {file["path"] for file in record["unit"]["files"]}
    return found
