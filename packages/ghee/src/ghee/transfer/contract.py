"""The contract of a carrier. Every implementation passes tests/ghee/transfer/test_carriers.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ghee.codec import Buffer, Encoded

Message = list[Buffer]
"""The frames of one message; the first is small, the others may be large."""


class Endpoint(Protocol):
    """Sends to addresses and receives at its own. One thread uses it; `wake` may be called from any."""

    address: str

    def send(self, to: str, frames: Sequence[Buffer]) -> None:
        """Queue a message; never blocks. Between two endpoints the order is kept and nothing is lost while both live."""

    def receive(self, timeout: float | None) -> list[Message]:
        """Wait for messages, for `wake` or for `timeout` seconds; return all that are there."""

    def forget(self, address: str) -> None:
        """The endpoint at this address is gone: what is queued for it goes nowhere."""

    def wake(self) -> None:
        """Let `receive` return soon. From any thread."""

    def close(self) -> None:
        """Send what is queued (for a second at most) and let go of everything. May be called twice."""


@dataclass
class Parcel:
    """A batch that lies ready to be sent. `place` belongs to the store that made it."""

    encoded: Encoded | None
    header: bytes
    rows: int
    size: int
    place: object = None


class Store(Protocol):
    """Where the bytes of batches lie between two ranks.

    What `open` returns is writable and the receiver's own: writing to it changes no other rank's batch. Each buffer begins
    at a multiple of `memory.ALIGNMENT` bytes, whatever the size of the batch. A process that the receiver forks has the
    batches that lie open as they are at that moment, and no write of either is seen by the other.
    """

    def put(self, encoded: Encoded, receivers: int) -> Parcel:
        """Lay a batch down; it no longer needs the buffers that it was given. `receivers` is how many will get it."""

    def pack(self, parcel: Parcel, to: str) -> tuple[object, Sequence[Buffer]]:
        """What to send to the receiver at an address: a small picklable note, and frames."""

    def drop(self, parcel: Parcel) -> None:
        """The batch has been packed for everyone who gets it, or nobody wants it: its place is free once they free it."""

    def open(self, sender: str, note: object, frames: Sequence[Buffer]) -> list[Buffer]:
        """At the receiver: the buffers of a batch, which stay valid for as long as anything refers to them.

        Raises OSError if the sender has died and its memory is gone, ValueError if it lives and the note is wrong.
        """

    def freed(self) -> Iterable[tuple[str, list[object]]]:
        """At the receiver: what nothing refers to any more, by sender; to be told to `give_back` there."""

    def give_back(self, receiver: str, places: Iterable[object]) -> None:
        """At the sender: the receiver at an address has freed these."""

    def peer_gone(self, address: str) -> None:
        """A rank has died: what was lent to it is free, what it has lent stays valid."""

    def close(self) -> None:
        """Let go of everything that this store laid down."""
