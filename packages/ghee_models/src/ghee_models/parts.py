"""The parts of a data set (train, validation, test): which files, which rows of them, and how they are read."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


def prepare(data: DataConfig, split: SplitConfig, schema: Schema, folder: Path) -> Parts:
    """The parts that the settings ask for. Published splits are written to `folder`; the others write nothing."""
    paths = resolve(data.path)
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
    return _published(data, split, schema, paths, folder)


def _published(data: DataConfig, split: SplitConfig, schema: Schema, paths: tuple[str, ...], folder: Path) -> Parts:
    files = open_dataset(paths)
    rows = files.count_rows()
    if rows > _HELD_ROWS:
        raise ConfigError(f"split.kind {split.kind} holds all rows in memory; {rows} are too many. Use hash, or given.")
    user, item = _id_columns(data)
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
    made: dict[str, Part | None] = dict.fromkeys(splits.PARTS)
    digests: dict[str, str] = {}
    for name in splits.PARTS:
        if name == "valid" and not len(indices[name]):
            continue  # the ratios ask for none
        part = table.take(pa.array(np.asarray(indices[name])))
        if keys:
            digests[name] = splits.digest(*(part[key].to_numpy() for key in keys))
        path = folder / f"{name}.parquet"
        pq.write_table(part.select(schema.names), path, row_group_size=16_384)
        made[name] = Part(name, (str(path),))
    train = made["train"]
    assert train is not None, "only validation is left out"
    return Parts(train, made["valid"], made["test"], digests)


def _id_columns(data: DataConfig) -> tuple[str, str]:
    declared = {kind: name for name, kind in data.fields.items() if kind in ("user", "item")}
    return declared.get("user", data.user), declared.get("item", data.item)
