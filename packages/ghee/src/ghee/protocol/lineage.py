"""Lineage: where each batch is that came of a batch of the source, so that what is lost can be made again.

A *root* is a batch as it was read, named `(epoch, place of its split, place in the split)`. Every batch that functions
make of it carries its name and one index more for each function. While anything of a root is under way, all its batches
are known here; when the last has been consumed or dropped, the root is closed and only its number stays, in a range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from ghee.protocol.messages import BatchId, RankId
from ghee.protocol.spans import Spans
from ghee.protocol.taken import Taken


class Status(Enum):
    """How far a batch has come on its way to a stage."""

    READY = auto()  # lies in its maker's outbox
    SENT = auto()  # the maker was told to send it to `to`
    HELD = auto()  # has arrived at `to`
    DONE = auto()  # the stage's function has taken it in, or nobody wants it any more
    MISSED = auto()  # went past the stage, which was slow, and will be made again for it
    LOST = auto()  # is gone with a rank and will be made again


@dataclass(slots=True)
class Way:
    """The way of a batch to one stage.

    `sender` has it in its outbox or was told to send it. `redo`: it had been at a rank that died, so no count of an
    epoch includes it. `recalled`: its sender has died and it is not known yet whether it has arrived; `spare` is a rank
    that has made it again meanwhile. `missed`: it went past the stage once and is made again for it, so it goes past
    no more. `index`: of a part, its number among those of its place. `left`: the rows that are to be given away, as ranges
    (first, number); None for all.
    """

    sender: RankId
    status: Status = Status.READY
    to: RankId | None = None
    place: int = 0
    redo: bool = False
    recalled: bool = False
    spare: RankId | None = None
    missed: bool = False
    index: int = 0
    left: list[tuple[int, int]] | None = None


@dataclass(slots=True)
class Batch:
    """A batch and its ways to the stages that follow its maker's.

    `seen`: the ranks that have announced it since their function was last done with its input. `whole`: the batch that this
    is a part of; `parts`: those of its own parts that have not arrived. `cut`: some of its rows were given away, so that
    their number must not change.
    """

    id: BatchId
    rows: int
    size: int
    ways: dict[int, Way]
    seen: set[RankId]
    whole: Batch | None = None
    parts: dict[BatchId, Batch] | None = None
    cut: bool = False

    @property
    def made(self) -> BatchId:
        """The name under which it lies in its maker's outbox."""
        return self.id if self.whole is None else self.whole.id

    @property
    def key(self) -> BatchId:
        """Tells it from every other, where two stages are given parts of one batch that are cut at the same rows."""
        return self.id if self.whole is None else (*self.id, *self.ways)

    @property
    def family(self) -> list[Batch]:
        """The batch itself, and its parts that have not arrived."""
        return [self, *self.parts.values()] if self.parts else [self]

    def is_wanted_of(self, rank: RankId) -> bool:
        """Whether the rank must keep it, or what it is a part of, in its outbox."""
        if self.whole is not None:
            return self.whole.is_wanted_of(rank)
        for way in self.ways.values():
            if (way.status is Status.READY and way.sender == rank) or way.spare == rank:
                return True
        if self.parts:
            return any(
                (way.status is Status.READY and way.sender == rank) or way.spare == rank
                for part in self.parts.values()
                for way in part.ways.values()
            )
        return False

    def depends_on(self, rank: RankId) -> bool:
        """Whether something of it would be lost if the rank died now."""
        for way in self.ways.values():
            if (way.status in (Status.READY, Status.SENT) and way.sender == rank) or way.spare == rank:
                return True
        return False


@dataclass(slots=True)
class Root:
    """What came of one batch of the source, of so many `rows`.

    `finished`: the inputs that functions are done with; `open`: ways not DONE.
    """

    batches: dict[BatchId, Batch] = field(default_factory=dict)
    finished: set[BatchId] = field(default_factory=set)
    open: int = 0
    rows: int = 0

    def lost(self) -> bool:
        """Whether something of it must be made again."""
        families = (member for batch in self.batches.values() for member in batch.family)
        return any(way.status is Status.LOST for member in families for way in member.ways.values())


class Lineage:
    """All roots that are under way."""

    def __init__(self) -> None:
        self.roots: dict[BatchId, Root] = {}
        self.finished: dict[int, Taken] = {}
        """By epoch: the roots that the first function is done with."""
        self.watch: list[Callable[[BatchId, int], object]] = []
        """Told of every root that is closed, and its rows."""
        self._over = 0

    def root_of(self, name: BatchId) -> Root:
        """The root that a batch came of."""
        key = name[:3]
        root = self.roots.get(key)
        if root is None:
            root = self.roots[key] = Root()
        return root

    def is_closed(self, name: BatchId) -> bool:
        """Whether everything that came of the root has been consumed or dropped."""
        if name[0] < self._over:
            return True
        taken = self.finished.get(name[0])
        return taken is not None and name[:3] not in self.roots and taken.has(name[1], name[2])

    def finished_of(self, epoch: int) -> Taken:
        """The roots of an epoch that the first function is done with."""
        if epoch not in self.finished:
            self.finished[epoch] = Taken()
        return self.finished[epoch]

    def finished_of_split(self, key: tuple[int, int]) -> Spans:
        """The same of a split that was not read to its end."""
        return Spans(self.finished_of(key[0]).roots.get(key[1], ()))

    def forget(self, epoch: int) -> None:
        """The epoch is over at every consumer: nothing of it, and of those before it, is under way or ever will be."""
        self._over = max(self._over, epoch + 1)
        self.finished = {at: taken for at, taken in self.finished.items() if at >= self._over}

    def find(self, name: BatchId) -> Batch | None:
        """A batch that is under way."""
        root = self.roots.get(name[:3])
        return root.batches.get(name) if root else None

    def done(self, batch: Batch, stage: int) -> None:
        """The batch has reached the end of its way to a stage."""
        way = batch.ways[stage]
        if way.status is not Status.DONE:
            way.status = Status.DONE
            if batch.whole is not None and batch.whole.parts:
                batch.whole.parts.pop(batch.key, None)
            self.roots[batch.id[:3]].open -= 1
            self.close_if_over(batch.id[:3])

    def mark_finished(self, name: BatchId, root: Root, rows: int) -> None:
        """A function is done with an input of `rows` rows (or, at the first stage, with a root)."""
        root.finished.add(name)
        if len(name) == 3:
            root.rows = rows
            self.finished_of(name[0]).add(name[1], name[2], rows)

    def close_if_over(self, key: BatchId) -> None:
        """Forget a root when nothing of it is under way."""
        root = self.roots.get(key)
        # What a loop made has no root that is ever finished: it goes as soon as it was taken in.
        if root is not None and root.open == 0 and (key in root.finished or key[1] < 0):
            del self.roots[key]
            if key in root.finished:
                for follow in self.watch:
                    follow(key, root.rows)
