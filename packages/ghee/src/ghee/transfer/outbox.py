"""The outbox of a rank: batches that it has made and that nobody has got yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from ghee.protocol.messages import BatchId, Send
from ghee.transfer.contract import Parcel


@dataclass
class Made:
    """A batch of this rank. `parcel` is None until the transfer thread knows that it is laid down; by then `sends` are due,
    and `is_over` says that nobody gets it after these.
    """

    rows: int
    size: int
    parcel: Parcel | None = None
    sends: list[Send] = field(default_factory=list)
    is_over: bool = False


@dataclass
class Outbox:
    """What waits to be sent; a batch that was made twice is here twice. `used` is in bytes, by epoch."""

    batches: dict[BatchId, list[Made]] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)

    def held(self, upto: BatchId, exact: bool) -> int:
        """Bytes of the batches whose names do not come after `upto`: what comes later never holds up what is earlier.

        Where a rank makes everything in order its epoch tells as much, for less.
        """
        if not exact:
            return sum(size for epoch, size in self.used.items() if epoch <= upto[0])
        return sum(made.size for name, copies in self.batches.items() if name[: len(upto)] <= upto for made in copies)

    def add(self, name: BatchId, made: Made) -> None:
        self.batches.setdefault(name, []).append(made)
        self.used[name[0]] = self.used.get(name[0], 0) + made.size

    def take(self, name: BatchId) -> Made:
        copies = self.batches[name]
        made = copies.pop(0)
        if not copies:
            del self.batches[name]
        left = self.used[name[0]] - made.size
        if left:
            self.used[name[0]] = left
        else:
            del self.used[name[0]]
        return made
