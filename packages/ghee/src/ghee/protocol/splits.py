"""Reading: which rank reads which split, and what is read again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from ghee.protocol.edge import SourceRules
from ghee.protocol.messages import RankId, Read, SplitDone

SplitKey = tuple[int, int]
"""Epoch, and the split's place in the epoch's order."""


class Splits:
    """Hands out splits to ranks that have none, epoch by epoch; what is to be read again goes first."""

    def __init__(
        self,
        source: SourceRules,
        finished: Callable[[SplitKey], frozenset[int]],
        first: int = 0,
        taken: frozenset[int] = frozenset(),
    ) -> None:
        """`finished(key)` gives the batches of a split that the first function is done with.

        Reading begins in epoch `first`, without the splits at the places `taken` of that epoch.
        """
        self.source = source
        self._finished = finished
        self._idle: dict[RankId, None] = {}
        self._first = first
        self._epoch = min(first, source.epochs - 1)  # of an endless source, what comes first may not have been cut yet
        here = range(source.splits(first)) if first < source.epochs else ()
        self._left: deque[int] = deque(place for place in here if place not in taken)
        self._whole: dict[RankId, SplitKey] = {}
        self._begun: dict[SplitKey, None] = {}
        self._again: dict[SplitKey, set[int]] = {}
        self._some: dict[RankId, list[tuple[SplitKey, frozenset[int]]]] = {}
        self._turn = 0
        self.done: set[SplitKey] = set()
        self.done_of_epoch: Counter[int] = Counter({first: len(taken)})
        self._batches: dict[SplitKey, int] = {}

    @property
    def are_handed_out(self) -> bool:
        """Whether no split is left of what is known of the source."""
        return not self._left and not self._begun and self._epoch + 1 >= self.source.epochs

    def forget(self, epoch: int) -> None:
        """An endless source's epoch is over at every consumer: nothing of it will be asked for."""
        assert self.source.cuts is not None
        self.source.cuts.pop(epoch, None)
        self.done_of_epoch.pop(epoch, None)
        self.done = {key for key in self.done if key[0] != epoch}
        self._batches = {key: count for key, count in self._batches.items() if key[0] != epoch}

    def rows(self, key: SplitKey) -> int | None:
        """The rows that the split has according to its metadata."""
        if self.source.cuts is not None:
            return None
        return self.source.rows[self.source.order(key[0])[key[1]]]

    def batches_of(self, key: SplitKey) -> int | None:
        """How many batches a split has, once it was read."""
        return self._batches.get(key)

    def is_over(self, epoch: int) -> bool:
        """Whether every split of the epoch was read, and nothing is to be read again."""
        if epoch >= self._first and self.done_of_epoch[epoch] < self.source.splits(epoch):
            return False
        pending = (*self._again, *(key for reads in self._some.values() for key, _ in reads))
        return all(key[0] != epoch for key in pending)

    def idle(self, rank: RankId) -> None:
        """The rank asks for a split."""
        self._idle[rank] = None

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
        self._whole.pop(event.rank, None)
        new = key not in self.done
        if new:
            self.done.add(key)
            self._batches[key] = event.batches
            self.done_of_epoch[key[0]] += 1
        return new

    def bury(self, dead: RankId) -> None:
        """The rank has died: what it was reading is to be read by another."""
        self._idle.pop(dead, None)
        for key, some in self._some.pop(dead, []):
            self._again.setdefault(key, set()).update(some)
        whole = self._whole.pop(dead, None)
        if whole is not None and whole not in self.done:
            self._begun[whole] = None

    def hand_out(self, ranks: Sequence[RankId]) -> list[Read]:
        """Splits for the ranks that have none; and single batches that are to be read again, for any of `ranks`.

        A rank that is busy reads those at once, whatever room it has: nothing else might move before they are there.
        """
        found = []
        for key in list(self._again):
            rank = next(iter(self._idle), ranks[self._turn % len(ranks)])
            self._turn += 1
            some = frozenset(self._again.pop(key))
            self._some.setdefault(rank, []).append((key, some))
            found.append(Read(rank, *key, only=some, redo=True))
        while self._idle and (next_key := self._next()) is not None:
            rank = next(iter(self._idle))
            del self._idle[rank]
            self._whole[rank] = next_key
            found.append(Read(rank, *next_key, skip=self._finished(next_key), redo=next_key in self._begun))
            self._begun.pop(next_key, None)
        return found

    def _next(self) -> SplitKey | None:
        if self._begun:
            return next(iter(self._begun))
        while not self._left:
            if self._epoch + 1 >= self.source.epochs or not self.source.splits(self._epoch + 1):
                return None
            self._epoch += 1
            self._left.extend(range(self.source.splits(self._epoch)))
        return self._epoch, self._left.popleft()
