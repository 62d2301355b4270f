"""What one consumer rank may hand to its function, and when: the receiving end of the even share."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class Deliver(NamedTuple):
    """Hand this to the function."""

    item: object


class End(NamedTuple):
    """The epoch is over; `left` are batches that the tail rule drops here. `commit`: see `EpochEnd`."""

    epoch: int
    left: list[object]
    commit: object = None


class StreamEnded(NamedTuple):
    """The last epoch is over."""


class Once:
    """Numbers from 0 on that come in any order, each once. Takes memory for those only that came before an earlier one."""

    def __init__(self) -> None:
        self.next = 0
        self._early: set[int] = set()

    def has(self, number: int) -> bool:
        """Whether the number has come."""
        return number < self.next or number in self._early

    def is_new(self, number: int) -> bool:
        """Whether the number comes for the first time; from then on it has come."""
        if self.has(number):
            return False
        self._early.add(number)
        while self.next in self._early:
            self._early.remove(self.next)
            self.next += 1
        return True


class Delivery(Generic[Item]):
    """The inbox of a consumer, epoch by epoch.

    A batch is delivered when its round is released (`gated`; a world of one rank need not wait) and, where `ordered`,
    when all before it were. The epoch ends when as many were delivered as the driver said the epoch has.
    """

    def __init__(self, gated: bool, ordered: bool, epoch: int = 0) -> None:
        """`epoch` is the first that comes."""
        self._gated, self._ordered = gated, ordered
        self.epoch = epoch
        self.delivered = 0
        self._late: deque[Item] = deque()
        self._waiting: dict[int, OrderedDict[int, Item]] = {}
        self._released: dict[int, int] = {}
        self._total: dict[int, int] = {}
        self._sent: dict[int, int] = {}
        self._commit: dict[int, object] = {}
        self._arrived: dict[int, int] = {}
        self._places: dict[int, Once] = {}
        self._epochs: int | None = None

    def arrived(self, epoch: int, place: int, item: Item) -> bool:
        """A batch has arrived that is the `place`-th of the epoch here. False if one had come for that place before."""
        if epoch < self.epoch or not self._places.setdefault(epoch, Once()).is_new(place):
            return False
        self._arrived[epoch] = self._arrived.get(epoch, 0) + 1
        self._waiting.setdefault(epoch, OrderedDict())[place] = item
        return True

    def arrived_again(self, item: Item) -> None:
        """A batch has arrived that had been at a rank that died: it goes first and belongs to no epoch's count here."""
        self._late.append(item)

    @property
    def is_urgent(self) -> bool:
        """Whether such a batch waits: it is to be taken whatever room there is."""
        return bool(self._late)

    def released(self, epoch: int, rounds: int) -> None:
        """The first `rounds` batches of the epoch may be delivered."""
        self._released[epoch] = max(rounds, self._released.get(epoch, 0))

    def ended(self, epoch: int, total: int, sent: int, commit: object = None) -> None:
        """The epoch has exactly `total` batches for this rank, and `sent` were sent to it."""
        self._commit[epoch] = commit
        self._total[epoch] = total
        self._sent[epoch] = sent
        self._released[epoch] = total

    def stream_ended(self, epochs: int) -> None:
        """The stream has exactly `epochs` epochs."""
        self._epochs = epochs

    def next(self) -> Deliver | End | StreamEnded | None:
        """What to do now; None: wait."""
        if self._late:
            return Deliver(self._late.popleft())
        if self.epoch == self._epochs:
            return StreamEnded()
        waiting = self._waiting.get(self.epoch, OrderedDict())
        if self._total.get(self.epoch) == self.delivered:
            if self._arrived.get(self.epoch, 0) < self._sent[self.epoch]:
                return None
            left: list[object] = list(waiting.values())
            by_epoch = (self._waiting, self._released, self._total, self._sent, self._arrived, self._places)
            for memory in by_epoch:
                memory.pop(self.epoch, None)
            self.epoch, self.delivered = self.epoch + 1, 0
            return End(self.epoch - 1, left, self._commit.pop(self.epoch - 1, None))
        if self._gated and self.delivered >= self._released.get(self.epoch, 0):
            return None
        if not waiting or (self._ordered and self.delivered not in waiting):
            return None
        item = waiting.pop(self.delivered) if self._ordered else waiting.popitem(last=False)[1]
        self.delivered += 1
        return Deliver(item)
