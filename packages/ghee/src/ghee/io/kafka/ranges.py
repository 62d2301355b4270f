"""Offsets of partitions, cut into splits. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ghee.io.contract import Split

SPLIT_OFFSETS = 1 << 17
"""Offsets in a split at the most: what is read again after a rank was killed, and what one rank reads in one go."""

LEAST_SPLITS = 16


class Range(NamedTuple):
    """Offsets `start` to `stop` (not included) of one partition."""

    topic: str
    partition: int
    start: int
    stop: int

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.topic}[{self.partition}]"


def cut(ranges: Iterable[Range], batch_size: int, first: int = 0) -> list[Split]:
    """Every offset in exactly one split, of whole batches; the partitions take turns, so that ranks read from all.

    How many rows a split has is not known before it was read: offsets of transactions' ends, and of what was compacted
    away, hold none.
    """
    wanted = [one for one in ranges if one.stop > one.start]
    total = sum(one.stop - one.start for one in wanted)
    size = min(max(-(-total // LEAST_SPLITS), 1), SPLIT_OFFSETS)
    size = -(-size // batch_size) * batch_size
    pieces = [_pieces(one, size) for one in wanted]
    turns = [piece for turn in range(max(map(len, pieces), default=0)) for piece in _turn(pieces, turn)]
    return [Split(first + number, (piece,), None) for number, piece in enumerate(turns)]


def _turn(pieces: Sequence[Sequence[Range]], turn: int) -> list[Range]:
    return [of[turn] for of in pieces if turn < len(of)]


def _pieces(one: Range, size: int) -> list[Range]:
    return [one._replace(start=at, stop=min(at + size, one.stop)) for at in range(one.start, one.stop, size)]
