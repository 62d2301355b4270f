"""What the ranks of a sink have stored: which parts count, and the sink's position after them.

A rank says `Stored` when everything that it has consumed lies in closed parts. A position names one epoch, and the ranks of
a sink end an epoch at their own time: what one has stored of a later epoch waits until the others have ended the earlier.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from ghee.protocol.lineage import Lineage
from ghee.protocol.messages import BatchId, Keep, RankId, Stored
from ghee.protocol.position import Position, Tracker


class Stores(Tracker):
    """Follows what the ranks of one sink store. Names are kept until they are stored, then as a tracker keeps them."""

    def __init__(self, ranks: Iterable[RankId], lineage: Lineage, start: Position) -> None:
        super().__init__(ranks, lineage, start)
        self._unstored: dict[RankId, list[BatchId]] = {rank: [] for rank in self._ranks}
        self._early: deque[tuple[Stored, list[BatchId]]] = deque()
        self._done = dict.fromkeys(self._ranks, start.epoch)

    def taken(self, rank: RankId, *names: BatchId) -> None:
        """The rank has written a batch; a part that holds it is not closed yet."""
        for name in names:
            self._unstored[rank].append(name)
            self._open[name[:3]] += 1

    def stored(self, event: Stored) -> list[Keep]:
        """The rank's parts are closed. What is to be recorded now: nothing, while others are in an earlier epoch."""
        names = [name for name in self._unstored[event.rank] if name[0] == event.epoch]
        assert len(names) == len(self._unstored[event.rank]), "a group of parts is of one epoch"
        self._unstored[event.rank] = []
        if event.epoch > self._epoch:
            self._early.append((event, names))
            return []
        self._settle(names)
        return [Keep(event.rank.stage, event.parts, self._position())]

    def ended(self, rank: RankId, epoch: int) -> list[Keep]:
        """The rank has seen the end of an epoch, and has stored all of it before."""
        self._done[rank] = epoch + 1
        if min(self._done.values()) == self._epoch:
            return []
        self._begin(self._epoch + 1)
        now, self._early = self._early, deque()
        parts: list[Any] = []
        for event, names in now:
            if event.epoch > self._epoch:
                self._early.append((event, names))
            else:
                self._settle(names)
                parts += event.parts
        return [Keep(rank.stage, tuple(parts), self._position())]

    def _settle(self, names: list[BatchId]) -> None:
        for name in names:
            self._settled(name)
