"""Credit: the bytes that receivers have said they will take, and who gets the next batch."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from ghee.protocol.messages import RankId


def inbox_share(credit: int) -> int:
    """Bytes that may be on their way to a receiver or lie in its inbox: half of its credit.

    The other half is its senders': one account bounds what is in memory between two stages, on both sides together.
    """
    return max(1, credit // 2)


def outbox_share(credit: int, receivers: int, senders: int) -> int:
    """Bytes that may lie in each sender's outbox: its part of the other half of what all receivers were given."""
    return max(1, (credit - inbox_share(credit)) * receivers // senders)


class Credit:
    """What each receiver of an edge may still be sent.

    Bytes are charged when a batch is given to a receiver and come back when it is done with it. A batch larger than
    the whole credit passes when the receiver holds nothing else: a large batch is slow, never stuck. Bytes of a later
    epoch never hold up an earlier one: when a batch is made again after a crash, what has been sent ahead of it does
    not count (docs/protocol.md, "no epoch waits for a later one").
    """

    def __init__(self, receivers: Iterable[RankId], limit: int, most: int) -> None:
        """`limit` in bytes and `most` in batches, both per receiver."""
        self.limit = limit
        self.most = most
        self.used: dict[RankId, int] = {}
        self._held: dict[RankId, dict[int, tuple[int, int]]] = {}
        self._heap: list[tuple[int, RankId]] = []
        self._leaving: set[RankId] = set()
        for receiver in receivers:
            self.add(receiver)

    def add(self, receiver: RankId) -> None:
        """A receiver joins with nothing in its inbox."""
        self.used[receiver] = 0
        self._held[receiver] = {}
        self._push(receiver)

    def remove(self, receiver: RankId) -> None:
        """A receiver is gone, which may never have been there; what it held is free."""
        self.used.pop(receiver, None)
        self._held.pop(receiver, None)
        self._leaving.discard(receiver)

    def leave(self, receiver: RankId) -> None:
        """The receiver is to leave: it gets nothing more, and gives back what it holds."""
        self._leaving.add(receiver)

    def stay(self, receiver: RankId) -> None:
        """The receiver is not to leave after all."""
        self._leaving.discard(receiver)
        if receiver in self.used:
            self._push(receiver)

    def has_room(self, receiver: RankId, size: int, epoch: int) -> bool:
        """Whether the receiver takes `size` bytes more of `epoch`."""
        held = self._held[receiver]
        if not held:
            return True
        if len(held) == 1 and epoch in held:
            number, total = held[epoch]
        else:
            number = sum(count for at, (count, _) in held.items() if at <= epoch)
            total = sum(taken for at, (_, taken) in held.items() if at <= epoch)
        return number == 0 or (total + size <= self.limit and number < self.most)

    def charge(self, receiver: RankId, size: int, epoch: int) -> None:
        """The receiver is given a batch of `size` bytes."""
        number, total = self._held[receiver].get(epoch, (0, 0))
        self._held[receiver][epoch] = (number + 1, total + size)
        self.used[receiver] += size
        self._push(receiver)

    def give_back(self, receiver: RankId, size: int, epoch: int) -> None:
        """The receiver is done with a batch of `size` bytes."""
        number, total = self._held[receiver][epoch]
        if number == 1:
            del self._held[receiver][epoch]
        else:
            self._held[receiver][epoch] = (number - 1, total - size)
        self.used[receiver] -= size
        self._push(receiver)

    def _push(self, receiver: RankId) -> None:
        """What it holds has changed; the entry before is stale, and stale ones must not pile up where nobody looks."""
        if len(self._heap) > 64 + 4 * len(self.used):
            self._heap = [(used, other) for other, used in self.used.items() if other not in self._leaving]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (self.used[receiver], receiver))

    def least_loaded(self) -> RankId | None:
        """The receiver that holds the fewest bytes: O(log n), stale entries are dropped on the way."""
        while self._heap:
            used, receiver = self._heap[0]
            if self.used.get(receiver) != used or receiver in self._leaving:
                heapq.heappop(self._heap)
            else:
                return receiver
        return None

    def least_loaded_with_room(self, size: int, epoch: int) -> RankId | None:
        """The same, None if it has no room.

        Another receiver may have some then; but this one holds something of the epoch or an earlier one, so it will move,
        and the cost of a batch must not grow with the number of receivers.
        """
        receiver = self.least_loaded()
        return receiver if receiver is not None and self.has_room(receiver, size, epoch) else None
