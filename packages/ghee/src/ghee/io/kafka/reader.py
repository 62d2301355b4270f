"""One rank's end of the source: ranges of offsets to lists of messages.

Splits of the partitions take turns, and what librdkafka has fetched ahead of a partition is lost when its consumer goes to
another: so a rank has a consumer for each of a few partitions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from operator import methodcaller
from typing import Any

from ghee.errors import SourceError, SourceNotFoundError
from ghee.io.kafka import client
from ghee.io.kafka.client import Partition
from ghee.io.kafka.options import ReadOptions
from ghee.io.kafka.ranges import Range

QUIET_SECONDS = 3.0
"""A range has messages, so none for so long means that the broker is away or slow: it is said."""

CONSUMERS = 4
"""That a rank keeps at the most; they share what it may fetch ahead. The one that was used longest ago makes room."""

_error = methodcaller("error")


class Readers:
    """A rank's consumers. For one thread; several ranges may be read by turns, each by a consumer of its own."""

    def __init__(self, brokers: str, options: ReadOptions) -> None:
        said = options.settings.get("queued.max.messages.kbytes", client.QUEUE_KILOBYTES)
        share = {"queued.max.messages.kbytes": str(max(1, int(said) // CONSUMERS))}
        self._brokers, self._options = brokers, replace(options, settings={**options.settings, **share})
        self._idle: dict[Partition, Reader] = {}
        self._all: list[Reader] = []

    def read(self, wanted: Range, batch_size: int) -> Iterator[list[Any]]:
        """The range's messages in lists of `batch_size`, the last perhaps shorter. Raises SourceError."""
        one = (wanted.topic, wanted.partition)
        reader = self._take(one)
        try:
            yield from reader.read(wanted, batch_size)
        finally:
            if one in self._idle:  # a part of the same partition was read in the middle of this one
                self._all.remove(reader)
                reader.close()
            elif reader in self._all:
                self._idle[one] = reader

    def _take(self, one: Partition) -> Reader:
        if one in self._idle:
            return self._idle.pop(one)
        if self._idle and len(self._all) >= CONSUMERS:
            return self._idle.pop(next(iter(self._idle)))
        self._all.append(Reader(self._brokers, self._options))
        return self._all[-1]

    def close(self) -> None:
        """Let go of the connections."""
        for reader in self._all:
            reader.close()
        self._all.clear()
        self._idle.clear()


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
        self._lost = False
        self._after = 0
        """Everything of the range before this offset was handed over or is known to be lost."""

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
        self._at, self._ended, self._lost = None, -1, False
        self._after = wanted.start

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
                self._after = got[count - 1].offset() + 1
                return False, got[:count]
            if self._ended >= wanted.stop:
                return True, self._finish(wanted, got)
            # Never more than are left of the range, so that it does not wait for what nobody has asked for.
            after = max(self._after, got[-1].offset() + 1) if got else self._after
            more = self._consumer.consume(min(count - len(got), wanted.stop - after), timeout=0.1)
            if more:
                if any(map(_error, more)):
                    more = self._without_events(more, wanted, after)
                got += more
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
        self._at = None if self._lost else (wanted.topic, wanted.partition, wanted.stop)
        return got[:inside]

    def _check(self, wanted: Range, silent: float) -> None:
        if self._told.fatal or self._told.refused:
            raise SourceError(f"{wanted.where} at {self._brokers} cannot be read: {self._told.fatal or self._told.last}")
        if silent > self._options.patience:
            raise SourceError(
                f"{wanted.where}: {self._brokers} has given nothing for {silent:.0f} s, and offset {wanted.stop - 1} was to "
                f"come: {self._told.last or 'no error was told'}. patience= (seconds) says how long to wait"
            )

    def _without_events(self, more: list[Any], wanted: Range, after: int) -> list[Any]:
        kept = []
        for message in more:
            if not self._is_event(message, wanted, after):
                kept.append(message)
                after = message.offset() + 1
        return kept

    def _is_event(self, message: Any, wanted: Range, after: int) -> bool:
        """Whether it is no message but news: the end of the partition is noted, errors that stay are raised.

        `after`: everything before this offset was got.
        """
        error = message.error()
        if error is None:
            return False
        code, kinds = error.code(), self._kinds
        if code == kinds._PARTITION_EOF:
            self._ended = message.offset()
        elif code in (kinds._AUTO_OFFSET_RESET, kinds.OFFSET_OUT_OF_RANGE):
            self._go_on_after_loss(wanted, after)
        elif code in (kinds.UNKNOWN_TOPIC_OR_PART, kinds._UNKNOWN_TOPIC, kinds._UNKNOWN_PARTITION):
            raise SourceNotFoundError(f"{wanted.where} is not at {self._brokers} any more: {error.str()}")
        elif code == kinds.TOPIC_AUTHORIZATION_FAILED:
            raise SourceError(f"{wanted.where}: the broker does not let this user read it ({error.str()})")
        elif error.fatal() or not error.retriable():
            self._told(error)
        return True

    def _go_on_after_loss(self, wanted: Range, after: int) -> None:
        """Retention was faster. Raises SourceError with what is lost, or goes on behind it where the user wants that."""
        low, high = self._consumer.get_watermark_offsets(
            client.place(wanted.topic, wanted.partition, 0), timeout=client.AGAIN_SECONDS
        )
        lost = f"{wanted.where}: offsets {after} to {min(low, wanted.stop) - 1} are gone by retention before they were read"
        if self._options.lost == "fail":
            raise SourceError(
                f"{lost}; the broker has {low} to {high - 1}. Nothing was skipped. Read more often, keep longer, begin at "
                'start="earliest", or go on behind what is lost with ?lost=skip in the URL'
            )
        print(f"ghee: {lost}; going on at {low}", flush=True)
        self._lost, self._after = True, low
        if low >= wanted.stop:
            self._ended = low
        else:
            self._consumer.assign([client.place(wanted.topic, wanted.partition, low)])
