"""The parts of a data set (train, validation, test): which files, which rows of them, and how they are read."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ghee_models import datasets, splits
from ghee_models.errors import ConfigError, DataError
from ghee_models.schema import Schema
from ghee_models.settings import DataConfig, SplitConfig

DATASETS = {"ml-100k": datasets.movielens_100k, "ml-100k-users": datasets.movielens_100k_users}
_HELD_ROWS = 50_000_000  # a split that needs all rows at once refuses more
_LAYOUT = 2  # of the files of a published split; raised when another one is written
_KEPT_SPLITS, _KEPT_SECONDS = 20, 7 * 24 * 3600.0


@dataclass(frozen=True)
class HashKeep:
    """Keeps the rows whose key falls into one part."""

    part: int
    keys: tuple[str, ...]
    ratios: tuple[float, ...]
    seed: int

    def __call__(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows.filter(pa.array(splits.hash_parts(rows, self.keys, self.ratios, self.seed) == self.part))


@dataclass(frozen=True)
class Part:
    """Rows of some files: all of them, or those that `keep` keeps. Data only; it travels to the ranks."""

    name: str
    paths: tuple[str, ...]
    keep: HashKeep | None = None

    def batches(
        self, columns: Sequence[str], size: int = 65_536, share: tuple[int, int] = (0, 1)
    ) -> Iterator[pa.RecordBatch]:
        """The rows as record batches, read as they are asked for; of `share` (rank, size) every size-th batch."""
        files = open_dataset(self.paths)
        for number, rows in enumerate(files.to_batches(columns=list(columns), batch_size=size, use_threads=False)):
            if number % share[1] == share[0] and rows.num_rows:
                rows = rows if self.keep is None else self.keep(rows)
                if rows.num_rows:
                    yield rows


@dataclass(frozen=True)
class Parts:
    """The three parts. digests: of each part's (user, item) lines, where the split is a published one."""

    train: Part
    valid: Part | None
    test: Part | None
    digests: dict[str, str]


def resolve(path: str) -> tuple[str, ...]:
    """The files or folders that a setting names: `dataset:NAME`, a glob, a path or a URL.

    Raises ConfigError when nothing is named, DataError (through the checker) when nothing is there.
    """
    if not path:
        raise ConfigError("data.path is empty; name a folder, file, glob or URL of Parquet, or dataset:ml-100k.")
    if path.startswith("dataset:"):
        name = path.removeprefix("dataset:")
        if name not in DATASETS:
            raise ConfigError(f"data.path is {path!r}; known data sets are {', '.join(f'dataset:{n}' for n in DATASETS)}.")
        return (str(DATASETS[name]()),)
    if "://" not in path and any(sign in path for sign in "*?["):
        found = tuple(sorted(glob.glob(path)))
        if not found:
            raise missing(path, "the pattern matches no file")
        return found
    return (path,)


def source_of(data: Any, given: DataConfig) -> DataConfig:
    """The settings with what `data` names: a path, or a dataset that tells its files by `__ghee_source__` (one of cumin's).

    The digest of such a dataset becomes the content id. "" leaves the settings as they are. Raises ConfigError for others.
    """
    if isinstance(data, str):
        return replace(given, path=data, files=[]) if data else given
    tell = getattr(data, "__ghee_source__", None)
    if tell is None:
        raise ConfigError(f"data is a {type(data).__name__}; a path is needed, or a dataset with __ghee_source__().")
    said = tell()
    return replace(given, path="", files=list(said["paths"]), content_id=said.get("digest") or given.content_id)


def paths_of(data: DataConfig) -> tuple[str, ...]:
    """The files or folders of the rows. Raises as `resolve` does."""
    return tuple(data.files) or resolve(data.path)


def missing(path: str, why: str) -> DataError:
    """The error for data that is not there."""
    from ghee_models.checker import Report, Violation

    return DataError(Report([Violation("(data)", why, 1, file=path, fix="Check data.path.")], rows=0))


def filesystem(path: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path on it."""
    if "://" in path:
        found: tuple[Any, str] = pafs.FileSystem.from_uri(path)
        return found
    return pafs.LocalFileSystem(), str(Path(path).absolute())


def files_of(paths: Sequence[str]) -> list[tuple[Any, str]]:
    """Every Parquet file under the paths as (file system, path), ordered; names that begin with _ or . are left out."""
    found = []
    for path in paths:
        system, inside = filesystem(path)
        info = system.get_file_info(inside)
        if info.type == pafs.FileType.NotFound:
            raise missing(path, "there is no such file or folder")
        if info.type == pafs.FileType.File:
            found.append((system, inside))
            continue
        below = system.get_file_info(pafs.FileSelector(inside, recursive=True))
        names = sorted(f.path for f in below if f.type == pafs.FileType.File and f.path.endswith((".parquet", ".pq")))
        found += [(system, name) for name in names if not _hidden(name[len(inside) :])]
    if not found:
        raise missing(", ".join(paths), "there is no Parquet file")
    return found


def _hidden(relative: str) -> bool:
    return any(part.startswith(("_", ".")) for part in relative.strip("/").split("/"))


def open_dataset(paths: Sequence[str]) -> ds.Dataset:
    """The files as one dataset. Raises DataError when there is none."""
    found = files_of(paths)
    return ds.dataset([name for _, name in found], filesystem=found[0][0], format="parquet")


def prepare(data: DataConfig, split: SplitConfig, schema: Schema) -> Parts:
    """The parts that the settings ask for. Published splits are written to `splits_folder`; the others write nothing."""
    paths = paths_of(data)
    if split.kind == "given":
        test = Part("test", resolve(split.test)) if split.test else None
        return Parts(Part("train", paths), Part("valid", resolve(split.valid)), test, {})
    if split.kind == "hash":
        keys = tuple(f.name for f in schema.inputs if f.kind in ("user", "item")) or tuple(
            f.name for f in schema.inputs if f.kind != "categories"
        )
        ratios = tuple(split.ratios)
        made = [
            Part(name, paths, HashKeep(n, keys, ratios, split.seed)) if split.ratios[n] > 0 else None
            for n, name in enumerate(splits.PARTS)
        ]
        assert made[0] is not None, "check_settings demands a train ratio above 0"
        return Parts(made[0], made[1], made[2], {})
    return _published(data, split, schema, paths)


def splits_folder() -> Path:
    """Where published splits are kept, `splits` in `datasets.cache_folder()`: ranks read them, and so does a training that
    another driver resumes."""
    return datasets.cache_folder() / "splits"


def _published(data: DataConfig, split: SplitConfig, schema: Schema, paths: tuple[str, ...]) -> Parts:
    user, item = _id_columns(data)
    asked = {"split": asdict(split), "columns": schema.names, "ids": [user, item], "layout": _LAYOUT}
    folder = _place(_key(asked, paths))
    if _kept(folder) is None:
        files = open_dataset(paths)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as made:
            _write_parts(files, user, item, split, schema, Path(made))
            try:
                os.rename(made, folder)
            except OSError:
                if _kept(folder) is None:  # else another training has made the same meanwhile
                    raise
            Path(made).mkdir(exist_ok=True)  # for TemporaryDirectory to remove
        _forget_old_splits()
    os.utime(folder)
    said = _kept(folder)
    assert said is not None, "it was whole a moment ago, and none that is in use is removed"
    found = {name: Part(name, (str(folder / f"{name}.parquet"),)) for name in said["parts"]}
    return Parts(found["train"], found.get("valid"), found.get("test"), said["digests"])


def _place(key: str) -> Path:
    """The folder of a split, which is whole or not there. One of which somebody removed files is passed over: others may
    be reading what is left of it."""
    for number in itertools.count():
        folder = splits_folder() / (f"{key}-{number}" if number else key)
        if not folder.exists() or _kept(folder) is not None:
            return folder
    raise AssertionError("there are always more numbers")


def _kept(folder: Path) -> dict[str, Any] | None:
    """What a folder says of its split (its parts, their digests); None where it is not whole."""
    try:
        said: dict[str, Any] = json.loads((folder / "split.json").read_text())
    except (OSError, ValueError):
        return None
    return said if all((folder / f"{name}.parquet").is_file() for name in said["parts"]) else None


def _key(asked: dict[str, Any], paths: Sequence[str]) -> str:
    """Of what is asked, and of the files as they are now: data that has changed is split anew."""
    infos = [(name, system.get_file_info(name)) for system, name in files_of(paths)]
    # Where a store tells no time, files of one size cannot be told apart: nothing is kept for another training.
    files = [(name, info.size, info.mtime_ns or secrets.token_hex(8)) for name, info in infos]
    return hashlib.sha256(json.dumps([asked, files], sort_keys=True).encode()).hexdigest()[:16]


def _forget_old_splits() -> None:
    """Removes those that were last used more than a week ago, but for the latest; other trainings may be using theirs. What
    a training that was killed left half made (its name begins with a dot) goes after a week too."""
    kept = sorted(splits_folder().glob("[0-9a-f]*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in [*kept[_KEPT_SPLITS:], *splits_folder().glob(".*")]:
        if time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
            gone = folder.with_name(f".gone-{secrets.token_hex(8)}")  # first: what is half removed must not be found
            with contextlib.suppress(OSError):
                os.rename(folder, gone)
                shutil.rmtree(gone)


def _write_parts(files: ds.Dataset, user: str, item: str, split: SplitConfig, schema: Schema, folder: Path) -> None:
    rows = files.count_rows()
    if rows > _HELD_ROWS:
        raise ConfigError(f"split.kind {split.kind} holds all rows in memory; {rows} are too many. Use hash, or given.")
    keys = [name for name in (user, item) if name in files.schema.names]
    columns = list(dict.fromkeys([*schema.names, *keys, *([split.stratify] if split.stratify else [])]))
    if split.stratify and split.stratify not in files.schema.names:
        raise ConfigError(f"split.stratify is {split.stratify!r}, which the data has not; it has {files.schema.names}.")
    table = files.to_table(columns=columns)
    if split.kind == "recbole-by-user":
        if user not in columns:
            raise ConfigError(f"split.kind recbole-by-user needs the user column {user!r} (data.user); it is not there.")
        indices = splits.recbole_ratio_by_user(table[user].to_numpy(), split.ratios, split.seed)
    elif split.kind == "folds":
        strata = table[split.stratify].to_numpy() if split.stratify else None
        indices = splits.folds(rows, split.fold, split.folds, split.ratios, split.seed, strata)
    else:
        indices = splits.recbole_ratio(rows, split.ratios, split.seed)
    digests: dict[str, str] = {}
    parts = []
    for name in splits.PARTS:
        if name == "valid" and not len(indices[name]):
            continue  # the ratios ask for none
        part = table.take(pa.array(np.asarray(indices[name])))
        if keys:
            digests[name] = splits.digest(*(part[key].to_numpy() for key in keys))
        pq.write_table(part.select(schema.names), folder / f"{name}.parquet", row_group_size=16_384)
        parts.append(name)
    (folder / "split.json").write_text(json.dumps({"parts": parts, "digests": digests}))


def _id_columns(data: DataConfig) -> tuple[str, str]:
    declared = {kind: name for name, kind in data.fields.items() if kind in ("user", "item")}
    return declared.get("user", data.user), declared.get("item", data.item)
