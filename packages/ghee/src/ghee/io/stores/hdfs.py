"""HDFS as a pyarrow filesystem, by hdfs-native: neither Java nor libhdfs.

hdfs-native reads HADOOP_CONF_DIR (name services, their name nodes) and speaks Kerberos. Its own retries are turned off,
for they take three minutes for an address where nobody listens; ghee's are in `patience`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

T = TypeVar("T")

BUFFER = 1 << 20
"""Bytes that are gathered before they are sent: a format's writer writes many small pieces."""

_ONE_TRY, _EACH_NAME_NODE = "0", "3"
_ATTEMPTS = "dfs.client.failover.max.attempts"
_RPC_ERROR = re.compile(r'^RPCError\("(?P<kind>[^"]*)", "(?P<text>.*)"\)$', re.DOTALL)
_ABANDONED: list[Any] = []


class HdfsHandler(pafs.FileSystemHandler):  # type: ignore[misc]
    """What pyarrow asks of a filesystem, asked of one name node or name service. Pickles as its address and options."""

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        """`url` has no path: hdfs://host:port, hdfs://name-service, viewfs://cluster. `options` are Hadoop's settings."""
        self.url = url
        self.options = dict(options or {})
        self._made: Any = None
        self._process = 0

    def __reduce__(self) -> Any:
        return HdfsHandler, (self.url, self.options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HdfsHandler) and (self.url, self.options) == (other.url, other.options)

    __hash__ = None  # type: ignore[assignment]

    @property
    def client(self) -> Any:
        """This process's client. One of the parent has threads that do not live here: it is not even thrown away."""
        if self._process != os.getpid():
            import hdfs_native  # optional: the extra `hdfs`

            _ABANDONED.append(self._made)
            attempts = _ONE_TRY if re.search(r":\d+$", self.url) else _EACH_NAME_NODE
            with self._asking(self.url):
                self._made = hdfs_native.Client(self.url, {_ATTEMPTS: attempts, **self.options})
            self._process = os.getpid()
        return self._made

    @contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.url}{path} does not exist") from None
        except (OSError, RuntimeError) as error:
            raise translated(error, f"{self.url}{path if path != self.url else ''}") from error

    def _ask(self, path: str, call: Callable[[Any], T]) -> T:
        client = self.client
        with self._asking(path):
            return call(client)

    def get_type_name(self) -> str:
        return "hdfs-native"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[Any]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> Any:
        try:
            return _file_info(self._ask(path or "/", lambda client: client.get_file_info(path or "/")))
        except FileNotFoundError:
            return pafs.FileInfo(path, pafs.FileType.NotFound)

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        base = selector.base_dir or "/"
        try:
            found = self._ask(base, lambda client: list(client.list_status(base, selector.recursive)))
        except FileNotFoundError:
            if selector.allow_not_found:
                return []
            raise
        if any(status.path == base and not status.isdir for status in found):
            raise NotADirectoryError(f"{self.url}{base} is no folder")
        return [_file_info(status) for status in found]

    def create_dir(self, path: str, recursive: bool) -> None:
        self._ask(path, lambda client: client.mkdirs(path, 0o755, recursive))

    def delete_dir(self, path: str) -> None:
        self._delete(path, recursive=True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        for info in self.get_file_info_selector(pafs.FileSelector(path, allow_not_found=missing_dir_ok)):
            self._delete(info.path, recursive=True)

    def delete_root_dir_contents(self) -> None:
        self.delete_dir_contents("/")

    def delete_file(self, path: str) -> None:
        self._delete(path, recursive=False)

    def _delete(self, path: str, *, recursive: bool) -> None:
        if not self._ask(path, lambda client: client.delete(path, recursive)):
            raise FileNotFoundError(f"{self.url}{path} does not exist")

    def move(self, src: str, dest: str) -> None:
        self._ask(src, lambda client: client.rename(src, dest, True))

    def move_new(self, src: str, dest: str) -> None:
        """A move to where nothing is; FileExistsError is the name node's own, so only one of two can get there."""
        self._ask(src, lambda client: client.rename(src, dest, False))

    def copy_file(self, src: str, dest: str) -> None:
        with self.open_input_stream(src) as source, self.open_output_stream(dest, None) as target:
            while data := source.read(8 * BUFFER):
                target.write(data)

    def open_input_stream(self, path: str) -> Any:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> Any:
        reader = self._ask(path, lambda client: client.read(path))
        return pa.PythonFile(_Reader(self, path, reader), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return self._create(path, overwrite=True)

    def open_new_file(self, path: str) -> Any:
        """A file that must not be there: FileExistsError is the name node's own, so only one of two can have it."""
        return self._create(path, overwrite=False)

    def _create(self, path: str, *, overwrite: bool) -> Any:
        from hdfs_native import WriteOptions

        parent = path.rpartition("/")[0] or "/"
        writer = self._ask(
            path, lambda client: client.create(path, WriteOptions(overwrite=overwrite, create_parent=self._is_there(parent)))
        )
        return pa.PythonFile(_Writer(self, path, writer), mode="w")

    def _is_there(self, path: str) -> bool:
        return bool(self._info(path).type == pafs.FileType.Directory)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(_Writer(self, path, self._ask(path, lambda client: client.append(path))), mode="w")


class _Reader:
    """A file of HDFS as pyarrow reads Python's files; errors are told in words."""

    def __init__(self, handler: HdfsHandler, path: str, reader: Any) -> None:
        self._handler, self._path, self._reader = handler, path, reader
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        with self._handler._asking(self._path):
            data: bytes = self._reader.read(size if size is not None else -1)
            return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self.tell()
        elif whence == os.SEEK_END:
            offset += len(self._reader)
        self._reader.inner.seek(offset)
        return offset

    def tell(self) -> int:
        return int(self._reader.tell())

    def size(self) -> int:
        return len(self._reader)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


class _Writer:
    """A file of HDFS that is written; it is whole and has its length when `close` returns."""

    def __init__(self, handler: HdfsHandler, path: str, writer: Any) -> None:
        self._handler, self._path, self._writer = handler, path, writer
        self._gathered = bytearray()
        self._at = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._gathered += view
        self._at += view.nbytes
        if len(self._gathered) >= BUFFER:
            self.flush()
        return view.nbytes

    def flush(self) -> None:
        data, self._gathered = bytes(self._gathered), bytearray()
        if data:
            with self._handler._asking(self._path):
                self._writer.write(data)

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.flush()
            with self._handler._asking(self._path):
                self._writer.close()


def _file_info(status: Any) -> Any:
    if status.isdir:
        return pafs.FileInfo(status.path, pafs.FileType.Directory)
    mtime = status.modification_time * 1_000_000  # HDFS counts milliseconds
    return pafs.FileInfo(status.path, pafs.FileType.File, size=status.length, mtime_ns=mtime)


def translated(error: BaseException, where: str) -> OSError:
    """What hdfs-native raises, as Python knows it: one line, and the address or path that it is about."""
    match = _RPC_ERROR.match(str(error))
    kind = match["kind"].rpartition(".")[2] if match else ""
    text = (match["text"] if match else str(error)).replace("\\n", "\n").replace('\\"', '"').partition("\n")[0][:400]
    if kind in ("AccessControlException", "AuthorizationException"):
        return PermissionError(f"{where}: {text}")
    if kind == "FileAlreadyExistsException" or isinstance(error, FileExistsError):
        return FileExistsError(f"{where} is there already")
    if kind in ("ParentNotDirectoryException", "PathIsNotDirectoryException"):
        return NotADirectoryError(f"{where}: {text}")
    said = f"{kind}: {text}" if kind else text
    return OSError(f"{where}: {said}")


def set_user(user: str) -> None:
    """The user that this process is on HDFS without Kerberos. hdfs-native takes it from the environment only.

    Raises ValueError where the process is another user already.
    """
    before = os.environ.setdefault("HADOOP_USER_NAME", user)
    if before != user:
        raise ValueError(f"this process is the HDFS user {before!r} already (HADOOP_USER_NAME); it cannot be {user!r} too")
