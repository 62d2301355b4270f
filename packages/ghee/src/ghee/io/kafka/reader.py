"""One rank's end of the source: ranges of offsets to lists of messages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from operator import methodcaller
from typing import Any

from ghee.errors import SourceError, SourceNotFoundError
from ghee.io.kafka import client
from ghee.io.kafka.options import ReadOptions
from ghee.io.kafka.ranges import Range

QUIET_SECONDS = 3.0
"""A range has messages, so none for so long means that the broker is away or slow: it is said."""

_offset, _error = methodcaller("offset"), methodcaller("error")


class Reader:
    """A consumer of no group, for one thread. It stays at its place between two ranges that follow each other."""

    def __init__(self, brokers: str, options: ReadOptions) -> None:
        self._brokers, self._options = brokers, options
        self._told = client.Told()
        self._kinds = client.library().KafkaError
        group = {"group.id": options.group} if options.group else {}
        self._consumer = client.consumer(brokers, options.settings, self._told, **group)
        self._at: tuple[str, int, int] | None = None
        self._left: list[Any] = []
        self._ended = -1

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()

    def read(self, wanted: Range, batch_size: int) -> Iterator[list[Any]]:
        """The range's messages in lists of `batch_size`, the last perhaps shorter. Raises SourceError."""
        self._go_to(wanted)
        over = False
        while not over:
            over, messages = self._next(wanted, batch_size)
            if messages:
                yield messages

    def _go_to(self, wanted: Range) -> None:
        if self._at != (wanted.topic, wanted.partition, wanted.start):
            self._left = []
            self._consumer.assign([client.place(wanted.topic, wanted.partition, wanted.start)])
        self._at, self._ended = None, -1

    def _next(self, wanted: Range, count: int) -> tuple[bool, list[Any]]:
        """The next so many messages of the range, and whether it has no further ones."""
        got, self._left = self._left, []
        heard = time.monotonic()
        waiting = False
        while True:
            if got and got[-1].offset() >= wanted.stop - 1:
                return True, self._finish(wanted, got)
            if len(got) >= count:
                self._left = got[count:]
                return False, got[:count]
            if self._ended >= wanted.stop:
                return True, self._finish(wanted, got)
            # Never more than are left of the range, so that it does not wait for what nobody has asked for.
            after = got[-1].offset() + 1 if got else wanted.start
            more = self._consumer.consume(min(count - len(got), wanted.stop - after), timeout=0.1)
            if more:
                got += (
                    [message for message in more if not self._is_event(message, wanted)] if any(map(_error, more)) else more
                )
                if waiting:
                    print(f"ghee: {self._brokers} answers again after {time.monotonic() - heard:.0f} s", flush=True)
                heard, waiting = time.monotonic(), False
            elif (silent := time.monotonic() - heard) > QUIET_SECONDS:
                self._check(wanted, silent)
                if not waiting:
                    said = f": {self._told.last}" if self._told.last else ""
                    print(f"ghee: waiting for {wanted.where} at {self._brokers}{said}", flush=True)
                waiting = True

    def _finish(self, wanted: Range, got: list[Any]) -> list[Any]:
        """Keep what lies beyond the range for the one that follows it."""
        inside = len(got)
        while inside and got[inside - 1].offset() >= wanted.stop:
            inside -= 1
        self._left = got[inside:]
        self._at = (wanted.topic, wanted.partition, wanted.stop)
        return got[:inside]

    def _check(self, wanted: Range, silent: float) -> None:
        if self._told.fatal or self._told.refused:
            raise SourceError(f"{wanted.where} at {self._brokers} cannot be read: {self._told.fatal or self._told.last}")
        if silent > self._options.patience:
            raise SourceError(
                f"{wanted.where}: {self._brokers} has given nothing for {silent:.0f} s, and offset {wanted.stop - 1} was to "
                f"come: {self._told.last or 'no error was told'}. patience= (seconds) says how long to wait"
            )

    def _is_event(self, message: Any, wanted: Range) -> bool:
        """Whether it is no message but news: the end of the partition is noted, errors that stay are raised."""
        error = message.error()
        if error is None:
            return False
        code, kinds = error.code(), self._kinds
        if code == kinds._PARTITION_EOF:
            self._ended = message.offset()
        elif code in (kinds._AUTO_OFFSET_RESET, kinds.OFFSET_OUT_OF_RANGE):
            raise SourceError(self._lost(wanted))
        elif code in (kinds.UNKNOWN_TOPIC_OR_PART, kinds._UNKNOWN_TOPIC, kinds._UNKNOWN_PARTITION):
            raise SourceNotFoundError(f"{wanted.where} is not at {self._brokers} any more: {error.str()}")
        elif code == kinds.TOPIC_AUTHORIZATION_FAILED:
            raise SourceError(f"{wanted.where}: the broker does not let this user read it ({error.str()})")
        elif error.fatal() or not error.retriable():
            self._told(error)
        return True

    def _lost(self, wanted: Range) -> str:
        low, high = self._consumer.get_watermark_offsets(
            client.place(wanted.topic, wanted.partition, 0), timeout=client.START_SECONDS
        )
        return (
            f"{wanted.where}: offsets {wanted.start} to {min(low, wanted.stop) - 1} are gone by retention before they were "
            f"read; the broker has {low} to {high - 1}. Nothing was skipped. Read more often, keep longer, or begin at "
            f'start="earliest"'
        )
