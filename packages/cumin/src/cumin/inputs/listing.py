"""Listing files with their state, here and on other file systems; and hashing their bytes.

Local listing is one `listdir` a folder and one `stat` a file, every time: the decision "nothing changed" over a million
files rests on it. What follows from the answers (lines and tokens) is kept for folders whose answers are the same again.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cumin.errors import InputError
from cumin.fingerprint import line, line_name, token
from cumin.place import LocalPlace, Place, RemotePlace

if TYPE_CHECKING:
    import sqlite3

# A file may be written twice within one tick of its file system's clock, the second time unseen. So a listing waits
# until the newest change is older than the tick: 20 ms on file systems that keep fractions (the kernel's own tick is
# 1 to 10 ms), 2 s on those that keep whole seconds.
FINE_TICK_NS, COARSE_TICK_NS = 20_000_000, 2_000_000_000
_HASH_BUFFER = 1 << 20
_FOOTER_TAIL = 8
_KEPT_FILES = 200_000  # some 100 MB

_State = tuple[int, int, int, int, int]  # all of a file's line but its name; and its mode
_state: Callable[[os.stat_result], _State] = attrgetter("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_mode")


@dataclass(slots=True)
class Listed:
    """The lines of a folder's files, their bytes in all, and the newest change (local; else 0) in ns."""

    lines: list[str] = field(default_factory=list)
    bytes: int = 0
    newest: int = 0
    _tokens: dict[str, str] = field(default_factory=dict)

    def token(self, strength: str) -> str:
        """The token of these lines as they are. The lines change no more after that."""
        if strength not in self._tokens:
            self._tokens[strength] = token(strength, self.lines)
        return self._tokens[strength]


class _Kept:
    """What was made of a folder's names and states, for when the same are found again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: dict[str, tuple[list[str], list[_State], Listed]] = {}
        self._files = 0

    def find(self, folder: str, names: list[str], states: list[_State]) -> Listed | None:
        known = self._folders.get(folder)
        return known[2] if known is not None and known[0] == names and known[1] == states else None

    def keep(self, folder: str, names: list[str], states: list[_State], listed: Listed) -> None:
        with self._lock:
            before = self._folders.pop(folder, None)
            self._files += len(names) - (len(before[0]) if before else 0)
            if self._files > _KEPT_FILES:
                self._folders.clear()
                self._files = len(names)
            self._folders[folder] = (names, states, listed)


_kept = _Kept()


def list_lines(place: Place, folder: str, *, strength: str) -> Listed:
    """The files under `folder` (relative to `place`) as lines; names are relative to `folder`.

    Names that begin with ``.`` or ``_`` are left out, as Hive and Spark do. `strength` is stat or etag.
    """
    if isinstance(place, LocalPlace):
        return _local(place.full(folder))
    assert isinstance(place, RemotePlace)
    return _remote(place, folder, strength)


def file_lines(place: Place, names: Sequence[str], *, strength: str) -> Listed:
    """The same for named files (relative to `place`). Raises InputError naming all that are not there."""
    listed, missing = Listed(), []
    for name in names:
        try:
            if isinstance(place, LocalPlace):
                st = os.stat(place.full(name))
                listed.lines.append(_stat_line(name, st))
                listed.bytes += st.st_size
                listed.newest = max(listed.newest, st.st_ctime_ns)
            else:
                assert isinstance(place, RemotePlace)
                size, state = _remote_state(place.fs.info(place.full(name)), strength)
                listed.lines.append(line(name, size, state))
                listed.bytes += size
        except FileNotFoundError:
            missing.append(f"{place.full(name)} is not there.")
    if missing:
        raise InputError(missing)
    return listed


def settle(take: Callable[[], list[Listed]]) -> list[Listed]:
    """Local listings taken when no file in them was changed within the clock's tick. Waits for two seconds at most."""
    while True:
        listings = take()
        newest = max((listed.newest for listed in listings), default=0)
        if not newest:
            return listings
        tick = FINE_TICK_NS if newest % 1_000_000 else COARSE_TICK_NS
        wait = newest + tick - time.time_ns()
        if wait <= 0:
            return listings
        if wait > 2 * COARSE_TICK_NS:
            raise InputError(
                f"A file was changed {wait / 1e9:.0f} s in the future, so its state cannot be trusted. Set the clock "
                'right, or name the files by their bytes (strength="bytes").'
            )
        time.sleep(wait / 1e9)  # until a later write gets another time than what was just seen


def _stat_line(name: str, st: os.stat_result) -> str:
    return f"{len(name)}:{name},{st.st_size},m{st.st_mtime_ns},c{st.st_ctime_ns},i{st.st_ino}"


def _local(folder: str) -> Listed:
    names, states = _look(folder)
    listed = _kept.find(folder, names, states)
    if listed is None:
        listed = Listed()
        flat = not _add(folder, "", names, states, listed)
        listed.lines.sort()
        if flat and len(names) <= _KEPT_FILES:
            _kept.keep(folder, names, states, listed)
    return listed


def _look(folder: str) -> tuple[list[str], list[_State]]:
    """The names in a folder, and the state of each. Files are asked for by their folder's descriptor: the kernel then
    walks no path. No bytecode between two files: this is the cost of a plan over a million of them."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = [name for name in os.listdir(descriptor) if name[0] not in "._"]
            return names, list(map(_state, map(partial(os.stat, dir_fd=descriptor), names)))
        finally:
            os.close(descriptor)
    except OSError as error:
        at = os.path.join(folder, error.filename) if isinstance(error.filename, str) else folder
        problem = "is not there" if isinstance(error, FileNotFoundError) else f"may not be read: {error.strerror}"
        raise InputError(f"{at} {problem}.") from error


def _add(folder: str, prefix: str, names: list[str], states: list[_State], listed: Listed) -> bool:
    """Add these files, and what is in these folders. True if there is a folder among them."""
    folders = [name for name, state in zip(names, states, strict=True) if S_ISDIR(state[4])]
    if folders:
        files = [(name, state) for name, state in zip(names, states, strict=True) if not S_ISDIR(state[4])]
        names, states = [name for name, _ in files], [state for _, state in files]
    if prefix:
        names = [prefix + name for name in names]
    # The same as _stat_line.
    listed.lines += [
        f"{len(name)}:{name},{size},m{modified},c{changed},i{inode}"
        for name, (size, modified, changed, inode, _) in zip(names, states, strict=True)
    ]
    listed.bytes += sum(state[0] for state in states)
    listed.newest = max(listed.newest, max((state[2] for state in states), default=0))
    for name in folders:
        _add(f"{folder}/{name}", f"{prefix}{name}/", *_look(f"{folder}/{name}"), listed)
    return bool(folders)


def _remote(place: RemotePlace, folder: str, strength: str) -> Listed:
    base = place.full(folder)
    try:
        found = place.fs.find(base, detail=True)
    except FileNotFoundError as error:
        raise InputError(f"{base} is not there.") from error
    listed = Listed()
    for path, info in found.items():
        name = str(path)[len(base) :].lstrip("/")
        if any(piece[:1] in "._" for piece in name.split("/")):
            continue
        size, state = _remote_state(info, strength)
        listed.lines.append(line(name, size, state))
        listed.bytes += size
    return listed


def _remote_state(info: dict[str, Any], strength: str) -> tuple[int, str]:
    size = int(info["size"])
    if strength == "etag":
        tag = info.get("ETag") or info.get("etag")
        if not tag:
            raise InputError(f"{info['name']} has no ETag; choose strength='stat' or 'bytes'.")
        version = info.get("VersionId")
        return size, "e" + str(tag).strip('"') + (f",v{version}" if version and version != "null" else "")
    for name in ("modification_time", "mtime", "LastModified", "last_modified", "created"):
        if info.get(name) is not None:
            return size, f"m{info[name]}"
    raise InputError(f"{info['name']} has no modification time; choose strength='bytes'.")


def has_etags(place: Place) -> bool:
    """Whether the file system is an object store whose listings carry ETags."""
    return isinstance(place, RemotePlace) and bool({"s3", "s3a"} & set(_protocols(place)))


def _protocols(place: RemotePlace) -> tuple[str, ...]:
    protocol = place.fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def hashed(place: Place, folder: str, lines: Sequence[str], strength: str, *, cached: bool) -> list[str]:
    """The lines with BLAKE3 of each file's bytes or footer in place of its state. `cached`: from the cache where known,
    for states that no rewrite can put back."""
    digest_of = _bytes_digest if strength == "bytes" else _footer_digest
    with closing(_cache()) if cached else nullcontext() as cache:
        known = {text: _recall(cache, place, folder, text, strength) if cache else None for text in lines}
        wanted = [text for text, value in known.items() if value is None]
        # Two threads keep the disk busy while the other hashes; BLAKE3 releases the interpreter's lock.
        with ThreadPoolExecutor(2, thread_name_prefix="cumin-hash") as pool:
            jobs = [pool.submit(digest_of, place, _under(folder, line_name(text))) for text in wanted]
            for text, job in zip(wanted, jobs, strict=True):
                known[text] = job.result()
        if cache:
            _remember(cache, place, folder, strength, [(text, str(known[text])) for text in wanted])
    letter = strength[0]
    return [f"{text[: _end_of_size(text)]},{letter}{known[text]}" for text in lines]


def _under(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _end_of_size(text: str) -> int:
    start = len(text.partition(":")[0]) + 1 + int(text.partition(":")[0])
    end = text.find(",", start + 1)
    return len(text) if end < 0 else end


def _bytes_digest(place: Place, path: str) -> str:
    hasher = blake3()
    buffer = bytearray(_HASH_BUFFER)
    view = memoryview(buffer)
    try:
        with place.open(path) as file:
            if place.local:  # no copy, and no new object for each piece
                while count := file.readinto(buffer):  # type: ignore[attr-defined]
                    hasher.update(view[:count])
            else:
                while data := file.read(_HASH_BUFFER):
                    hasher.update(data)
    except OSError as error:
        raise InputError(f"{place.full(path)} cannot be read: {error}.") from error
    return hasher.hexdigest()


def _footer_digest(place: Place, path: str) -> str:
    try:
        with place.open(path) as file:
            file.seek(-_FOOTER_TAIL, os.SEEK_END)
            tail = file.read(_FOOTER_TAIL)
            if tail[4:] != b"PAR1":
                raise InputError(f"{place.full(path)} is no Parquet file; strength='footer' is for Parquet only.")
            length = int.from_bytes(tail[:4], "little") + _FOOTER_TAIL
            file.seek(-length, os.SEEK_END)
            return blake3(file.read(length)).hexdigest()
    except OSError as error:
        raise InputError(f"{place.full(path)} cannot be read: {error}.") from error


def cache_folder() -> Path:
    """Where digests of files are remembered: `CUMIN_CACHE`, else the user's cache folder."""
    base = os.environ.get("CUMIN_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "cumin"
    )
    folder = Path(base)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _cache() -> "sqlite3.Connection":
    import sqlite3

    connection = sqlite3.connect(cache_folder() / "digests.sqlite", timeout=30)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS digests (file TEXT, strength TEXT, state TEXT, digest TEXT, "
        "PRIMARY KEY (file, strength)) WITHOUT ROWID"
    )
    return connection


def _recall(cache: "sqlite3.Connection", place: Place, folder: str, text: str, strength: str) -> str | None:
    file = _file_key(place, folder, text)
    row = cache.execute("SELECT state, digest FROM digests WHERE file = ? AND strength = ?", (file, strength)).fetchone()
    return row[1] if row and row[0] == text else None


def _remember(
    cache: "sqlite3.Connection", place: Place, folder: str, strength: str, found: Sequence[tuple[str, str]]
) -> None:
    rows = [(_file_key(place, folder, text), strength, text, digest) for text, digest in found]
    with cache:
        cache.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", rows)


def _file_key(place: Place, folder: str, text: str) -> str:
    return f"{place.url}/{_under(folder, line_name(text))}".encode("utf-8", "surrogateescape").hex()
