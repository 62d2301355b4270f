"""fsspec's filesystems as pyarrow's, with the times of files, by which a file that was replaced is noticed."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow.fs as pafs

_TIMES = ("mtime", "modificationTime", "modification_time", "LastModified", "last_modified", "updated")


class FsspecHandler(pafs.FSSpecHandler):  # type: ignore[misc]
    """pyarrow's own bridge knows the name of the time in local files alone."""

    def _create_file_info(self, path: str, info: dict[str, Any]) -> Any:
        made = super()._create_file_info(path, info)
        if made.type != pafs.FileType.File:
            return made
        return pafs.FileInfo(made.path, made.type, size=made.size, mtime_ns=modified_ns(info))

    def move(self, src: str, dest: str) -> None:
        """Replaces a file that is there, as pyarrow's filesystems do; WebHDFS would leave it, and say nothing."""
        self.fs.invalidate_cache()
        if self.fs.exists(dest) and self.fs.isfile(dest):
            self.fs.rm(dest)
        self.fs.mv(src, dest, recursive=self.fs.isdir(src))
        self.fs.invalidate_cache()
        if not self.fs.exists(dest):
            raise OSError(f"{src} could not be moved to {dest}: the store did not do it")

    def get_file_info(self, paths: list[str]) -> list[Any]:
        self.fs.invalidate_cache()  # what was listed long ago is no answer to whether a file has changed
        return list(super().get_file_info(paths))

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        self.fs.invalidate_cache()
        return list(super().get_file_info_selector(selector))


def modified_ns(info: dict[str, Any]) -> int | None:
    """The time of a file in ns since 1970, under whichever name and in whichever form its store says it."""
    said = next((info[name] for name in _TIMES if info.get(name) is not None), None)
    if isinstance(said, str):
        said = datetime.datetime.fromisoformat(said)
    if isinstance(said, datetime.datetime):
        return int(said.timestamp() * 1e9)
    if isinstance(said, int) and said > 10**11:  # Hadoop counts milliseconds
        return said * 1_000_000
    return None if said is None else int(said * 1e9)
