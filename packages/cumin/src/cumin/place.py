"""Where files lie: this machine's disk, or whatever fsspec reaches (S3, HDFS, …). The only file that imports fsspec.

A `Place` reads and lists for the inputs, and has the three writes that the store's safety rests on: `create` (whole
or not at all, and only if nothing is there), `replace`, and `put` (a finished local file to its last name).
"""

import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cumin.errors import ConfigError
from cumin.install import how_to_install

if TYPE_CHECKING:
    import fsspec
    import pyarrow.fs as pafs

SECRET_OPTIONS = frozenset({"key", "secret", "token", "password", "anon_key", "account_key", "sas_token"})


class Place(ABC):
    """A folder on some file system. Paths given to its methods are relative to it, with forward slashes."""

    root: str
    url: str
    local: bool

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""

    @abstractmethod
    def open(self, path: str) -> IO[bytes]:
        """The file, for reading."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a file whole, only if there is none: True if it was written, False if one was there."""

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Write a file whole, over one that is there."""

    @abstractmethod
    def put(self, local_file: Path, path: str) -> None:
        """Move a finished local file to `path`: whole or not at all, over a file that is there. Others may put the same
        bytes there meanwhile."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted; none if there is no such folder."""

    @abstractmethod
    def walk(self, folder: str) -> Iterator[str]:
        """Every file below a folder, relative to the root."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes of a file, or None if there is none."""

    @abstractmethod
    def age(self, path: str, now: float) -> float:
        """Seconds since the file was last written, by its file system's clock. Raises FileNotFoundError."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all in it; nothing happens if there is none."""

    @abstractmethod
    def arrow(self) -> "pafs.FileSystem":
        """This file system as pyarrow reads it; give it `full` paths."""

    def full(self, path: str) -> str:
        """`path` as the file system itself names it."""
        return f"{self.root}/{path}" if path else self.root


def place(url: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Place:
    """The place that a path or a URL names. Raises ConfigError for a scheme that nothing installed can read."""
    text = os.fspath(url)
    if text.startswith("file://"):
        text = text[len("file://") :]
    if "://" not in text:
        return LocalPlace(os.path.abspath(os.path.expanduser(text)))
    try:
        file_system, path = _remote(text, dict(options or {}))
    except ImportError as error:
        extra = {"s3": "s3", "s3a": "s3", "hdfs": "hdfs", "viewfs": "hdfs"}.get(text.partition("://")[0])
        remedy = f" Do this first: {how_to_install(extra)}." if extra else ""
        raise ConfigError(f"{text} cannot be reached: {error}.{remedy}") from error
    except ValueError as error:
        raise ConfigError(
            f"{text} cannot be reached: {error}. Allowed: a path, s3://, hdfs://, or an fsspec URL."
        ) from error
    return RemotePlace(file_system, path.rstrip("/"), text.rstrip("/"))


def _remote(url: str, options: dict[str, Any]) -> tuple["fsspec.AbstractFileSystem", str]:
    if url.startswith(("hdfs://", "viewfs://")):
        # fsspec's own hdfs needs libhdfs and a JVM in the process; hdfs-native speaks the protocol itself.
        from hdfs_native.fsspec import HdfsFileSystem, ViewfsFileSystem

        kind = HdfsFileSystem if url.startswith("hdfs") else ViewfsFileSystem
        where: dict[str, Any] = kind._get_kwargs_from_urls(url)
        # Not in fsspec's cache: it is emptied in every forked child, where the client's runtime waits for threads that
        # are not there. A program that has read from HDFS could start no Spark then (its JVM is started by a fork).
        return kind(**where, **options, skip_instance_cache=True), kind._strip_protocol(url)
    import fsspec.core

    file_system, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    return file_system, path


def absolute(url: str | os.PathLike[str]) -> str:
    """A path of this machine made absolute, so that it means the same from every folder; a URL as it is."""
    text = os.fspath(url).removeprefix("file://")
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def public_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without what opens a door: what a manifest may keep."""
    return {name: value for name, value in options.items() if name not in SECRET_OPTIONS}


@dataclass
class LocalPlace(Place):
    """A folder of this machine."""

    root: str
    local: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.url = self.root

    def read(self, path: str) -> bytes:
        return Path(self.full(path)).read_bytes()

    def open(self, path: str) -> IO[bytes]:
        return Path(self.full(path)).open("rb")

    def create(self, path: str, data: bytes) -> bool:
        """By a hard link, which fails where the name is taken."""
        beside = self._write_beside(path, data)
        try:
            os.link(beside, self.full(path))  # fails if there is one, and shows the file whole or not at all
        except FileExistsError:
            return False
        finally:
            os.unlink(beside)
        _sync_folder(os.path.dirname(self.full(path)))
        return True

    def replace(self, path: str, data: bytes) -> None:
        os.replace(self._write_beside(path, data), self.full(path))

    def _write_beside(self, path: str, data: bytes) -> str:
        target = self.full(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        beside = f"{os.path.dirname(target)}/.{uuid.uuid4().hex}"
        try:
            with open(beside, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(beside)
            raise
        return beside

    def put(self, local_file: Path, path: str) -> None:
        """A rename: the staging folder is on the same file system."""
        target = self.full(path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with local_file.open("rb") as file:
            os.fsync(file.fileno())
        os.rename(local_file, target)
        _sync_folder(os.path.dirname(target))

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.full(folder)) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def walk(self, folder: str) -> Iterator[str]:
        for parent, _, names in os.walk(self.full(folder)):
            for name in names:
                yield os.path.relpath(os.path.join(parent, name), self.root)

    def size(self, path: str) -> int | None:
        try:
            return os.stat(self.full(path)).st_size
        except FileNotFoundError:
            return None

    def age(self, path: str, now: float) -> float:
        return now - os.stat(self.full(path)).st_mtime

    def delete(self, path: str) -> None:
        """A folder is emptied file by file, not at once."""
        target = self.full(path)
        with suppress(FileNotFoundError):
            if os.path.isdir(target):
                shutil.rmtree(target)
            else:
                os.unlink(target)

    def arrow(self) -> "pafs.FileSystem":
        import pyarrow.fs as pafs

        return pafs.LocalFileSystem()


@dataclass
class RemotePlace(Place):
    """A folder on a file system of fsspec."""

    fs: Any
    root: str
    url: str
    local: bool = field(default=False, init=False)

    def read(self, path: str) -> bytes:
        return bytes(self.fs.cat_file(self.full(path)))

    def open(self, path: str) -> IO[bytes]:
        opened: IO[bytes] = self.fs.open(self.full(path), "rb")
        return opened

    def create(self, path: str, data: bytes) -> bool:
        """On HDFS by a rename, which fails where the name is taken; on an object store by a conditional put."""
        target = self.full(path)
        if not self._renames:
            try:
                self.fs.pipe_file(target, data, mode="create")
            except (FileExistsError, PermissionError, OSError) as error:
                if isinstance(error, FileExistsError) or _precondition_failed(error):
                    return False
                raise
            return True
        beside = self._write_beside(target, data)
        try:
            self.fs.mv(beside, target)  # HDFS: refuses if there is one, and shows the file whole or not at all
        except (OSError, RuntimeError):
            if not self.fs.exists(target):
                raise
            return False
        finally:
            with suppress(FileNotFoundError, OSError):
                self.fs.rm(beside)
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Readers see the old file or the new one."""
        target = self.full(path)
        if self._renames:
            self.fs.mv(self._write_beside(target, data), target, overwrite=True)
        else:
            self.fs.pipe_file(target, data)

    @property
    def _renames(self) -> bool:
        """HDFS renames atomically; an object store has no rename, but puts an object whole."""
        return self.fs.protocol in ("hdfs", "viewfs")

    def _write_beside(self, target: str, data: bytes) -> str:
        folder = target.rpartition("/")[0]
        self.fs.makedirs(folder, exist_ok=True)
        beside = f"{folder}/.{uuid.uuid4().hex}"
        with self.fs.open(beside, "wb") as file:
            file.write(data)
        return beside

    def put(self, local_file: Path, path: str) -> None:
        """A copy; the local file goes when it is there."""
        target = self.full(path)
        if self._renames:
            folder = target.rpartition("/")[0]
            self.fs.makedirs(folder, exist_ok=True)
            beside = f"{folder}/.{uuid.uuid4().hex}"
            with local_file.open("rb") as source, self.fs.open(beside, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 22)
            self.fs.mv(beside, target, overwrite=True)
        else:
            self.fs.put_file(str(local_file), target)
        local_file.unlink()

    def names(self, folder: str) -> list[str]:
        """On an object store, whatever stands behind the folder's prefix."""
        try:
            found = self.fs.ls(self.full(folder), detail=False)
        except FileNotFoundError:
            return []
        names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if name and not name.startswith("."))

    def walk(self, folder: str) -> Iterator[str]:
        """By one recursive listing."""
        try:
            found = self.fs.find(self.full(folder))
        except FileNotFoundError:
            return
        for path in found:
            yield str(path)[len(self.root) + 1 :]

    def size(self, path: str) -> int | None:
        try:
            return int(self.fs.info(self.full(path))["size"])
        except FileNotFoundError:
            return None

    def age(self, path: str, now: float) -> float:
        modified = self.fs.modified(self.full(path))
        return now - float(modified.timestamp())

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm(self.full(path), recursive=True)

    def arrow(self) -> "pafs.FileSystem":
        import pyarrow.fs as pafs

        return pafs.PyFileSystem(pafs.FSSpecHandler(self.fs))


def _precondition_failed(error: Exception) -> bool:
    """S3's answer to a create-only put of what exists (412), or that another such put is on its way (409)."""
    text = f"{error} {error.__cause__}"
    return "PreconditionFailed" in text or "pre-conditions" in text or "ConditionalRequestConflict" in text


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
