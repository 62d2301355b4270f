"""Reading: which rank reads which split, and what is read again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence, Set

from ghee.protocol.edge import SourceRules
from ghee.protocol.messages import GaveBack, GiveBack, RankId, Read, SplitDone
from ghee.protocol.spans import Spans

SplitKey = tuple[int, int]
"""Epoch, and the split's place in the epoch's order."""


class Splits:
    """Hands out splits to ranks that have none, epoch by epoch; what is to be read again goes first."""

    def __init__(
        self,
        source: SourceRules,
        finished: Callable[[SplitKey], Set[int]],
        first: int = 0,
        taken: Set[int] = frozenset(),
    ) -> None:
        """`finished(key)` gives the batches of a split that the first function is done with.

        Reading begins in epoch `first`, without the splits at the places `taken` of that epoch.
        """
        self.source = source
        self._finished = finished
        self._idle: OrderedDict[RankId, None] = OrderedDict()
        self._leaving: set[RankId] = set()
        self._first, self._taken = first, taken
        self._epoch = min(first, source.epochs - 1)  # of an endless source, what comes first may not have been cut yet
        self._begin(self._epoch if first < source.epochs else None)
        self._whole: dict[RankId, list[SplitKey]] = {}
        self._begun: dict[SplitKey, None] = {}
        self._again: dict[SplitKey, set[int]] = {}
        self._some: dict[RankId, list[tuple[SplitKey, frozenset[int]]]] = {}
        self._turn = 0
        self._over = 0
        self.done: dict[int, Spans] = {first: Spans(taken)}

    @property
    def are_handed_out(self) -> bool:
        """Whether no split is left of what is known of the source."""
        return not self._untouched and not self._begun and self._epoch + 1 >= self.source.epochs

    def forget_epoch(self, epoch: int) -> None:
        """The epoch, and those before it, are over at every consumer: nothing of them will be asked for."""
        self._over = max(self._over, epoch + 1)
        self.done = {at: done for at, done in self.done.items() if at >= self._over}
        if self.source.cuts is not None:
            self._epoch = max(self._epoch, epoch)  # of which nothing was handed out where an earlier run had taken it all
            self.source.cuts.pop(epoch, None)

    def rows(self, key: SplitKey) -> int | None:
        """The rows that the split has according to its metadata."""
        if self.source.cuts is not None:
            return None
        return self.source.rows[self.source.order(key[0])[key[1]]]

    def is_over(self, epoch: int) -> bool:
        """Whether every split of the epoch was read, and nothing is to be read again."""
        if epoch >= max(self._first, self._over) and len(self.done.get(epoch, ())) < self.source.splits(epoch):
            return False
        pending = (*self._again, *(key for reads in self._some.values() for key, _ in reads))
        return all(key[0] != epoch for key in pending)

    @property
    def left(self) -> int:
        """How many splits no rank has been given yet, in all epochs."""
        epochs = max(0, self.source.epochs - 1 - self._epoch)
        return self._untouched + len(self._begun) + epochs * len(self.source.rows)

    @property
    def epoch(self) -> int:
        """The epoch of the newest split that was given to a rank."""
        return self._epoch

    def idle(self, rank: RankId) -> None:
        """The rank asks for a split."""
        self._idle[rank] = None

    def leave(self, rank: RankId) -> list[GiveBack]:
        """The rank is to leave: it gets no more, and gives back what it is reading."""
        self._leaving.add(rank)
        return [GiveBack(rank, *key) for key in self._whole.get(rank, ())]

    def stay(self, rank: RankId) -> None:
        """The rank is not to leave after all."""
        self._leaving.discard(rank)

    def forget(self, rank: RankId) -> None:
        """The rank, which reads nothing, has left."""
        self._idle.pop(rank, None)
        self._leaving.discard(rank)
        self._whole.pop(rank, None)
        self._some.pop(rank, None)

    def is_reading(self, rank: RankId) -> bool:
        """Whether the rank reads something."""
        return bool(self._whole.get(rank) or self._some.get(rank))

    def gave_back(self, event: GaveBack) -> None:
        """A rank has stopped reading a split in the middle of it: another goes on."""
        self._put_back(event.rank, (event.epoch, event.split))

    def _put_back(self, rank: RankId, key: SplitKey) -> None:
        self._whole[rank].remove(key)
        if not self._is_done(key):
            self._begun[key] = None

    def _is_done(self, key: SplitKey) -> bool:
        return key[0] < self._over or key[1] in self.done.get(key[0], ())

    def read_again(self, root: tuple[int, ...]) -> None:
        """A batch of the source is to be made again."""
        self._again.setdefault((root[0], root[1]), set()).add(root[2])

    def split_done(self, event: SplitDone) -> bool:
        """A split was read to its end; False if only some of its batches were, or it had been read before."""
        key = (event.epoch, event.split)
        if event.partial:
            reads = self._some[event.rank]
            reads.remove(next(read for read in reads if read[0] == key))
            return False
        if key in self._whole.get(event.rank, ()):
            self._whole[event.rank].remove(key)
        new = not self._is_done(key)
        if new:
            self.done.setdefault(key[0], Spans()).add(key[1])
        return new

    def bury(self, dead: RankId) -> None:
        """The rank has died: what it was reading is to be read by another."""
        for key, some in self._some.get(dead, []):
            self._again.setdefault(key, set()).update(some)
        for key in list(self._whole.get(dead, ())):
            self._put_back(dead, key)
        self.forget(dead)

    def hand_out(self, ranks: Callable[[], Sequence[RankId]]) -> list[Read]:
        """Splits for the ranks that have none; and single batches that are to be read again, for any of `ranks()`.

        A rank that is busy reads those at once, whatever room it has: nothing else might move before they are there. So it
        does with a split that another has begun, where its own comes later: that might wait for this one.
        """
        found = []
        for key in list(self._again):
            rank = self._first_idle() or (there := ranks())[self._turn % len(there)]
            self._turn += 1
            some = frozenset(self._again.pop(key))
            self._some.setdefault(rank, []).append((key, some))
            found.append(Read(rank, *key, only=some, redo=True))
        while (idle := self._first_idle()) is not None and (next_key := self._next()) is not None:
            del self._idle[idle]
            found.append(self._read(idle, next_key, now=False))
        for key in sorted(self._begun):
            first = {rank: min(keys) for rank in ranks() if (keys := self._whole.get(rank))}
            busy = max(first, key=first.__getitem__, default=None)
            if busy is None or first[busy] < key:
                break
            found.append(self._read(busy, key, now=True))
        return found

    def _first_idle(self) -> RankId | None:
        for rank in self._idle:
            if rank not in self._leaving and not self._whole.get(rank):  # it may have one yet that it was to read at once
                return rank
        return None

    def _read(self, rank: RankId, key: SplitKey, now: bool) -> Read:
        self._whole.setdefault(rank, []).append(key)
        begun = key in self._begun
        self._begun.pop(key, None)
        return Read(rank, *key, skip=self._finished(key), redo=begun, now=now)

    def _next(self) -> SplitKey | None:
        if self._begun:
            return min(self._begun)
        while not self._untouched:
            if self._epoch + 1 >= self.source.epochs or not self.source.splits(self._epoch + 1):
                return None
            self._epoch += 1
            self._begin(self._epoch)
        while self._skips(self._place):
            self._place += 1
        self._untouched -= 1
        self._place += 1
        return self._epoch, self._place - 1

    def _begin(self, epoch: int | None) -> None:
        """Hand out the splits of an epoch from the first on; None: there is none yet."""
        self._place = 0
        self._untouched = 0 if epoch is None else self.source.splits(epoch)
        if epoch == self._first and self._untouched:  # of an endless source the first epoch may be cut after it began
            self._untouched -= len(self._taken)

    def _skips(self, place: int) -> bool:
        return self._epoch == self._first and place in self._taken
