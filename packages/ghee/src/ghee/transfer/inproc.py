"""Carrier between threads of one process: queues, and one private copy of the bytes."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterable, Sequence

from ghee.codec import Buffer, Encoded
from ghee.transfer.contract import Message, Parcel
from ghee.transfer.memory import aligned_copy


class Exchange:
    """The endpoints of one run, by address."""

    def __init__(self) -> None:
        self.queues: dict[str, queue.SimpleQueue[Message | None]] = {}
        self._numbers = itertools.count()

    def endpoint(self) -> InprocEndpoint:
        """A new endpoint with an address of its own."""
        return InprocEndpoint(self, f"inproc://{next(self._numbers)}")


class InprocEndpoint:
    """Addressed queues."""

    def __init__(self, exchange: Exchange, address: str) -> None:
        self.address = address
        self._exchange = exchange
        self._queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        exchange.queues[address] = self._queue

    def send(self, to: str, frames: Sequence[Buffer]) -> None:
        """Queue a message; one to an endpoint that is closed goes nowhere, as on a network."""
        target = self._exchange.queues.get(to)
        if target is not None:
            target.put(list(frames))

    def receive(self, timeout: float | None) -> list[Message]:
        """Wait for messages, for `wake` or for `timeout` seconds."""
        messages: list[Message] = []
        try:
            first = self._queue.get(timeout=timeout)
            while True:
                if first is not None:
                    messages.append(first)
                first = self._queue.get_nowait()
        except queue.Empty:
            return messages

    def forget(self, address: str) -> None:
        """Nothing is queued here."""

    def wake(self) -> None:
        """Let `receive` return."""
        self._queue.put(None)

    def close(self) -> None:
        """Leave the exchange."""
        self._exchange.queues.pop(self.address, None)


class CopyStore:
    """One private copy of the bytes for each receiver, made when the batch is laid down or sent."""

    def put(self, encoded: Encoded, receivers: int) -> Parcel:
        """Copy the buffers."""
        copies = [memoryview(buffer) for buffer in aligned_copy(encoded.buffers)]
        copy = Encoded(encoded.header, copies, encoded.rows)
        return Parcel(copy, encoded.header, encoded.rows, encoded.size)

    def pack(self, parcel: Parcel, to: str) -> tuple[object, Sequence[Buffer]]:
        """A copy of the buffers for this receiver alone."""
        assert parcel.encoded is not None
        return None, aligned_copy(parcel.encoded.buffers)

    def drop(self, parcel: Parcel) -> None:
        """Nothing is shared between receivers."""

    def open(self, sender: str, note: object, frames: Sequence[Buffer]) -> list[Buffer]:
        """The frames are the buffers."""
        return list(frames)

    def freed(self) -> Iterable[tuple[str, list[object]]]:
        """Nothing has to be told back."""
        return ()

    def give_back(self, receiver: str, places: Iterable[object]) -> None:
        """Nothing was lent."""

    def peer_gone(self, address: str) -> None:
        """Nothing was lent."""

    def close(self) -> None:
        """Nothing is held."""
