"""From what a user calls a place (path, URL, with or without a filesystem) to a pyarrow filesystem and a path on it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from ghee.errors import PipelineError

# What pyarrow opens itself; every other scheme is fsspec's (webhdfs, memory, http, …).
ARROW_SCHEMES = frozenset({"s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"})
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Place:
    """A path (it may hold wildcards) on a filesystem; `given` is what the user wrote, for messages."""

    filesystem: Any
    path: str
    given: str


def locate(given: str | os.PathLike[str], filesystem: Any = None) -> Place:
    """The filesystem and path of what the user wrote. Local paths become absolute: ranks may run in another folder.

    Raises PipelineError for a scheme that nothing here opens, naming what would have to be installed.
    """
    text = os.fspath(given)
    if not text:
        raise PipelineError("The path is empty; give a file, a folder, a glob or a URL.")
    if filesystem is not None:
        return Place(as_arrow_filesystem(filesystem), _SCHEME.sub("", text), text)
    match = _SCHEME.match(text)
    if match is None:
        return Place(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)), text)
    scheme = match.group(1).lower()
    if scheme == "file":
        return Place(pafs.LocalFileSystem(), os.path.abspath(unquote(text[match.end() :])), text)
    if scheme in ARROW_SCHEMES:
        return _locate_arrow(text, match.end())
    return _locate_fsspec(text, scheme)


def has_wildcard(path: str) -> bool:
    return _WILDCARD.search(path) is not None


def is_local(filesystem: Any) -> bool:
    return isinstance(filesystem, pafs.LocalFileSystem)


def as_arrow_filesystem(filesystem: Any) -> Any:
    """pyarrow's filesystem as it is, fsspec's wrapped. Raises PipelineError for what is neither."""
    if isinstance(filesystem, pafs.FileSystem):
        return filesystem
    if hasattr(filesystem, "ls") and hasattr(filesystem, "open"):
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem))
    raise PipelineError(
        f"filesystem={filesystem!r} is no filesystem; allowed are pyarrow.fs.FileSystem and fsspec filesystems. "
        "Leave it out for local paths and for URLs."
    )


def _locate_arrow(text: str, start: int) -> Place:
    rest, mark, options = text[start:].partition("?")  # after "?" stand options (endpoint_override=…), no wildcard
    wild = re.search(r"[*\[]", rest)
    base = rest if wild is None else rest[: rest.rfind("/", 0, wild.start()) + 1].rstrip("/")
    try:
        filesystem, path = pafs.FileSystem.from_uri(text[:start] + quote(base, safe="/%:@,") + mark + options)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise PipelineError(f"{text!r} cannot be opened: {error}") from error
    return Place(filesystem, path.rstrip("/") + rest[len(base) :], text)


def _locate_fsspec(text: str, scheme: str) -> Place:
    try:
        import fsspec  # optional: only for schemes that pyarrow does not open

        filesystem, path = fsspec.core.url_to_fs(text)
    except ImportError as error:
        raise PipelineError(
            f"{text!r}: the scheme {scheme!r} is read through fsspec, and this is missing: {error}. "
            "`pip install 'ghee[fsspec]'`, and the package that fsspec names."
        ) from error
    except (ValueError, OSError) as error:
        raise PipelineError(
            f"{text!r}: {error}. Known here: a local path, file://, "
            f"{', '.join(sorted(s + '://' for s in ARROW_SCHEMES))} and what the installed fsspec packages open."
        ) from error
    return Place(pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), str(path), text)
