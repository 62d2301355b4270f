"""Which files a path, folder, glob or list of those means, and the values of their hive partitions."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from ghee.errors import SchemaError, SourceError, SourceNotFoundError
from ghee.io.location import Place, has_wildcard
from ghee.io.manifest import publish_state
from ghee.io.plan import FileRef
from ghee.io.schema import listed

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
THREADS = 16


@dataclass(frozen=True)
class Listing:
    """Files on one filesystem in the source's order, and the fields of their hive partitions (maybe none)."""

    filesystem: Any
    files: tuple[FileRef, ...]
    partitions: Any  # pyarrow.Schema


@dataclass(frozen=True)
class _Found:
    info: Any  # pyarrow.fs.FileInfo
    keys: tuple[tuple[str, str | None], ...]


def hidden(name: str) -> bool:
    """Names that every reader of this field leaves out: `.x`, and `_x` but for a partition (`_x=1`)."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def list_files(places: Sequence[Place], *, partitioning: str | None = None) -> Listing:
    """Every file of the places. Folders are listed as a whole and sorted by path; the order of the places is kept.

    Hive partitions are the `key=value` folders below a folder that was named, or from a glob's first wildcard on; with
    `partitioning="hive"` those of the whole path.

    Raises SourceNotFoundError with every path that does not exist and every glob that matches nothing; SourceError
    where a folder may not be read; SchemaError where files differ in their partition keys.
    """
    found: list[_Found] = []
    missing: list[str] = []
    for place in places:
        try:
            hits = list(_expand(place, whole_path=partitioning == "hive"))
        except FileNotFoundError:
            hits = []
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{place.given} cannot be listed: {error}") from error
        if not hits:
            missing.append(_why_empty(place))
        found += hits
    if missing:
        raise SourceNotFoundError("Nothing to read:" + listed(missing))
    seen: dict[str, _Found] = {}
    for hit in found:
        seen.setdefault(hit.info.path, hit)  # two globs may match one file: its rows are read once
    return _with_partitions(places[0].filesystem, list(seen.values()))


def _why_empty(place: Place) -> str:
    if has_wildcard(place.path) and place.filesystem.get_file_info(place.path).type == pafs.FileType.NotFound:
        return f"{place.given}: the pattern matches no file (hidden files, _x and .x, do not count)"
    if place.filesystem.get_file_info(place.path).type == pafs.FileType.NotFound:
        return f"{place.given}: does not exist ({place.path})"
    return f"{place.given}: the folder holds no file to read (hidden files, _x and .x, do not count)"


def _expand(place: Place, *, whole_path: bool) -> Iterator[_Found]:
    filesystem = place.filesystem
    path = place.path.rstrip("/") or "/"
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        yield _Found(info, _keys(posixpath.dirname(path).split("/")) if whole_path else ())
        return
    if info.type == pafs.FileType.Directory:
        yield from _below(filesystem, path, () if not whole_path else _keys(path.split("/")))
        return
    if not has_wildcard(path):
        return
    fixed = path[: next(i for i, c in enumerate(path) if c in "*?[")].count("/")
    for hit in sorted(_matches(filesystem, path.split("/"), fixed), key=lambda hit: str(hit.path)):
        segments = hit.path.split("/")[0 if whole_path else fixed :]
        if hit.type == pafs.FileType.Directory:
            yield from _below(filesystem, hit.path, _keys(segments))
        else:
            yield _Found(hit, _keys(segments[:-1]))


def _below(filesystem: Any, folder: str, keys: tuple[tuple[str, str | None], ...]) -> Iterator[_Found]:
    """The visible files of a folder, recursively; listed anew where a publish went on meanwhile (it is atomic then)."""
    before = None
    while before is None or before != (after := publish_state(filesystem, folder)):
        before = publish_state(filesystem, folder)
        infos = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    left_out = frozenset[str]().union(*(names for _, names in after[1]))
    for info in sorted(infos, key=lambda info: str(info.path)):
        segments = info.path[len(folder) :].strip("/").split("/")
        if info.type != pafs.FileType.File or any(map(hidden, segments)) or "/".join(segments) in left_out:
            continue
        yield _Found(info, keys + _keys(segments[:-1]))


def _matches(filesystem: Any, pattern: list[str], fixed: int) -> Iterable[Any]:
    """Files and folders that match, level by level: only folders that can match are listed."""
    base = "/".join(pattern[:fixed]) or "/"
    level = [filesystem.get_file_info(base)]
    for depth, segment in enumerate(pattern[fixed:], start=fixed):
        last = depth == len(pattern) - 1
        folders = [info.path for info in level if info.type == pafs.FileType.Directory]
        if segment == "**":
            below = [i for f in folders for i in filesystem.get_file_info(pafs.FileSelector(f, recursive=True))]
            level = [*level, *(i for i in below if not _hidden_below(base, i.path))]
            if last:
                return [info for info in level if info.type == pafs.FileType.File]
            continue
        children = [i for f in dict.fromkeys(folders) for i in filesystem.get_file_info(pafs.FileSelector(f))]
        level = [i for i in children if _segment_matches(posixpath.basename(i.path), segment)]
    return list({info.path: info for info in level}.values())


def _segment_matches(name: str, pattern: str) -> bool:
    if hidden(name) and not hidden(pattern):
        return False
    return fnmatch.fnmatchcase(name, pattern)


def _hidden_below(base: str, path: str) -> bool:
    return any(hidden(segment) for segment in path[len(base) :].strip("/").split("/"))


def _keys(segments: Iterable[str]) -> tuple[tuple[str, str | None], ...]:
    pairs = (segment.partition("=") for segment in segments)
    return tuple((unquote(k), None if v == HIVE_NULL else unquote(v)) for k, mark, v in pairs if mark and k)


def _with_partitions(filesystem: Any, found: Sequence[_Found]) -> Listing:
    names = [name for name, _ in found[0].keys]
    problems = [
        f"{hit.info.path}: partitions {[k for k, _ in hit.keys]}; {found[0].info.path} has {names}"
        for hit in found
        if [k for k, _ in hit.keys] != names
    ]
    if len(set(names)) != len(names):
        problems.append(f"{found[0].info.path}: a partition key is there twice: {names}")
    if problems:
        raise SchemaError("The files do not have the same hive partitions:" + listed(problems))
    columns = [[hit.keys[i][1] for hit in found] for i in range(len(names))]
    whole = [all(_is_whole(value) for value in column) for column in columns]
    files = tuple(
        FileRef(
            hit.info.path,
            hit.info.size,
            hit.info.mtime_ns,
            tuple(int(v) if v is not None and whole[i] else v for i, (_, v) in enumerate(hit.keys)),
        )
        for hit in found
    )
    types = [pa.int64() if is_whole else pa.string() for is_whole in whole]
    return Listing(filesystem, files, pa.schema(list(zip(names, types, strict=True))))


def _is_whole(value: str | None) -> bool:
    """Integers are int64, but only in their plain form: "007" and "+1" stay the strings that they are."""
    if value is None:
        return True
    return (
        value.lstrip("-").isascii()
        and value.lstrip("-").isdigit()
        and str(int(value)) == value
        and -(2**63) <= int(value) < 2**63
    )


def stat_problem(filesystem: Any, file: FileRef) -> str | None:
    """Why this is no longer the file that was listed, or None."""
    if file.etag is not None and (now := etag(filesystem, file.path)) not in (None, file.etag):
        return f"{file.path} changed after it was listed: its ETag was {file.etag} and is {now}"
    info = filesystem.get_file_info(file.path)
    if info.type != pafs.FileType.File:
        return f"{file.path} is gone: it was there when the source was listed"
    for what, before, now in (("size", file.size, info.size), ("modification time", file.mtime_ns, info.mtime_ns)):
        if before is not None and now is not None and before != now:
            return f"{file.path} changed after it was listed: its {what} was {before} and is {now}"
    return None


def with_etags(filesystem: Any, files: Sequence[FileRef]) -> tuple[FileRef, ...]:
    """On S3 the files with their ETags: its times count seconds, in which a file of the same size may come."""
    if not isinstance(filesystem, pafs.S3FileSystem):
        return tuple(files)
    return tuple(in_threads(lambda file: replace(file, etag=etag(filesystem, file.path)), files))


def etag(filesystem: Any, path: str) -> str | None:
    """What the store calls the version of the file that is there now; None where there is none."""
    try:
        with filesystem.open_input_stream(path) as stream:
            found: bytes | None = dict(stream.metadata() or {}).get("ETag")
    except FileNotFoundError:
        return None
    return None if found is None else found.decode()


def in_threads(work: Any, items: Sequence[Any]) -> list[Any]:
    """[work(item) for item in items], several at a time: opening many small files waits more than it computes."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(THREADS, len(items))) as pool:
        return list(pool.map(work, items))
