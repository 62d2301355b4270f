"""The staging folder of one run inside a sink's target: made, locked while its run lives, cleared when it is dead.

On a local disk the driver holds a lock (flock) on the staging's owner file, which the kernel drops when the driver
dies, however it dies. Elsewhere there is no such lock: a staging counts as dead when its process was on this host
and is gone; those of other hosts are left alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import posixpath
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow.fs as pafs

from ghee.errors import SinkError
from ghee.io.location import is_local
from ghee.io.manifest import INTENT, OWNER, STAGING, load_note, read_manifest, tokens
from ghee.io.stores.uploads import end_uploads

DATA = "data"

NOBODY = {"host": None, "pid": None}
"""The owner of a staging that was left to a run that goes on."""


def _myself() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


class Staging:
    """`target/_staging-<token>/`. Only the driver that made it holds `_lock`, so that it does not pickle along."""

    def __init__(self, filesystem: Any, target: str, token: str, lock: int | None) -> None:
        self.filesystem = filesystem
        self.target = target
        self.token = token
        self._lock = lock

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    @property
    def path(self) -> str:
        return posixpath.join(self.target, STAGING + self.token)

    @property
    def data(self) -> str:
        return posixpath.join(self.path, DATA)

    def clear(self) -> None:
        """Ends a publish that was begun (see manifest.py), removes the folder and drops the lock."""
        clear(self.filesystem, self.target, self.path)
        self._unlock()

    def take_back(self) -> None:
        """Moves what a publish that was cut in the middle had put into the target back to where it came from."""
        filesystem, intent = self.filesystem, posixpath.join(self.path, INTENT)
        said = load_note(filesystem, intent)
        if said is None:
            return
        paths = [(posixpath.join(self.target, name), posixpath.join(self.data, name)) for name in said["add"]]
        published = filesystem.get_file_info([path for path, _ in paths])
        staged = filesystem.get_file_info([path for _, path in paths])
        for (path, back), there, here in zip(paths, published, staged, strict=True):
            if there.type == pafs.FileType.File and here.type != pafs.FileType.File:
                filesystem.create_dir(posixpath.dirname(back), recursive=True)
                filesystem.move(path, back)
        remove_files(filesystem, self.target, said["add"])  # copies, where a move is a copy, and empty folders
        filesystem.delete_file(intent)

    def keep_only(self, names: Sequence[str]) -> None:
        """Removes the part files that are not named: nobody has recorded them."""
        kept = {posixpath.join(self.data, name) for name in names}
        for info in self.filesystem.get_file_info(pafs.FileSelector(self.data, recursive=True, allow_not_found=True)):
            if info.type == pafs.FileType.File and info.path not in kept:
                self.filesystem.delete_file(info.path)
        end_uploads(self.filesystem, self.data)

    def release(self) -> None:
        """Leaves the folder to a run that goes on. A publish that reached its manifest is finished all the same."""
        if self.token in tokens(read_manifest(self.filesystem, self.target)):
            self.clear()
            return
        self.take_back()
        if not is_local(self.filesystem):
            write_file(self.filesystem, posixpath.join(self.path, OWNER), json.dumps(NOBODY).encode())
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def make_staging(filesystem: Any, target: str) -> Staging:
    token = uuid.uuid4().hex[:16]
    staging = Staging(filesystem, target, token, None)
    filesystem.create_dir(staging.data, recursive=True)
    owner = posixpath.join(staging.path, OWNER)
    write_file(filesystem, owner, json.dumps(_myself()).encode())
    if not is_local(filesystem):
        return staging
    lock = os.open(owner, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return Staging(filesystem, target, token, lock)


def adopt_staging(filesystem: Any, target: str, token: str) -> Staging | None:
    """The staging of a run that is dead, taken over by this process; None if it is not there.

    Raises SinkError where the run lives.
    """
    staging = Staging(filesystem, target, token, None)
    owner = posixpath.join(staging.path, OWNER)
    if load_note(filesystem, owner) is None:
        return None
    if is_local(filesystem):
        lock = os.open(owner, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise SinkError(f"{target} is being written by another process: the run is going on there") from None
        return Staging(filesystem, target, token, lock)
    said = load_note(filesystem, owner)
    if said["host"] == socket.gethostname() and said["pid"] != os.getpid() and _is_alive(filesystem, owner):
        raise SinkError(f"{target} is being written by process {said['pid']}: the run is going on there")
    write_file(filesystem, owner, json.dumps(_myself()).encode())
    return staging


def clear_dead(filesystem: Any, target: str) -> list[str]:
    """Removes the stagings of runs that are dead, and returns those of runs that live."""
    alive = []
    for info in filesystem.get_file_info(pafs.FileSelector(target, allow_not_found=True)):
        if not posixpath.basename(info.path).startswith(STAGING):
            continue
        if _is_alive(filesystem, posixpath.join(info.path, OWNER)):
            alive.append(info.path)
        else:
            clear(filesystem, target, info.path)
    return alive


def _is_alive(filesystem: Any, owner: str) -> bool:
    if is_local(filesystem):
        try:
            lock = os.open(owner, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False  # made and locked under the target's lock, so it died while it was being made
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False
    said = load_note(filesystem, owner)
    if said == NOBODY:
        return False
    if said is None or said["host"] != socket.gethostname():
        return said is not None
    try:
        os.kill(said["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def clear(filesystem: Any, target: str, staging: str) -> None:
    """Removes a staging. A publish that reached its manifest is finished; one that did not is taken back."""
    intent = load_note(filesystem, posixpath.join(staging, INTENT))
    if intent is not None:
        done = intent["token"] in tokens(read_manifest(filesystem, target))
        remove_files(filesystem, target, intent["remove" if done else "add"])
    end_uploads(filesystem, staging)
    with suppress(FileNotFoundError):
        filesystem.delete_dir(staging)


def remove_files(filesystem: Any, target: str, names: list[str]) -> None:
    """Removes files of the target and the partition folders that they leave empty."""
    for name in names:
        with suppress(FileNotFoundError):
            filesystem.delete_file(posixpath.join(target, name))
    folders = {folder for name in names for folder in _folders(name)}
    for folder in sorted(folders, key=len, reverse=True):
        path = posixpath.join(target, folder)
        if not filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
            with suppress(FileNotFoundError):
                filesystem.delete_dir(path)


def _folders(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        yield name


@contextmanager
def target_lock(filesystem: Any, target: str) -> Iterator[None]:
    """One driver at a time prepares or publishes on a (local) target; nothing is left behind by the lock."""
    if not is_local(filesystem):
        yield
        return
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def write_file(filesystem: Any, path: str, data: bytes) -> None:
    """Writes a small file; on a local disk it is on the disk when this returns."""
    if not is_local(filesystem):
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(filesystem: Any, path: str) -> None:
    """Makes the renames into a local folder survive a power cut."""
    if not is_local(filesystem):
        return
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
