"""Batches of exactly so many rows: the rows that come to an edge are one line, which is cut at whole batches.

    made by functions   |--- a ---|- b -|------- c -------|- d -|
    given to ranks      |-- rank 0 ---|-- rank 1 --|-- rank 0 --|- rank 1     each of `rows` rows but the epoch's last
    on their way        |--- a ---|-b-|-|----- c --|-- c --|- d -|            a part goes to one rank, at one place

The coordinator sees names and numbers of rows alone; a part is a range of rows of a batch that stays where it was made, and
the receiving rank joins the parts of a place.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ghee.protocol.lineage import Batch
from ghee.protocol.messages import BatchId, RankId

Ranges = list[tuple[int, int]]
"""Rows of a batch: the first and the number of each range, in order."""


def without(rows: int, taken: Ranges) -> Ranges:
    """The rows of a batch that has `rows` of them, without those that were taken."""
    left, at = [], 0
    for skip, take in sorted(taken):
        if skip > at:
            left.append((at, skip - at))
        at = max(at, skip + take)
    return [*left, (at, rows - at)] if at < rows else left


def count(ranges: Ranges) -> int:
    """The number of rows in ranges."""
    return sum(take for _, take in ranges)


@dataclass(slots=True)
class Cut:
    """A batch that a rank puts together, at a place of its epoch. `coming`: parts that have not arrived; `done`: those that
    were consumed; `closed`: no further part comes; `dropped`: it is short, and not to be delivered.
    """

    to: RankId
    epoch: int
    place: int
    rows: int = 0
    parts: list[Batch] = field(default_factory=list)
    coming: int = 0
    done: int = 0
    closed: bool = False
    dropped: bool = False

    @property
    def is_there(self) -> bool:
        """Whether its rank has all of it, and is to deliver it."""
        return self.closed and not self.coming and not self.dropped

    @property
    def names(self) -> list[BatchId]:
        """Of its parts."""
        return [part.id for part in self.parts]


class Line:
    """The cutting at one edge, into batches of `rows` rows. `open`: the batch that gets the next rows.

    `drop_last`: what is short at the end of an epoch is not delivered.
    """

    def __init__(self, rows: int, *, drop_last: bool = False) -> None:
        self.rows, self.drop_last = rows, drop_last
        self.open: Cut | None = None
        self.cuts: dict[BatchId, Cut] = {}
        """By the parts' names, until the whole batch was consumed."""
        self.last: dict[RankId, Cut] = {}
        """The last one of each rank in the epoch at hand."""
        self.parts: Counter[tuple[int, RankId]] = Counter()
        """How many parts were sent, by epoch and rank."""

    def begin(self, to: RankId, epoch: int, place: int) -> Cut:
        """A further batch, for a rank."""
        self.open = self.last[to] = Cut(to, epoch, place)
        return self.open

    def add(self, cut: Cut, part: Batch) -> int:
        """A part of the open batch is sent. Returns its number among the batch's parts."""
        cut.parts.append(part)
        cut.coming += 1
        self.cuts[part.id] = cut
        self.parts[cut.epoch, cut.to] += 1
        return len(cut.parts) - 1

    def close(self) -> Cut | None:
        """The open batch gets no further row; None if there is no such batch."""
        cut, self.open = self.open, None
        if cut is not None:
            cut.closed = True
            cut.dropped = self.drop_last and cut.rows < self.rows
        return cut

    def arrived(self, name: BatchId) -> bool:
        """A part has arrived. Whether a batch is complete with it."""
        cut = self.cuts[name]
        cut.coming -= 1
        return cut.is_there

    def consumed(self, name: BatchId) -> list[BatchId]:
        """A rank is done with a part. The names of all parts of its batch, if it is done with the whole."""
        cut = self.cuts[name]
        cut.done += 1
        if not cut.closed or cut.done < len(cut.parts):
            return []
        for part in cut.parts:
            del self.cuts[part.id]
        return cut.names

    def drop(self, rank: RankId, epoch: int | None = None) -> list[Cut]:
        """A rank takes no more of an epoch, or of any: forget its batches. Those that were closed and had not arrived."""
        cuts = {id(cut): cut for cut in self.cuts.values() if cut.to == rank and epoch in (None, cut.epoch)}
        for cut in cuts.values():
            for part in cut.parts:
                self.cuts.pop(part.id, None)
        found = [cut for cut in cuts.values() if cut.closed and cut.coming and not cut.dropped]
        for cut in cuts.values():
            cut.coming = 0
        return found

    def go_on(self) -> None:
        """The next epoch begins."""
        assert self.open is None
        self.last.clear()

    def forget(self, epoch: int) -> None:
        """The epoch is over at every rank."""
        for key in [key for key in self.parts if key[0] == epoch]:
            del self.parts[key]
