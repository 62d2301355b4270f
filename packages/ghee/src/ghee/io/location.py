"""From what a user calls a place (path, URL, with or without a filesystem) to a pyarrow filesystem and a path on it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow.fs as pafs

from ghee.errors import PipelineError
from ghee.io.stores.bridge import FsspecHandler
from ghee.io.stores.opening import open_store

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Place:
    """A path (it may hold wildcards) on a filesystem; `given` is what the user wrote, for messages."""

    filesystem: Any
    path: str
    given: str


def locate(given: str | os.PathLike[str], filesystem: Any = None, storage_options: Mapping[str, Any] | None = None) -> Place:
    """The filesystem and path of what the user wrote. Local paths become absolute: ranks may run in another folder.

    `storage_options` are the store's own: of pyarrow's S3FileSystem, Hadoop's settings, or the fsspec filesystem's.
    Raises PipelineError for a scheme that nothing here opens, naming what would have to be installed.
    """
    text = os.fspath(given)
    if not text:
        raise PipelineError("The path is empty; give a file, a folder, a glob or a URL.")
    if filesystem is not None and storage_options:
        raise PipelineError("storage_options= are for URLs; the filesystem= that was given has its own.")
    if filesystem is not None:
        return Place(as_arrow_filesystem(filesystem), _SCHEME.sub("", text), text)
    match = _SCHEME.match(text)
    if storage_options and (match is None or match.group(1).lower() == "file"):
        raise PipelineError(f"storage_options= are for stores with a URL; {text!r} is a local path.")
    if match is None:
        return Place(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)), text)
    scheme = match.group(1).lower()
    if scheme == "file":
        return Place(pafs.LocalFileSystem(), os.path.abspath(unquote(text[match.end() :])), text)
    store, path = open_store(text, scheme, text[match.end() :], storage_options or {})
    return Place(store, path, text)


def has_wildcard(path: str) -> bool:
    return _WILDCARD.search(path) is not None


def is_local(filesystem: Any) -> bool:
    return isinstance(filesystem, pafs.LocalFileSystem)


def as_arrow_filesystem(filesystem: Any) -> Any:
    """pyarrow's filesystem as it is, fsspec's wrapped. Raises PipelineError for what is neither."""
    if isinstance(filesystem, pafs.FileSystem):
        return filesystem
    if hasattr(filesystem, "ls") and hasattr(filesystem, "open"):
        return pafs.PyFileSystem(FsspecHandler(filesystem))
    raise PipelineError(
        f"filesystem={filesystem!r} is no filesystem; allowed are pyarrow.fs.FileSystem and fsspec filesystems. "
        "Leave it out for local paths and for URLs."
    )
