"""Listing files with their state, here and on other file systems; and hashing their bytes.

Local listing is one `listdir` a folder and one `stat` a file: the decision "nothing changed" over a million files rests
on it.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cumin.errors import InputError
from cumin.fingerprint import line, line_name
from cumin.place import LocalPlace, Place, RemotePlace

if TYPE_CHECKING:
    import sqlite3

# A file may be written twice within one tick of its file system's clock, the second time unseen. So a listing waits
# until the newest change is older than the tick: 20 ms on file systems that keep fractions (the kernel's own tick is
# 1 to 10 ms), 2 s on those that keep whole seconds.
FINE_TICK_NS, COARSE_TICK_NS = 20_000_000, 2_000_000_000
_HASH_BUFFER = 1 << 20
_FOOTER_TAIL = 8


@dataclass(slots=True)
class Listed:
    """The lines of a folder's files, their bytes in all, and the newest change (local; else 0) in ns."""

    lines: list[str] = field(default_factory=list)
    bytes: int = 0
    newest: int = 0


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
        time.sleep(wait / 1e9)


def _stat_line(name: str, st: os.stat_result) -> str:
    return f"{len(name)}:{name},{st.st_size},m{st.st_mtime_ns},c{st.st_ctime_ns},i{st.st_ino}"


def _local(folder: str) -> Listed:
    listed = Listed()
    _scan(folder, "", listed)
    return listed


def _scan(folder: str, prefix: str, listed: Listed) -> None:
    """Add what is under `folder`. Files are asked for by their folder's descriptor: the kernel then walks no path."""
    at = folder
    add, stat, is_folder = listed.lines.append, os.stat, S_ISDIR
    folders = []
    total, newest = 0, listed.newest
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in os.listdir(descriptor):
                if name[0] in "._":
                    continue
                at = name
                st = stat(name, dir_fd=descriptor)
                if is_folder(st.st_mode):
                    folders.append(name)
                    continue
                if prefix:
                    name = prefix + name
                size, changed = st.st_size, st.st_ctime_ns
                total += size
                if changed > newest:
                    newest = changed
                # The same as _stat_line; written out, because this loop is the cost of a plan over a million files.
                add(f"{len(name)}:{name},{size},m{st.st_mtime_ns},c{changed},i{st.st_ino}")
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise InputError(f"{os.path.join(folder, at)} is not there.") from error
    except OSError as error:
        raise InputError(f"{os.path.join(folder, at)} may not be read: {error.strerror}.") from error
    listed.bytes += total
    listed.newest = newest
    for name in folders:
        _scan(f"{folder}/{name}", f"{prefix}{name}/", listed)


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


def hashed(place: Place, folder: str, lines: Sequence[str], strength: str) -> list[str]:
    """The lines with BLAKE3 of each file's bytes or footer in place of its state, from the cache where known."""
    digest_of = _bytes_digest if strength == "bytes" else _footer_digest
    with closing(_cache()) as cache:
        known = {text: _recall(cache, place, folder, text, strength) for text in lines}
        wanted = [text for text, value in known.items() if value is None]
        # Two threads keep the disk busy while the other hashes; BLAKE3 releases the interpreter's lock.
        with ThreadPoolExecutor(2, thread_name_prefix="cumin-hash") as pool:
            jobs = [pool.submit(digest_of, place, _under(folder, line_name(text))) for text in wanted]
            for text, job in zip(wanted, jobs, strict=True):
                known[text] = job.result()
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
