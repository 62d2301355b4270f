"""The state of one edge: what waits at it, who was given what, which epochs have ended."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Literal

from ghee.protocol.credit import Credit
from ghee.protocol.lineage import Batch
from ghee.protocol.messages import Action, BatchId, EpochEnd, RankId, StreamEnd, Tail, WhenSlow
from ghee.protocol.position import Position
from ghee.protocol.recut import Line, without
from ghee.protocol.share import Rounds
from ghee.protocol.source_order import Sequence

Kind = Literal["read", "map", "loop", "write"]


@dataclass(frozen=True)
class StageRules:
    """What the rules need to know of a stage.

    `credit` is in bytes and `most` in batches, both for each rank. `depth` counts the functions that a batch has passed
    through before it arrives here. `loops_before` counts the loops upstream: what each of them gives away after its last
    epoch is one epoch more. `world` is the number of ranks in each MPI world of the stage. `may_fail`: the run goes on when
    this stage fails, as long as another such stage has not. `begin`: of how many worlds the stage consists at the beginning,
    where they may join late and leave; `ranks` are then those that may be there at most. `stores`: a sink whose ranks say
    what they have stored, and which goes on after it. `by_split`: all batches that come of a split go to one rank, which
    its owner is (`SourceRules.owners`). `rebatch`: batches come to a loop or a sink with exactly so many rows, but for an
    epoch's last, which `drop_last` leaves out.
    """

    index: int
    kind: Kind
    parent: int | None
    ranks: int
    credit: int = 64 << 20
    most: int = 1 << 30
    ordered: bool = False
    tail: Tail = Tail.DROP
    depth: int = 0
    loops_before: int = 0
    world: int = 1
    when_slow: WhenSlow = WhenSlow.WAIT
    may_fail: bool = False
    begin: int | None = None
    stores: bool = False
    by_split: bool = False
    rebatch: int | None = None
    drop_last: bool = False


@dataclass
class SourceRules:
    """What the rules need to know of the source: `order(epoch)` gives the splits' numbers in the order of reading.

    An endless source has as many `epochs` as were cut of it so far, `cuts` says of how many splits each that is not over
    consists, and it has `ended` once no further one will be cut. `owners`: a number for each split of such an epoch.
    """

    epochs: int
    order: Callable[[int], SequenceOf[int]]
    rows: SequenceOf[int | None]
    cuts: dict[int, int] | None = None
    ended: bool = True
    owners: dict[int, SequenceOf[int]] = field(default_factory=dict)

    def splits(self, epoch: int) -> int:
        """The number of an epoch's splits; none of one that is over."""
        return len(self.rows) if self.cuts is None else self.cuts.get(epoch, 0)


class Edge:
    """The edge into a stage. `ready`: batches to be given away, by epoch; `late`: those of a rank that died.

    `returned`: ranks that are not there, because they have returned, have left, or have not been started yet; `leaving`:
    those that get nothing more; `parting`: those of them that were told so. `held`: what each rank was given and is not
    done with; `given`: how many batches, by epoch and rank; `open`: inputs of a map stage that are not finished; `lost`:
    batches that are to be made again; `missed`: batches that went past, by epoch, to be made again when there is room.
    """

    def __init__(self, rules: StageRules, source: SourceRules, first: int = 0, taken: Position | None = None) -> None:
        """The edge begins in epoch `first`; `taken` is what its consumer took of it in an earlier run."""
        self.rules = rules
        self.first = first
        self.taken = None if taken == Position() else taken
        self._source = source
        self._over = first
        self._past = first
        self._begins: dict[RankId, int] = {}
        self.ranks = [RankId(rules.index, index) for index in range(rules.ranks)]
        begin = rules.ranks if rules.begin is None else rules.begin * rules.world
        self.credit = Credit(self.ranks[:begin], rules.credit, rules.most)
        self.epoch = first
        self.ready: dict[int, dict[BatchId, Batch]] = {}
        self.late: dict[BatchId, Batch] = {}
        self.held: dict[RankId, dict[BatchId, Batch]] = {rank: {} for rank in self.ranks}
        self.given: dict[int, dict[RankId, int]] = {}
        self.open: dict[int, int] = {}
        self.lost: dict[int, int] = {}
        self.missed: dict[int, dict[BatchId, Batch]] = {}
        self.failed = False
        self.told = first
        self.told_end = False
        self.done: dict[int, set[RankId]] = {}
        self.returned: set[RankId] = set(self.ranks[begin:])
        self.leaving: set[RankId] = set()
        self.parting: set[RankId] = set()
        self.filled: set[int] = set()
        self.restarts: dict[int, int] = {}
        self.line = None if rules.rebatch is None else Line(rules.rebatch, drop_last=rules.drop_last)
        self._parts = {} if taken is None or self.line is None else taken.parts()
        self._rounds: dict[int, Rounds] = {}
        self._sequences: dict[int, Sequence] = {}

    @property
    def epochs(self) -> int:
        """How many epochs there are, as far as is known."""
        return self._source.epochs + self.rules.loops_before

    @property
    def ended(self) -> bool:
        """Whether there will be no further epoch."""
        return self._source.ended

    @property
    def shared(self) -> bool:
        """Whether several ranks must get the same number of batches."""
        return self.rules.kind == "loop" and self.rules.ranks > 1

    @property
    def is_consumer(self) -> bool:
        """Whether batches end here: a loop or a sink."""
        return self.rules.kind in ("loop", "write")

    @property
    def abandoned(self) -> bool:
        """Whether every rank has returned."""
        return len(self.returned) == len(self.ranks)

    @property
    def complete(self) -> bool:
        """Whether every rank has seen every epoch to its end."""
        while self._over < self.epochs and len(self.done.get(self._over, ())) == len(self.ranks):
            self._over += 1
        return self.ended and self._over == self.epochs

    def forget(self, epoch: int) -> None:
        """The epoch is over at every stage."""
        _ = self.complete  # moves on past the epochs that are over
        self._past = max(self._past, epoch + 1)
        for by_epoch in (self.given, self.missed, self.ready, self.open, self.lost, self.done):
            by_epoch.pop(epoch, None)
        self.filled.discard(epoch)

    def is_done(self, epoch: int) -> bool:
        """Whether every rank has seen the epoch to its end."""
        return epoch < self._over or len(self.done.get(epoch, ())) == len(self.ranks)

    def is_left(self, epoch: int) -> bool:
        """Whether every rank has seen the epoch to its end, or has returned before."""
        if self.is_done(epoch):
            return True
        done = self.done.get(epoch, set())
        enough = len(done) + len(self.returned) >= len(self.ranks)
        return enough and all(rank in done or rank in self.returned for rank in self.ranks)

    def rounds(self, epoch: int) -> Rounds:
        """The even share of an epoch that has not ended."""
        if epoch not in self._rounds:
            self._rounds[epoch] = Rounds(self.ranks, self.rules.ordered)
        return self._rounds[epoch]

    def rounds_if_open(self, epoch: int) -> Rounds | None:
        """The same, None if the epoch has ended or nothing was dealt in it."""
        return self._rounds.get(epoch)

    def forget_rounds(self, epoch: int) -> None:
        """The ranks were told how many batches the epoch has."""
        self._rounds.pop(epoch, None)
        if self.line is not None:
            self.line.forget(epoch)

    def counted(self, prefix: BatchId, children: int) -> None:
        """The number of children of a name has become known; matters where order does."""
        if self.is_consumer and self.abandoned:
            self._sequences.clear()  # nothing is given away any more
        elif self.rules.ordered and self.epoch <= prefix[0]:
            self._sequence(prefix[0]).counted(prefix, children)

    def _sequence(self, epoch: int) -> Sequence:
        if epoch not in self._sequences:
            taken = self.taken if self.taken is not None and self.taken.epoch == epoch else None
            self._sequences[epoch] = Sequence(epoch, self._source.splits(epoch), self.rules.depth, taken)
        return self._sequences[epoch]

    def next_place(self, rank: RankId) -> int:
        """The place of a further batch of this epoch at a rank, which counts as given."""
        given = self.given.setdefault(self.epoch, {})
        given[rank] = given.get(rank, 0) + 1
        return given[rank] - 1

    def left_of(self, name: BatchId, rows: int) -> list[tuple[int, int]] | None:
        """The rows of a batch that no earlier run has taken; None for all of them."""
        taken = self._parts.get(name)
        return None if taken is None else without(rows, taken)

    def passed(self, name: BatchId) -> None:
        """A batch comes by of which an earlier run has taken every row, in parts."""
        if self.rules.ordered and self.epoch <= name[0]:
            self._sequence(name[0]).passed(name)

    def add_ready(self, batch: Batch) -> None:
        """A batch waits to be given away."""
        ready = self.ready.setdefault(batch.id[0], OrderedDict())  # finds its first in the same time however many have gone
        ready[batch.id] = batch

    def next_ready(self) -> Batch | None:
        """The batch of this epoch that is to be given away next."""
        ready = self.ready.get(self.epoch)
        if self.rules.ordered:
            name = self._sequence(self.epoch).next(ready or {})
            return ready[name] if name is not None and ready is not None else None
        return next(iter(ready.values())) if ready else None

    def take_ready(self, batch: Batch) -> None:
        """The batch that `next_ready` returned was given away."""
        del self.ready[self.epoch][batch.id]
        if self.rules.ordered:
            self._sequence(self.epoch).taken()

    def go_on(self) -> None:
        """Every batch of this epoch was given away: the next epoch begins."""
        self._sequences.pop(self.epoch, None)
        self.ready.pop(self.epoch, None)
        if self.line is not None:
            self.line.go_on()
        self.epoch += 1

    def world_of(self, rank: RankId) -> list[RankId]:
        """The ranks that live and die with a rank."""
        first = rank.index - rank.index % self.rules.world
        return self.ranks[first : first + self.rules.world]

    def begins_with(self, rank: RankId) -> int:
        """The first epoch that the rank hears of."""
        return self._begins.get(rank, self.first)

    def ends_so_far(self, rank: RankId) -> list[Action]:
        """What a rank that joins late must hear: the ends of epochs that are not over everywhere; it had nothing of them."""
        self._begins = {other: epoch for other, epoch in self._begins.items() if other.index != rank.index}
        self._begins[rank] = self._past
        ends: list[Action] = [EpochEnd(rank, epoch, 0, 0) for epoch in range(self._past, self.told)]
        return [*ends, StreamEnd(rank, self.epochs)] if self.told_end else ends

    def takers(self) -> list[RankId]:
        """The ranks that may be given something to do."""
        if self.rules.begin is None:
            return self.ranks
        return [rank for rank in self.ranks if rank not in self.returned and rank not in self.leaving]
