"""Which rows belong to which split, and in which order splits and rows are read. Pure: no file is touched here.

Where the rows of every piece are known, the source is one line of rows, and a split is what lies between two places on it:

    pieces   |--- a.parquet ---|--- b.parquet ---|- c -|
    even     |---- split 0 ----|---- split 1 ----|- 2 -|     places are whole batches, so only the epoch's last is short
    mixed    the pieces are permuted by (seed, epoch) first, then the line is cut at the same places

so a split may consist of ranges of rows of several files, and the splits of every epoch have the same numbers of rows.
Where rows are not known before they are read (text, a filter), a split is whole units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

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
# Of a shuffled source: so many pieces from all over it are in a split, and so many are read at a time.
MIXED = 16
# A piece's rows are decoded from the beginning of its row group on: c cuts cost (c + 1) / 2 times the decoding.
SHUFFLE_CUTS = 4
# What a rank shuffles within where the user did not say: rows, at least 16 batches, but never more bytes than these.
DEFAULT_BUFFER = 1 << 16
MAX_BUFFER_BYTES = 256 << 20


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
class Part:
    """A piece of one unit while splits are planned.

    `rows` and `bytes` are those before a filter, `piece.rows` those after it, where they are known.
    """

    piece: Piece
    rows: int | None
    bytes: int
    cuttable: bool


@dataclass(frozen=True)
class Target:
    """How large a split should become."""

    rows: int
    bytes: int
    cut_groups: bool = False


def parts_of(files: Iterable[tuple[FileRef, Sequence[Unit]]], *, filtered: bool) -> list[Part]:
    """Every unit that may have rows, in the source's order. With a filter nobody knows how many rows pass it."""
    return [
        Part(
            Piece(file, unit.start, unit.stop, None if filtered else unit.rows),
            unit.rows,
            unit.bytes,
            unit.cuttable and not filtered,
        )
        for file, units in files
        for unit in units
        if unit.rows != 0
    ]


def are_counted(parts: Sequence[Part]) -> bool:
    return all(part.piece.rows is not None for part in parts)


def target(parts: Sequence[Part], *, batch_size: int, split_rows: int | None) -> Target:
    """The size of a split: at least MIN_SPLITS of them, whole batches, and not more than the maxima above."""
    if split_rows is not None:
        return Target(_whole(split_rows, batch_size), MAX_SPLIT_BYTES * 1024, cut_groups=True)
    rows = sum(part.rows or 0 for part in parts)
    wanted = min(max(-(-rows // MIN_SPLITS), 1), MAX_SPLIT_ROWS)
    return Target(_whole(wanted, batch_size), target_bytes(sum(part.bytes for part in parts)))


def target_bytes(total: int) -> int:
    return min(max(-(-total // MIN_SPLITS), MIN_SPLIT_BYTES), MAX_SPLIT_BYTES)


def packed(parts: Iterable[Part], size: Target) -> list[Split]:
    """Whole units, small neighbours in one split: what can be done where rows are not known before they are read."""
    splits: list[Split] = []
    pieces: list[Piece] = []
    weight = 0.0
    for part in parts:
        share = _share(part, size)
        if pieces and weight + share > 1:
            splits.append(make_split(len(splits), pieces))
            pieces, weight = [], 0.0
        pieces.append(part.piece)
        weight += share
    return [*splits, make_split(len(splits), pieces)] if pieces else splits


def even(parts: Sequence[Part], size: Target, *, batch_size: int) -> list[Split]:
    """Splits of whole batches, but for the last, over the edges of units and files. Every row is in exactly one.

    A split ends at the first whole batch after the last edge that it may reach, so that the next one decodes little for
    nothing; it ends within a unit where that is larger than a split. All parts must be counted.
    """
    pieces = [part.piece for part in parts]
    edges = np.array([0, *accumulate(piece.rows or 0 for piece in pieces)])
    weights = np.array([0.0, *accumulate(_bounded_share(part, size) for part in parts)])
    ends: list[int] = []
    begin, total = 0, int(edges[-1])
    while begin < total:
        reach = float(np.interp(np.interp(begin, edges, weights) + 1, weights, edges)) - begin
        edge = int(edges[np.searchsorted(edges, begin + reach + _ROUNDING, side="right") - 1]) - begin
        step = max(_whole(math.ceil(reach - _ROUNDING), batch_size), batch_size)
        snapped = _whole(edge, batch_size)
        begin = min(begin + (snapped if 2 * snapped >= step else step), total)
        ends.append(begin)
    return [make_split(number, held) for number, held in enumerate(between(pieces, ends))]


_ROUNDING = 1e-3  # of a row: sums of shares are not exact


def _share(part: Part, size: Target) -> float:
    return max((part.rows or 0) / size.rows, part.bytes / size.bytes)


def _bounded_share(part: Part, size: Target) -> float:
    share = _share(part, size)
    return share if size.cut_groups else min(share, MAX_CUTS_PER_GROUP if part.cuttable else 1)


def between(pieces: Iterable[Piece], ends: Sequence[int]) -> list[list[Piece]]:
    """The line of the pieces' rows, cut at `ends`, of which the last is the number of all rows."""
    groups: list[list[Piece]] = []
    held: list[Piece] = []
    at = 0
    for piece in pieces:
        assert piece.rows is not None
        done = 0
        while done < piece.rows:
            rows = min(piece.rows - done, ends[len(groups)] - at)
            held.append(rows_of(piece, done, rows))
            done, at = done + rows, at + rows
            if at == ends[len(groups)]:
                groups.append(held)
                held = []
    return groups


def rows_of(piece: Piece, begin: int, rows: int) -> Piece:
    """So many of a counted piece's rows, from the row `begin` of it on."""
    assert piece.rows is not None
    if (begin, rows) == (0, piece.rows):
        return piece
    to_the_end = piece.take is None and begin + rows == piece.rows
    return replace(piece, rows=rows, skip=piece.skip + begin, take=None if to_the_end else rows)


def make_split(index: int, pieces: Iterable[Piece]) -> Split:
    """A split of these pieces in this order, neighbours as one."""
    merged = _joined(_joined(pieces, _goes_on), _follows)
    counts = [piece.rows for piece in merged]
    known = [count for count in counts if count is not None]
    return Split(index, tuple(merged), sum(known) if len(known) == len(counts) else None)


def _joined(pieces: Iterable[Piece], neighbours: Callable[[Piece, Piece], bool]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if joined and neighbours(joined[-1], piece):
            last = joined[-1]
            rows = None if last.rows is None or piece.rows is None else last.rows + piece.rows
            joined[-1] = replace(last, stop=piece.stop, rows=rows, take=None if piece.take is None else rows)
        else:
            joined.append(piece)
    return joined


def _goes_on(last: Piece, piece: Piece) -> bool:
    """Whether both are of the same units, one behind the other."""
    same = (last.file, last.start, last.stop) == (piece.file, piece.start, piece.stop)
    return same and last.take is not None and last.skip + last.take == piece.skip


def _follows(last: Piece, piece: Piece) -> bool:
    """Whether one ends with its units, and the other begins with the next one."""
    known = piece.take is None or last.rows is not None
    return known and last.take is None and not piece.skip and last.file == piece.file and last.stop == piece.start


def limited(parts: Iterable[Part], limit: int) -> list[Part]:
    """The first `limit` rows in source order; the parts must be counted. Stops at the one that has the last."""
    kept: list[Part] = []
    for part in parts:
        assert part.piece.rows is not None
        rows = min(part.piece.rows, limit)
        limit -= rows
        if rows:
            share = rows / part.piece.rows
            whole = None if part.rows is None else math.ceil(part.rows * share)
            kept.append(replace(part, piece=rows_of(part.piece, 0, rows), rows=whole, bytes=math.ceil(part.bytes * share)))
        if not limit:
            break
    return kept


def buffer_of(parts: Sequence[Part], *, batch_size: int) -> int:
    """The rows within which a rank shuffles where the user did not say it."""
    rows = sum(part.rows or 0 for part in parts)
    wanted = max(DEFAULT_BUFFER, 16 * batch_size)
    if not rows:
        return wanted
    fitting = MAX_BUFFER_BYTES * rows // max(sum(part.bytes for part in parts), 1)
    return min(wanted, max(fitting, batch_size))


def unmixed(parts: Sequence[Part], *, buffer: int, batch_size: int) -> list[Split]:
    """What `mixed` permutes: splits with the sizes that those of every epoch have, of pieces that are not joined.

    A split has as many rows as the buffer, or more where its pieces are so large that fewer than MIXED of them fit in it:
    pieces are whole units, or the SHUFFLE_CUTS-th of one, for smaller ones cost too much to decode.
    """
    if not are_counted(parts):
        units = [part.piece for part in parts]
        groups = [units[at : at + MIXED] for at in range(0, len(units), MIXED)]
    else:
        goal = max(buffer // MIXED, 1)
        units = [piece for part in parts for piece in _grains(part, goal)]
        total = sum(piece.rows or 0 for piece in units)
        size = _whole(max(buffer, MIXED * -(-total // max(len(units), 1))), batch_size)
        groups = between(units, [*range(size, total, size), total])
    return [
        Split(number, tuple(held), sum(p.rows or 0 for p in held) if are_counted(parts) else None)
        for number, held in enumerate(groups)
    ]


def _grains(part: Part, goal: int) -> Iterator[Piece]:
    rows = part.piece.rows
    assert rows is not None
    step = max(goal, -(-rows // (SHUFFLE_CUTS if part.cuttable else 1)))
    for begin in range(0, rows, step):
        yield rows_of(part.piece, begin, min(step, rows - begin))


def ordered(splits: Sequence[Split]) -> list[Split]:
    """By index; the order of the argument does not matter."""
    return sorted(splits, key=lambda split: split.index)


def mixed(splits: Sequence[Split], seed: int, epoch: int, *, buffer: int) -> list[Split]:
    """An epoch's splits: the pieces of all splits, permuted by (seed, epoch), and cut where the given splits are cut.

    So the split at a place has as many rows in every epoch. In one that fits into the buffer the pieces are in the
    source's order, neighbours as one: its rows are permuted as a whole, and less is decoded so.
    """
    in_order = ordered(splits)
    pieces = [piece for split in in_order for piece in split.pieces]
    pieces = [pieces[i] for i in permutation(len(pieces), (seed, epoch))]
    counts = [split.rows for split in in_order]
    if None in counts:
        ends = [0, *accumulate(len(split.pieces) for split in in_order)]
        return [Split(n, tuple(pieces[ends[n] : ends[n + 1]]), None) for n in range(len(in_order))]
    groups = between(pieces, [*accumulate(count or 0 for count in counts)])
    found = []
    for number, (held, count) in enumerate(zip(groups, counts, strict=True)):
        if fits(count, buffer):
            found.append(make_split(number, sorted(held, key=lambda piece: (piece.file.path, piece.start, piece.skip))))
        else:
            found.append(Split(number, tuple(held), count))
    return found


def fits(rows: int | None, buffer: int) -> bool:
    """Whether a split's rows are permuted as a whole."""
    return rows is not None and rows <= buffer


def _whole(rows: int, batch_size: int) -> int:
    return -(-rows // batch_size) * batch_size


def permutation(n: int, key: Sequence[int]) -> NDArray[np.int64]:
    """A permutation of range(n) that depends on `key` alone, in every version of numpy.

    The order of n random 64-bit words: numpy keeps the stream of a bit generator stable (NEP 19), not the one of
    `Generator.permutation`. Two equal words (chance n²/2⁶⁵) keep their order.
    """
    words = np.random.PCG64(np.random.SeedSequence([_unsigned(part) for part in key])).random_raw(n)
    return np.argsort(words, kind="stable")


def _unsigned(value: int) -> int:
    return value if value >= 0 else (1 << 64) - value  # SeedSequence takes no negative numbers
