"""Even share: every rank of a world gets the same number of batches in an epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ghee.protocol.messages import RankId


class Rounds:
    """Deals the batches of one epoch to the ranks of a world, round by round.

    In a round every rank is given exactly one batch; the next round begins when the last rank of this one has its own.
    Within a round the order is free (first ready, first served), or by rank where `ordered`. A round is released for
    delivery when all its batches have arrived: a rank is never given a batch that another rank may lack, so that a
    collective operation at every step never hangs.

    What a batch costs does not grow with the number of ranks.
    """

    def __init__(self, ranks: Sequence[RankId], ordered: bool) -> None:
        self.ranks = tuple(ranks)
        self.ordered = ordered
        self.dealt = 0
        self.released = 0
        self._open = deque(self.ranks)
        self._parked: set[RankId] = set()
        self._arrived: dict[RankId, int] = dict.fromkeys(self.ranks, 0)
        self._complete: dict[int, int] = {}

    def candidate(self) -> RankId | None:
        """The rank that is to be tried next, of those that have no batch of this round yet and are not parked."""
        return self._open[0] if self._open else None

    def park(self) -> None:
        """The candidate has no room: another is tried before `unpark`; where `ordered`, none is."""
        if not self.ordered:
            self._parked.add(self._open.popleft())

    def unpark(self, rank: RankId) -> None:
        """The rank has given credit back."""
        if rank in self._parked:
            self._parked.remove(rank)
            self._open.append(rank)

    def deal(self) -> None:
        """The candidate is given a batch of this round."""
        self._open.popleft()
        self.dealt += 1
        if not self._open and not self._parked:
            self._open.extend(self.ranks)

    def take_back(self, rank: RankId) -> None:
        """The batch that was dealt last, to this rank, is not to be delivered."""
        self.dealt -= 1
        if self.dealt % len(self.ranks) == len(self.ranks) - 1:  # it had made its round full
            self._open.clear()
        self._open.appendleft(rank)

    def arrived(self, rank: RankId) -> int | None:
        """A batch has arrived at the rank. Returns the new number of released rounds if it grew."""
        place = self._arrived[rank]
        self._arrived[rank] = place + 1
        self._complete[place] = self._complete.get(place, 0) + 1
        grew = False
        while self._complete.get(self.released) == len(self.ranks):
            del self._complete[self.released]
            self.released += 1
            grew = True
        return self.released if grew else None

    @property
    def full_rounds(self) -> int:
        """How many rounds have been dealt completely."""
        return self.dealt // len(self.ranks)

    @property
    def without(self) -> list[RankId]:
        """The ranks that have no batch in the unfinished round; empty if the last round is complete."""
        lacking = self._parked.union(self._open)
        return [rank for rank in self.ranks if rank in lacking] if len(lacking) < len(self.ranks) else []
