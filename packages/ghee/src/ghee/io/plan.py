"""Which rows belong to which split, and in which order splits and rows are read. Pure: no file is touched here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ghee.io.contract import Split

# At least so many splits where the data allow it, so that a small source keeps several ranks busy.
MIN_SPLITS = 16
# A split is held by no rank as a whole, but it is what is read again after a rank was killed: so it stays small.
MAX_SPLIT_BYTES = 64 << 20
MAX_SPLIT_ROWS = 1 << 20
MIN_SPLIT_BYTES = 64 << 10
# A row group that is cut is decoded by every rank that reads a part of it; more parts cost more than they bring.
MAX_CUTS_PER_GROUP = 8


@dataclass(frozen=True)
class FileRef:
    """A file as it was when it was listed: `size` in bytes, `mtime_ns` in ns where the store says it.

    `partition` holds the values of the hive partitions in the order of the source's partition columns. `etag` is what
    an object store calls this version of the file.
    """

    path: str
    size: int | None
    mtime_ns: int | None
    partition: tuple[int | str | None, ...] = ()
    etag: str | None = None


@dataclass(frozen=True)
class Unit:
    """The least part of a file that a format reads alone: a row group, a record batch, a range of bytes.

    `start`, `stop` are in the format's own unit; `bytes` is what it takes in memory, about; `cuttable` says that a
    range of its rows may be read alone.
    """

    start: int
    stop: int
    rows: int | None
    bytes: int
    cuttable: bool = False


@dataclass(frozen=True)
class Piece:
    """Units `start` to `stop` of one file; of the rows that pass the filter, `skip` are left out, `take` are read."""

    file: FileRef
    start: int
    stop: int
    rows: int | None
    skip: int = 0
    take: int | None = None


@dataclass(frozen=True)
class Target:
    """How large a split should become."""

    rows: int
    bytes: int
    cut_groups: bool = False


def target(files: Sequence[Sequence[Unit]], *, batch_size: int, split_rows: int | None) -> Target:
    """The size of a split: at least MIN_SPLITS of them, whole batches, and never more than the maxima above."""
    if split_rows is not None:
        return Target(split_rows, MAX_SPLIT_BYTES * 1024, cut_groups=True)
    rows = sum(unit.rows or 0 for units in files for unit in units)
    size = sum(unit.bytes for units in files for unit in units)
    wanted = min(max(-(-rows // MIN_SPLITS), 1), MAX_SPLIT_ROWS)
    return Target(-(-wanted // batch_size) * batch_size, target_bytes(size))


def target_bytes(total: int) -> int:
    return min(max(-(-total // MIN_SPLITS), MIN_SPLIT_BYTES), MAX_SPLIT_BYTES)


def cut(files: Iterable[tuple[FileRef, Sequence[Unit]]], size: Target, *, batch_size: int) -> list[Split]:
    """Packs small units of neighbouring files into one split and cuts large ones; every row is in exactly one split."""
    splits: list[Split] = []
    pieces: list[Piece] = []
    weight = 0.0

    def flush() -> None:
        nonlocal weight
        if pieces:
            splits.append(make_split(len(splits), pieces))
            pieces.clear()
            weight = 0.0

    for file, units in files:
        for unit in units:
            if unit.rows == 0:
                continue
            share = max((unit.rows or 0) / size.rows, unit.bytes / size.bytes)
            if share > 1 and unit.cuttable and unit.rows is not None:
                flush()
                for piece in _cut_rows(file, unit, size, batch_size):
                    pieces.append(piece)
                    flush()
                continue
            if weight + share > 1:
                flush()
            pieces.append(Piece(file, unit.start, unit.stop, unit.rows))
            weight += share
    flush()
    return splits


def _cut_rows(file: FileRef, unit: Unit, size: Target, batch_size: int) -> Iterator[Piece]:
    assert unit.rows is not None
    step = size.rows
    if not size.cut_groups:
        step = max(step, -(-unit.rows // MAX_CUTS_PER_GROUP))
        step = -(-step // batch_size) * batch_size  # so that batches stay full
    for skip in range(0, unit.rows, step):
        take = min(step, unit.rows - skip)
        yield Piece(file, unit.start, unit.stop, take, skip, take)


def make_split(index: int, pieces: Sequence[Piece]) -> Split:
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last is not None and _continues(last, piece):
            rows = None if last.rows is None or piece.rows is None else last.rows + piece.rows
            merged[-1] = replace(last, stop=piece.stop, rows=rows)
        else:
            merged.append(piece)
    counts = [piece.rows for piece in merged]
    known = [count for count in counts if count is not None]
    return Split(index, tuple(merged), sum(known) if len(known) == len(counts) else None)


def _continues(last: Piece, piece: Piece) -> bool:
    whole = last.take is None and piece.take is None and not last.skip and not piece.skip
    return whole and last.file == piece.file and last.stop == piece.start


def limited(splits: Iterable[Split], limit: int) -> list[Split]:
    """The first `limit` rows in source order. Every split's and piece's `rows` must be known (counted)."""
    kept: list[Split] = []
    left = limit
    for split in splits:
        if left <= 0:
            break
        pieces: list[Piece] = []
        for piece in split.pieces:
            assert piece.rows is not None
            if left <= 0:
                break
            take = min(piece.rows, left)
            if take < piece.rows:
                piece = replace(piece, take=take, rows=take)
            left -= take
            if take:
                pieces.append(piece)
        if pieces:
            kept.append(make_split(len(kept), pieces))
    return kept


def ordered(splits: Sequence[Split], seed: int | None, epoch: int) -> list[Split]:
    """By index, or permuted by (seed, epoch); the order of the argument does not matter."""
    in_order = sorted(splits, key=lambda split: split.index)
    if seed is None:
        return in_order
    return [in_order[i] for i in permutation(len(in_order), (seed, epoch))]


def permutation(n: int, key: Sequence[int]) -> NDArray[np.int64]:
    """A permutation of range(n) that depends on `key` alone, in every version of numpy.

    The order of n random 64-bit words: numpy keeps the stream of a bit generator stable (NEP 19), not the one of
    `Generator.permutation`. Two equal words (chance n²/2⁶⁵) keep their order.
    """
    words = np.random.PCG64(np.random.SeedSequence([_unsigned(part) for part in key])).random_raw(n)
    return np.argsort(words, kind="stable")


def _unsigned(value: int) -> int:
    return value if value >= 0 else (1 << 64) - value  # SeedSequence takes no negative numbers
