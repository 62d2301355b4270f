"""A channel: what one process sends to another over a connection that may break and come back.

Every message has a number. The sender keeps it until the receiver has said that it has arrived; when the connection was
lost, it makes a new one and sends everything again that it still has. The receiver takes a message only when its number
is the next, so nothing arrives twice and nothing out of its order, whatever of an older connection comes late.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")

ACKNOWLEDGE_BYTES = 64 << 10
"""The receiver says at once that it has so many bytes: the sender holds as many in memory until it hears it."""

ACKNOWLEDGE_MESSAGES = 64
"""The same for small messages, which otherwise wait for a pause."""


class Outgoing(Generic[Item]):
    """The sender's side: messages that are numbered from 0 on, and kept until they have arrived."""

    def __init__(self) -> None:
        self.kept: deque[Item] = deque()
        self._first = 0

    def add(self, item: Item) -> int:
        """Keep a message; returns its number."""
        self.kept.append(item)
        return self._first + len(self.kept) - 1

    def arrived(self, number: int) -> None:
        """The receiver has every message before `number`. What it has said late or twice changes nothing."""
        while self._first < number and self.kept:
            self.kept.popleft()
            self._first += 1

    def again(self) -> list[tuple[int, Item]]:
        """What to send over a new connection, before anything else."""
        return list(enumerate(self.kept, self._first))


class Incoming:
    """The receiver's side: the number of the message that is to come next, and whether the sender is to be told."""

    def __init__(self) -> None:
        self.next = 0
        self._told = 0
        self._bytes = 0
        self._repeated = False

    def take(self, number: int, size: int) -> bool:
        """Whether a message is the next one. One that was taken before is not; nor is one after a gap, which comes again."""
        if number != self.next:
            self._repeated = self._repeated or number < self.next
            return False
        self.next += 1
        self._bytes += size
        return True

    @property
    def is_due(self) -> bool:
        """Whether the sender is to be told now and not at the next pause."""
        return self._repeated or self._bytes >= ACKNOWLEDGE_BYTES or self.next - self._told >= ACKNOWLEDGE_MESSAGES

    @property
    def is_owed(self) -> bool:
        """Whether the sender does not know of everything that has arrived."""
        return self._repeated or self.next != self._told

    def owe(self) -> None:
        """What the sender was told may not have reached it."""
        self._repeated = True

    def tell(self) -> int:
        """The sender is told now: everything before this number has arrived."""
        self._told, self._bytes, self._repeated = self.next, 0, False
        return self.next
