"""Files and Hive-partitioned tables, on any file system, in Parquet, CSV or JSON lines."""

import glob
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cumin.errors import ConfigError, InputError
from cumin.fingerprint import Part, line_name, moved, token
from cumin.inputs import listing
from cumin.inputs.base import Input, Relation, Table, columns_of, file_schema, same_type
from cumin.partitions import PARTITION_KINDS, arrow_type, guess_kind, is_date_format, partition_text
from cumin.place import LocalPlace, Place, RemotePlace, absolute, place, public_options
from cumin.schemas import read_schema

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("parquet", "csv", "json")
_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}


@dataclass(frozen=True, kw_only=True)
class Files(Input):
    """Files by name or pattern. Make one with `cumin.files`."""

    paths: tuple[str, ...]
    format: str | None = None
    strength: str | None = None
    delimiter: str = ","
    key: tuple[str, ...] = ()
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def open(self) -> "FileTable":
        where, names = _resolve(self.paths, self.storage_options)
        if not names:
            raise InputError(f"No file matches {', '.join(self.paths)}.")
        return FileTable("files", where, {"": ()}, (), self, names=names)

    def describe(self) -> dict[str, Any]:
        return {"kind": "files", "paths": list(self.paths)} | _described(self)


@dataclass(frozen=True, kw_only=True)
class Hive(Input):
    """A table in folders ``name=value``. Make one with `cumin.hive`."""

    root: str
    partition: Mapping[str, str | None]
    format: str | None = None
    strength: str | None = None
    delimiter: str = ","
    key: tuple[str, ...] = ()
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def open(self) -> "FileTable":
        """Lists the partitions' folders, not their files."""
        where = place(self.root, self.storage_options)
        columns = tuple(self.partition)
        found = _hive_partitions(where, "", columns)
        if not found:
            raise InputError(f"{where.url} has no folder {columns[0]}=…; nothing to read.")
        return FileTable("hive", where, found, columns, self)

    def describe(self) -> dict[str, Any]:
        return {"kind": "hive", "root": self.root, "partition": dict(self.partition)} | _described(self)


def files(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    format: str | None = None,
    strength: str | None = None,
    delimiter: str = ",",
    key: str | Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> Files:
    """Parquet, CSV or JSON-lines files: a path, a pattern (``*``, ``**``), or several.

    `format` is told from the suffix unless given. `strength` is stat (etag on S3) unless given: stat, etag, footer
    (Parquet) or bytes. `key` names columns that are unique together; it is checked when the query relies on it.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if isinstance(paths, Mapping) or not all(isinstance(path, (str, os.PathLike)) for path in given):
        raise ConfigError(f"paths={paths!r}; allowed: a path, a pattern, or a list of these.")
    _check(format, strength)
    return Files(
        paths=tuple(absolute(path) for path in given),
        format=format,
        strength=strength,
        delimiter=delimiter,
        key=_names(key),
        storage_options=dict(storage_options or {}),
    )


def hive(
    root: str | os.PathLike[str],
    *,
    partition: str | Sequence[str] | Mapping[str, str | None],
    format: str | None = None,
    strength: str | None = None,
    delimiter: str = ",",
    key: str | Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> Hive:
    """A Hive-partitioned table: `partition` names its folder columns, outermost first.

    Their types are told from the values (dates, whole numbers, else text); ``{"dt": "date"}`` fixes them, and
    ``{"dt": "%Y%m%d"}`` says that they are dates and how they are written. The rest is as in `files`.
    """
    _check(format, strength)
    columns = dict(partition) if isinstance(partition, Mapping) else dict.fromkeys(_names(partition))
    wrong = [
        f"The partition column {name!r} has the type {kind!r}. Allowed: {', '.join(PARTITION_KINDS)}, or how a date is "
        "written, as '%Y%m%d'."
        for name, kind in columns.items()
        if kind is not None and kind not in PARTITION_KINDS and not is_date_format(kind)
    ]
    if wrong or not columns:
        raise ConfigError(wrong or "partition= names no column; for a table without partitions use cumin.files.")
    return Hive(
        root=absolute(root),
        partition=columns,
        format=format,
        strength=strength,
        delimiter=delimiter,
        key=_names(key),
        storage_options=dict(storage_options or {}),
    )


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _check(format: str | None, strength: str | None) -> None:
    problems = []
    if format is not None and format not in FORMATS:
        problems.append(f"The format {format!r} is not known. Allowed: {', '.join(FORMATS)}.")
    if strength not in (None, "stat", "etag", "footer", "bytes"):
        problems.append(f"The strength {strength!r} is not known for files. Allowed: stat, etag, footer, bytes.")
    if problems:
        raise ConfigError(problems)


def _described(source: Files | Hive) -> dict[str, Any]:
    return {
        "format": source.format,
        "strength": source.strength,
        "delimiter": source.delimiter,
        "key": list(source.key),
        "storage_options": public_options(source.storage_options),
    }


def _resolve(paths: Sequence[str], options: Mapping[str, Any]) -> tuple[Place, list[str]]:
    """The place that all the paths share, and the files' names in it, in order."""
    if "://" not in paths[0] or paths[0].startswith("file://"):
        found: set[str] = set()
        for path in paths:
            path = os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
            pattern = glob.has_magic(path) and not os.path.lexists(path)  # a name with [ in it is a name, where it is there
            found.update(glob.glob(path, recursive=True) if pattern else [path])
        folders = sorted(path for path in found if os.path.isdir(path))
        found.difference_update(folders)
        if named := [path for path in folders if path in paths]:
            raise InputError(
                f"{path} is a folder. Name its files ({path}/*.parquet); a table in folders name=value is a cumin.hive."
                for path in named
            )
        if not found:
            return LocalPlace("/"), []
        base = os.path.dirname(os.path.commonpath(sorted(found)) if len(found) > 1 else next(iter(found)))
        base = os.path.commonpath([os.path.dirname(path) for path in found]) if len(found) > 1 else base
        return LocalPlace(base), sorted(os.path.relpath(path, base) for path in found)
    root = paths[0].split("*")[0].rpartition("/")[0]
    if root.endswith(":/"):
        raise InputError(f"{paths[0]} names no file; write the bucket or server and the files in it, {paths[0]}/*.parquet.")
    where = place(root, options)
    assert isinstance(where, RemotePlace)
    names: set[str] = set()
    for path in paths:
        full = place(path, options).root
        matched = where.fs.glob(full) if "*" in path else [full]
        names.update(os.path.relpath(str(name), where.root) for name in matched)
    return where, sorted(names)


def _hive_partitions(where: Place, prefix: str, columns: Sequence[str]) -> dict[str, tuple[str | None, ...]]:
    found: dict[str, tuple[str | None, ...]] = {}
    for name in where.names(prefix):
        column, equals, value = name.partition("=")
        if not equals or column != columns[0]:
            continue
        path = f"{prefix}/{name}" if prefix else name
        if len(columns) == 1:
            found[path] = (partition_text(value),)
        else:
            for key, rest in _hive_partitions(where, path, columns[1:]).items():
                found[key] = (partition_text(value), *rest)
    return found


class FileTable(Table):
    """Files that have been looked at. Listing waits until it is known which partitions the query can read."""

    def __init__(
        self,
        kind: str,
        where: Place,
        partitions: dict[str, tuple[str | None, ...]],
        columns: tuple[str, ...],
        source: Files | Hive,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        self.kind, self.place, self.partitions, self.partition_columns = kind, where, partitions, columns
        self.source, self._names = source, names
        self.root = where.url
        self.identity = ""
        self._listing = "etag" if listing.has_etags(where) and source.strength != "stat" else "stat"
        self.strength = source.strength or self._listing
        if self.strength == "etag" and self._listing != "etag":
            raise InputError(f"{where.url} keeps no ETags; choose strength='stat', 'footer' or 'bytes'.")
        # A modification time alone can be put back: what was read under it says nothing of the bytes there now.
        self._sure = where.local or self._listing == "etag"
        self._listed: dict[str, list[str]] = {}
        self._schema_text: str | None = None

    @cached_property
    def format(self) -> str:
        """Parquet, csv or json: as given, or told from the first file's suffix."""
        if self.source.format:
            return self.source.format
        suffix = os.path.splitext(self._first_file)[1].lower()
        if suffix not in _SUFFIXES:
            raise InputError(f"{self._first_file} does not tell its format; say format= ({', '.join(FORMATS)}).")
        return _SUFFIXES[suffix]

    @cached_property
    def _first_key(self) -> str:
        """The first partition that has a file."""
        for key in sorted(self.partitions):
            if self._lines(key):
                return key
        raise InputError(f"{self.root} has no file to read.")

    @cached_property
    def schema(self) -> "pa.Schema":
        """The first file's columns, then the partition columns."""
        import pyarrow as pa

        if self._schema_text is not None:
            return read_schema(self._schema_text)
        path = self.place.full(self._first_file)
        try:
            inside = file_schema(self.place, path, self.format, {"delimiter": self.source.delimiter})
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as {self.format}: {str(error).splitlines()[0]}") from error
        fields = [each for each in inside if each.name not in self.partition_columns]
        fields += [
            pa.field(*each) for each in zip(self.partition_columns, map(arrow_type, self.partition_kinds), strict=True)
        ]
        return pa.schema(fields)

    @cached_property
    def partition_kinds(self) -> tuple[str, ...]:
        """The kinds as declared, or told from all values."""
        given = self.source.partition if isinstance(self.source, Hive) else {}
        return tuple(
            given[name] or guess_kind([part[index] for part in self.partitions.values()])
            for index, name in enumerate(self.partition_columns)
        )

    def schema_token(self, *, again: bool = False) -> Any:
        """The first file's state, and how it is read. None where the state is a modification time alone, which can be
        put back."""
        if not self._sure:
            return None
        first = self._first_file
        name = first.removeprefix(f"{self._first_key}/") if self._first_key else first
        lines = self._take([self._first_key])[0].lines if again else self._lines(self._first_key)
        state = next((text for text in lines if line_name(text) == name), None)
        return [self.place.url, self._first_key, state, self.format, self.source.delimiter, list(self.partition_kinds)]

    def know_schema(self, text: str) -> None:
        self._schema_text = text

    @cached_property
    def _first_file(self) -> str:
        """The file that gives the schema, relative to the table's place."""
        key = self._first_key
        name = min(map(line_name, self._lines(key)))
        return f"{key}/{name}" if key else name

    def _lines(self, key: str) -> list[str]:
        """A partition's files, when no change of theirs is so young that the next could go unseen."""
        if key not in self._listed:
            taken = listing.settle(lambda: self._take([key])) if self.place.local else self._take([key])
            self._listed[key] = taken[0].lines
        return self._listed[key]

    def _take(self, keys: Sequence[str]) -> list[listing.Listed]:
        """The lines of each partition, as the files are now."""
        if self._names is not None:
            return [listing.file_lines(self.place, self._names, strength=self._listing)]
        one: Callable[[str], listing.Listed] = lambda key: listing.list_lines(self.place, key, strength=self._listing)  # noqa: E731
        if self.place.local or len(keys) == 1:
            return [one(key) for key in keys]
        with ThreadPoolExecutor(8, thread_name_prefix="cumin-list") as pool:
            return list(pool.map(one, keys))

    def parts(self, keys: Collection[str]) -> dict[str, Part]:
        """A fresh listing of these partitions, in the strength asked for."""
        wanted = sorted(keys)
        if self.place.local:
            taken = listing.settle(lambda: self._take(wanted))
        else:
            taken = self._take(wanted)
        result = {}
        for key, listed in zip(wanted, taken, strict=True):
            lines = sorted(listed.lines)
            self._listed[key] = lines
            if self.strength in ("bytes", "footer"):
                made = self._hashed(key, lines)
            else:
                made = listed.token(self.strength)
            result[key] = Part(lines, listed.bytes, made)
        return result

    def _hashed(self, key: str, lines: list[str]) -> str:
        return token(self.strength, listing.hashed(self.place, key, lines, self.strength, cached=self._sure))

    def moved(self, parts: Mapping[str, Part]) -> list[str]:
        """By another listing; where the listing is not sure and the strength is, by reading the files again."""
        try:
            now = dict(zip(parts, self._take(list(parts)), strict=True))
        except InputError as error:
            return error.problems
        found = [
            self.place.full(f"{key}/{name}" if key else name)
            for key, part in parts.items()
            for name in moved(part.lines, now[key].lines)
        ]
        if not found and not self._sure and self.strength in ("bytes", "footer"):
            found = [self.place.full(key) for key, part in parts.items() if self._hashed(key, part.lines) != part.token]
        return found

    def check(self, parts: Mapping[str, Part]) -> None:
        """Every Parquet file must have the first file's columns, of its types; the footers say it. CSV and JSON fail in the
        run."""
        if self.format != "parquet":
            return
        wanted = {each.name.lower(): each for each in self.schema if each.name not in self.partition_columns}
        first = self.place.full(self._first_file)
        problems = []
        for path, schema in columns_of(self.place, self.relation(parts).files):
            there = {each.name.lower(): each.type for each in schema}
            if missing := [each.name for low, each in wanted.items() if low not in there]:
                problems.append(
                    f"{path} lacks {', '.join(missing)}, which the table's first file {first} has. Write it again with that "
                    "column, or choose the files by a pattern."
                )
                continue
            problems += [
                f"{path} has {each.name} as {there[low]}, and the table's first file {first} as {each.type}. One would be "
                "read as the other: write it again with that type, or make two inputs and cast one in the query."
                for low, each in wanted.items()
                if not same_type(there[low], each.type)
            ]
        if problems:
            raise InputError(sorted(problems)[:20])

    def relation(self, parts: Mapping[str, Part]) -> Relation:
        """The files that were listed, and their partitions' values."""
        paths: list[str] = []
        values: list[tuple[Any, ...]] = []
        for key in sorted(parts):
            prefix = self.place.full(key)
            names = sorted(parts[key].names)
            paths += [f"{prefix}/{name}" for name in names]
            if self.partition_columns:
                values += [self.typed(key)] * len(names)
        csv = {"delimiter": self.source.delimiter}
        converted = any("%" in kind for kind in self.partition_kinds)
        root, columns = self.place.root, self.partition_columns
        return Relation(self.schema, paths, self.place, self.format, root, columns, values, csv, converted=converted)
