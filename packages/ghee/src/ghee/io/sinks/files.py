"""The sink of files: part files in staging, published together with a manifest as the last thing.

rank ── FileWriter ──► target/_staging-<token>/data/…          driver: prepare … publish | abort
                                    └── rename ──► target/…  and then target/_ghee.json
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from ghee.errors import GheeError, SinkError, SinkExistsError
from ghee.io.contract import PartFile
from ghee.io.formats import format_of
from ghee.io.listing import hidden, in_threads
from ghee.io.location import Place
from ghee.io.manifest import INTENT, MANIFEST, read_manifest, tokens
from ghee.io.schema import listed, unify
from ghee.io.sinks.staging import (
    Staging,
    adopt_staging,
    clear_dead,
    make_staging,
    remove_files,
    sync_folder,
    target_lock,
    write_file,
)
from ghee.io.sinks.writer import FileWriter
from ghee.io.stores.conditional import Overtaken, put_in_place, version
from ghee.io.stores.patience import FIRST_PATIENCE, PATIENCE, first_line, patiently

VERSION = 1


@dataclass(frozen=True)
class SinkOptions:
    """What `open_sink` was asked for; described there."""

    mode: str
    format: str
    rows_per_file: int
    partition_by: tuple[str, ...] = ()
    patience: float = PATIENCE
    file_size: int | None = None


class FileSink:
    """A folder that gets part files and a manifest, whole or not at all.

        sink = FileSink(locate("out"), SinkOptions("error", "parquet", 1 << 20))
        sink.prepare()
        writer = sink.writer(rank=0)
        writer.write({"x": numpy.arange(3)})
        sink.publish(writer.close())

    One driver prepares, and then publishes or aborts. A sink can be used for several runs, one after another. It is
    pickled to the ranks after `prepare`.

    It `stores`: parts that the ranks have said to be closed may outlive the run. The driver that does not go on then
    says `release` in place of `abort`, or is dead; the next says `adopt` in place of `prepare`.
    """

    hosted = False
    stores = True

    def __init__(self, place: Place, options: SinkOptions) -> None:
        self._place = place
        self._options = options
        self._staging: Staging | None = None
        self._made_target = False
        self._is_published = False

    @property
    def target(self) -> str:
        return self._place.path

    @property
    def token(self) -> str:
        """The name of the write that is under way."""
        if self._staging is None:
            raise RuntimeError("the sink has a token between prepare() and publish() only")
        return self._staging.token

    @property
    def described(self) -> str:
        """What is written where, in words: parts of two sinks with one description can be published together."""
        by = f" by {', '.join(self._options.partition_by)}" if self._options.partition_by else ""
        return f"{self._options.format}{by} to {self._place.given} (mode={self._options.mode!r})"

    def prepare(self) -> None:
        filesystem = self._place.filesystem
        self._is_published = False
        with self._failing("prepare"):
            first = min(FIRST_PATIENCE, self._options.patience)
            kind = patiently(lambda: filesystem.get_file_info(self.target).type, first, self._place.given)
            if kind == pafs.FileType.File:
                raise SinkExistsError(f"{self._place.given} is a file; a sink writes a folder. Name a folder, or remove it.")
            self._made_target = kind == pafs.FileType.NotFound
            filesystem.create_dir(self.target, recursive=True)
            with target_lock(filesystem, self.target):
                clear_dead(filesystem, self.target)
                self._check_old(self._old_files())
                self._staging = make_staging(filesystem, self.target)

    def adopt(self, token: str, parts: Sequence[PartFile]) -> bool:
        """Take over the staging of a run that has died or was released, with the parts that its journal has; whatever else
        lies in it is removed, and a publish that was cut in the middle is taken back. False where the parts are not
        there any more: then `prepare` begins anew.

        Raises SinkError where the run lives, or where the folder has got other output meanwhile that the mode forbids.
        """
        filesystem = self._place.filesystem
        self._made_target, self._is_published = False, False
        with self._failing("resume"):
            first = min(FIRST_PATIENCE, self._options.patience)
            kind = patiently(lambda: filesystem.get_file_info(self.target).type, first, self._place.given)
            if kind != pafs.FileType.Directory:
                return False
            with target_lock(filesystem, self.target):
                staging = adopt_staging(filesystem, self.target, token)
                self._is_published = token in tokens(read_manifest(filesystem, self.target))
                if self._is_published:  # only clearing up was left
                    self._staging = staging or Staging(filesystem, self.target, token, None)
                    return True
                if staging is None:
                    return False
                staging.take_back()
                if self._problems(staging, parts):
                    staging.clear()
                    return False
                self._staging = staging
                staging.keep_only([part.path for part in parts])
                clear_dead(filesystem, self.target)
                try:
                    self._check_old(self._old_files())
                except BaseException:
                    self._staging = None
                    staging.release()
                    raise
        return True

    def release(self) -> None:
        """In place of `abort`: the staging stays for a run that goes on. A publish that was begun is taken back."""
        staging, self._staging = self._staging, None
        if staging is not None:
            with self._failing("abort"), target_lock(self._place.filesystem, self.target):
                staging.release()

    def writer(self, rank: int) -> FileWriter:
        if self._staging is None:
            raise RuntimeError("the sink is sent to the ranks before prepare()")
        options = self._options
        return FileWriter(
            self._place.filesystem,
            self._staging.data,
            rank,
            options.format,
            options.rows_per_file,
            options.partition_by,
            file_size=options.file_size,
            patience=options.patience,
        )

    def publish(self, parts: Sequence[PartFile]) -> None:
        staging = self._staging
        if staging is None:
            raise RuntimeError("publish() without prepare(), or after it has published")
        if self._is_published:
            self.abort()
            return
        again = False

        def publish() -> None:
            nonlocal again
            with self._failing("publish"), target_lock(self._place.filesystem, self.target):
                while not (again and self._taken_back(staging)):
                    again = True
                    try:
                        self._publish(staging, parts)
                    except Overtaken:  # by another run: what it has published is looked at as if it had been there
                        continue
                    return

        patiently(publish, self._options.patience, self._place.given)
        self._staging = None

    def _taken_back(self, staging: Staging) -> bool:
        """After a publish that was broken off: finished if its manifest is there, else taken back (False)."""
        if staging.token in tokens(read_manifest(self._place.filesystem, self.target)):
            staging.clear()
            return True
        staging.take_back()
        return False

    def _publish(self, staging: Staging, parts: Sequence[PartFile]) -> None:
        self._check_parts(staging, parts)
        seen = version(self._place.filesystem, posixpath.join(self.target, MANIFEST))
        old = self._old_files()
        self._check_old(old)
        self._check_schemas(staging, parts, old)
        remove = old if self._options.mode == "overwrite" else []
        self._move_in(staging, parts, remove, seen)
        # From here on the output is published; what is left is to remove the old.
        remove_files(self._place.filesystem, self.target, remove)
        staging.clear()

    def abort(self) -> None:
        staging, self._staging = self._staging, None
        if staging is None:
            return
        filesystem = self._place.filesystem
        with self._failing("abort"):
            with target_lock(filesystem, self.target):
                staging.clear()
                empty = not filesystem.get_file_info(pafs.FileSelector(self.target))
            if self._made_target and empty:
                filesystem.delete_dir(self.target)

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except GheeError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise SinkError(f"{self._place.given}: {what} failed: {first_line(error)}") from error

    def _old_files(self) -> list[str]:
        """The visible files below the target, as paths below it."""
        infos = self._place.filesystem.get_file_info(pafs.FileSelector(self.target, recursive=True))
        names = [info.path[len(self.target) :].strip("/") for info in infos if info.type == pafs.FileType.File]
        return sorted(name for name in names if not any(map(hidden, name.split("/"))))

    def _check_old(self, old: list[str]) -> None:
        """May this run write here? Checked before it starts, and again before it publishes."""
        manifest = read_manifest(self._place.filesystem, self.target)
        given, mode, kind = self._place.given, self._options.mode, self._options.format
        if mode == "error" and (old or manifest is not None):
            what = f"{len(old)} files, {old[0]} among them" if old else "a finished write without rows"
            raise SinkExistsError(f'{given} holds {what}. Choose another folder, or mode="overwrite" or mode="append".')
        if mode == "overwrite":
            known = {file["path"] for write in (manifest or {"writes": []})["writes"] for file in write["files"]}
            foreign = [name for name in old if name not in known and format_of(name) is None]
            if foreign:
                raise SinkExistsError(
                    f"{given} holds files that are no data and is not overwritten. Remove them or use another folder:"
                    + listed(foreign)
                )
        if mode == "append":
            others = sorted({str(found) for name in old if (found := format_of(name)) != kind})
            if others:
                raise SinkExistsError(f"{given} holds files of another format ({', '.join(others)}) than {kind}.")

    def _check_parts(self, staging: Staging, parts: Sequence[PartFile]) -> None:
        if problems := self._problems(staging, parts):
            raise SinkError(f"{self._place.given}: the staged files are not what the ranks wrote:" + listed(problems))

    def _problems(self, staging: Staging, parts: Sequence[PartFile]) -> list[str]:
        problems = []
        names = [part.path for part in parts]
        problems += [f"{name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
        infos = self._place.filesystem.get_file_info([posixpath.join(staging.data, name) for name in names])
        for part, info in zip(parts, infos, strict=True):
            if info.type != pafs.FileType.File or info.size != part.bytes:
                problems.append(f"{part.path}: {part.bytes} bytes were written, {info.size or 0} are there")
        return problems

    def _check_schemas(self, staging: Staging, parts: Sequence[PartFile], old: list[str]) -> None:
        """Ranks see their own batches only; that all files can be read as one table is checked here."""
        paths = [posixpath.join(staging.data, part.path) for part in parts]
        if self._options.mode == "append":
            paths = [*(posixpath.join(self.target, name) for name in old), *paths]
        read = {"parquet": _parquet_schema, "arrow": _arrow_schema}.get(self._options.format)
        if read is None:
            return

        def schema(path: str) -> Any:
            with self._place.filesystem.open_input_file(path) as stream:
                return read(stream)

        _, problems = unify(zip(paths, in_threads(schema, paths), strict=True), columns=None)
        if problems:
            raise SinkError(f"{self._place.given}: the files cannot be read as one table:" + listed(problems))

    def _move_in(self, staging: Staging, parts: Sequence[PartFile], remove: list[str], seen: str | None) -> None:
        filesystem = self._place.filesystem
        add = [part.path for part in parts]
        intent = {"token": staging.token, "add": add, "remove": remove}
        write_file(filesystem, posixpath.join(staging.path, INTENT), json.dumps(intent).encode())
        sync_folder(filesystem, staging.path)
        folders = {posixpath.join(self.target, posixpath.dirname(name)).rstrip("/") for name in add}
        for folder in sorted(folders):
            filesystem.create_dir(folder, recursive=True)
        for name in add:
            filesystem.move(posixpath.join(staging.data, name), posixpath.join(self.target, name))
        for folder in sorted(folders):
            sync_folder(filesystem, folder)
        ready = posixpath.join(staging.path, MANIFEST)
        write_file(filesystem, ready, json.dumps(self._manifest(staging.token, parts), indent=1).encode())
        put_in_place(filesystem, ready, posixpath.join(self.target, MANIFEST), seen)
        sync_folder(filesystem, self.target)

    def _manifest(self, token: str, parts: Sequence[PartFile]) -> dict[str, Any]:
        old = read_manifest(self._place.filesystem, self.target) if self._options.mode == "append" else None
        rows = sum(part.rows for part in parts)
        write = {"token": token, "rows": rows, "files": [asdict(part) for part in parts]}
        writes = [*(old["writes"] if old else []), write]
        return {
            "version": VERSION,
            "format": self._options.format,
            "partition_by": list(self._options.partition_by),
            "rows": sum(each["rows"] for each in writes),
            "writes": writes,
        }


def _parquet_schema(stream: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.read_schema(stream)


def _arrow_schema(stream: Any) -> Any:
    with pa.ipc.open_file(stream) as reader:
        return reader.schema
