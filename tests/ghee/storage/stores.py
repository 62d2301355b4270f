"""A store as the tests of this folder see it: URLs and a filesystem to look behind ghee's back."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass
class Store:
    """A folder of its own on a server; `filesystem` is pyarrow's, made without ghee."""

    scheme: str
    authority: str
    filesystem: Any
    root: str
    server: Any
    folder: str = field(default_factory=lambda: f"t-{uuid.uuid4().hex[:8]}")

    def url(self, path: str = "") -> str:
        return f"{self.scheme}://{self.authority}/{self.folder}/{path}".rstrip("/")

    def path(self, path: str = "") -> str:
        return f"{self.root}{self.folder}/{path}".rstrip("/")

    def put(self, path: str, data: bytes) -> None:
        self.filesystem.create_dir(self.path(path).rpartition("/")[0], recursive=True)
        with self.filesystem.open_output_stream(self.path(path)) as stream:
            stream.write(data)

    def put_table(self, path: str, table: Any, **options: Any) -> None:
        self.put(path, parquet(table, **options))

    def names(self, path: str = "") -> list[str]:
        infos = self.filesystem.get_file_info(_selector(self.path(path)))
        return sorted(info.path[len(self.path()) :].strip("/") for info in infos)


def parquet(table: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue())


def _selector(path: str) -> Any:
    import pyarrow.fs as pafs

    return pafs.FileSelector(path, recursive=True, allow_not_found=True)
