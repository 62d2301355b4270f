"""Collecting what nobody names. Mark, wait, delete: in that order, and never where a marker cannot be asked.

Kept: every version of every name (or the newest `keep` of each), every pin, every build that a live MLflow run is
tagged with, every build being built with all that its builder leans on, and whatever these were built from. The rest
gets a tombstone on the first run and is deleted by a run at least `grace` later, which says so first and then looks once
more (`cumin.needs`): a build that has a name again by then is kept.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cumin.dataset import load
from cumin.errors import ConfigError, NotFoundError, StoreError
from cumin.needs import announced, covers, needed
from cumin.publishing import now
from cumin.store import Store, entry_path

GRACE_DAYS = 7.0
_HALF_WRITTEN_SECONDS = 3600.0  # a file that is being written has a name of its own until it is whole
Marker = Callable[[str], Iterable[str]]  # tracking URI -> the build ids its runs name


@dataclass
class Collected:
    """What a run of gc did, or would do."""

    kept: dict[str, list[str]] = field(default_factory=dict)  # build id -> why
    marked: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """As `cumin gc --json` prints it."""
        return {
            "kept": self.kept,
            "marked": self.marked,
            "deleted": self.deleted,
            "files": self.files,
            "bytes": self.bytes,
        }


def pin(store: Store, spec: str, *, label: str | None = None, reason: str = "") -> str:
    """Keep a build from gc, and give it a label if one is said (``name@label``). The pin's name."""
    build_id = store.resolve(spec)
    name = f"{load(spec, store).name}@{label}" if label else build_id[3:]
    if label is not None and (not label or (label[0] == "v" and label[1:].isdigit()) or "/" in label):
        raise ConfigError(f"The label {label!r}: not empty, no '/', and not like a version (v3).")
    store.put_record(f"pins/{name}.json", {"build_id": build_id, "reason": reason, "created": now()}, replace=True)
    return name


def unpin(store: Store, name: str) -> None:
    """Take a pin away: ``name@label``, or what names a build (as in `pin`) that was pinned without a label."""
    path = f"pins/{name.removeprefix('b1:')}.json"
    if store.record(path) is None:
        with suppress(NotFoundError):
            path = f"pins/{store.resolve(name)[3:]}.json"
    if store.record(path) is None:
        known = ", ".join(each.removesuffix(".json") for each in store.place.names("pins")) or "none"
        raise NotFoundError(f"{name!r} is not pinned. Pins: {known}.")
    store.place.delete(path)


def collect(
    store: Store,
    *,
    dry_run: bool,
    grace_days: float = GRACE_DAYS,
    keep: int | None = None,
    markers: Marker | None = None,
    clock: float | None = None,
) -> Collected:
    """Run the collector. `markers` asks the tracking servers that `mlflow.log_input` has noted in the store.

    Raises StoreError, having deleted nothing, if one of them cannot be asked or an entry cannot be read; and ConfigError
    for days or numbers that make no sense.
    """
    if grace_days < 0 or (keep is not None and keep < 1):
        raise ConfigError(f"grace_days={grace_days:g}, keep={keep}; allowed: days of 0 or more, and to keep 1 or more.")
    at = time.time() if clock is None else clock
    done = Collected()
    drop = _mark(store, done, keep, markers)
    doomed = []
    for build_id in store.builds():
        if build_id in done.kept:
            if not dry_run:
                store.place.delete(f"tombstones/{build_id[3:]}.json")
            continue
        tombstone = store.record(f"tombstones/{build_id[3:]}.json")
        if tombstone is None:
            done.marked.append(build_id)
            if not dry_run:
                store.put_record(f"tombstones/{build_id[3:]}.json", {"since": at})
        elif at - tombstone["since"] >= grace_days * 86_400:
            doomed.append(build_id)
    dead = _dead(store, doomed, at, grace_days)
    if dry_run:
        done.deleted, done.files = doomed, sorted(dead)
        done.bytes = sum(dead.values())
        return done
    for name, number in drop:
        store.delete_version(name, number)
    if doomed or dead:
        _sweep(store, done, doomed, dead, keep, markers)
    return done


def _dead(store: Store, doomed: list[str], at: float, grace_days: float) -> dict[str, int]:
    """The files that nothing needs but builds that are doomed, with their sizes."""
    without = set(doomed)
    live = _reachable(store, [each for each in store.builds() if each not in without])
    dead = {}
    for path in _files(store):
        if path in live:
            continue
        with suppress(FileNotFoundError):  # a builder's own, that is gone meanwhile
            age = store.place.age(path, at)
            half_written = path.rpartition("/")[2].startswith(".") and age < _HALF_WRITTEN_SECONDS
            if age >= grace_days * 86_400 and not half_written:
                dead[path] = store.place.size(path) or 0
    return dead


def _sweep(
    store: Store, done: Collected, doomed: list[str], dead: dict[str, int], keep: int | None, markers: Marker | None
) -> None:
    """Say what will be deleted, look once more at who needs it, delete the rest. See `cumin.needs`."""
    with announced(store, [*(entry_path(each) for each in doomed), *dead]) as sweep:
        again = Collected()
        _mark(store, again, keep, markers)  # names and pins that came meanwhile
        doomed = [each for each in doomed if each not in again.kept]
        without = set(doomed)
        live = _reachable(store, [each for each in store.builds() if each not in without])
        needs = needed(store, time.time())
        folders = {each for each in needs if each.endswith("/")}
        for build_id in doomed:
            if not sweep.alive():
                return
            store.delete_build(build_id)
            store.place.delete(f"tombstones/{build_id[3:]}.json")
            done.deleted.append(build_id)
        for path, size in dead.items():
            if path in live or path in needs or any(covers(each, path) for each in folders):
                continue
            if not sweep.alive():
                return
            store.place.delete(path)
            done.files.append(path)
            done.bytes += size


def _mark(store: Store, done: Collected, keep: int | None, markers: Marker | None) -> list[tuple[str, int]]:
    """Fill in what is kept and why; the versions that `keep` lets go."""
    drop: list[tuple[str, int]] = []

    def hold(build_id: str, why: str) -> None:
        waiting = [(build_id, why)]
        while waiting:
            each, reason = waiting.pop()
            done.kept.setdefault(each, []).append(reason)
            entry = store.entry(each)
            if entry is not None and len(done.kept[each]) == 1:
                parents = (parent for source in store.manifest(entry["manifest"])["inputs"] for parent in source["parents"])
                waiting += [(parent["build_id"], f"input of {each[:15]}") for parent in parents]

    for name in store.names():
        versions = store.versions(name)
        old = versions[:-keep] if keep else []
        drop += [(name, each["version"]) for each in old]
        for each in versions[len(old) :]:
            hold(each["build_id"], f"{name}@v{each['version']}")
    for file in store.place.names("pins"):
        record = store.record(f"pins/{file}")
        if record is not None:
            hold(record["build_id"], f"pin {file.removesuffix('.json')}")
    for folder in store.place.names("leases"):
        if store.place.names(f"leases/{folder}"):
            hold(f"b1:{folder}", "being built")
    for file in store.place.names("marks"):
        mark = store.record(f"marks/{file}")
        if mark is None:
            continue
        if markers is None:
            raise StoreError(f"MLflow runs at {mark['uri']} may name builds, and cannot be asked. Nothing was deleted.")
        for build_id in markers(mark["uri"]):
            hold(build_id, f"MLflow at {mark['uri']}")
    return drop


def _reachable(store: Store, builds: Iterable[str]) -> set[str]:
    """Every file that these builds need."""
    live: set[str] = set()
    for build_id in builds:
        entry = store.entry(build_id)
        if entry is None:
            continue
        digests = [entry["manifest"]]
        for name in store.place.names(f"conflicts/{build_id[3:]}"):
            digests.append(name.removesuffix(".json"))
        for digest in digests:
            manifest = store.manifest(digest)
            live.add(f"manifests/{digest[:2]}/{digest}.json")
            live |= {f"listings/{each['listing'][:2]}/{each['listing']}.json" for each in manifest["inputs"]}
            for unit in manifest["output"]["units"]:
                live.add(f"data/{unit['unit'][:2]}/{unit['unit']}/unit.json")
                live |= {file["path"] for file in unit["files"]}
                if "build_id" in unit:
                    live.add(f"partitions/{unit['build_id'][3:5]}/{unit['build_id'][3:]}.json")
    return live


def _files(store: Store) -> Iterable[str]:
    for folder in ("manifests", "listings", "partitions", "data", "staging"):
        yield from store.place.walk(folder)
