"""Topics as a source: which offsets belong to which split, and a rank's reading of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ghee.errors import PipelineError, SourceError
from ghee.io.contract import Split
from ghee.io.kafka import client
from ghee.io.kafka.client import Partition
from ghee.io.kafka.messages import failing, make_batch
from ghee.io.kafka.options import Address, ReadOptions, When, offset_of, parse_url
from ghee.io.kafka.ranges import Range, cut
from ghee.io.kafka.reader import Reader
from ghee.io.kafka.stream import Stream


class KafkaSource:
    """A source with an end: the offsets from `start` to `until` of every partition, as they are when the run begins."""

    hosted = False

    def __init__(self, address: Address, options: ReadOptions) -> None:
        client.library()
        if options.group and not options.endless:
            raise PipelineError(
                f"group={options.group!r} with until=: a group is followed without an end; leave one of them out"
            )
        self.address, self.options = address, options
        self.set_aside = 0
        """Messages that could not be decoded and were passed over."""
        self._reader: Reader | None = None
        self._letters: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_letters": None}

    @property
    def endless(self) -> bool:
        """Whether it has no end."""
        return self.options.endless

    def check_epochs(self, epochs: int) -> None:
        """An endless source has one pass."""
        if epochs > 1 and self.endless:
            raise PipelineError(f'epochs={epochs}: a topic without until= has no end; give until="latest"')

    def splits(self) -> list[Split]:
        """Raises SourceError where no broker answers, SourceNotFoundError for a topic, SourceError for lost offsets."""
        return cut(self.ranges(), self.options.batch_size)

    def stream(self, wake: Callable[[], None]) -> Stream:
        """In the driver, of an endless source: what cuts it into epochs."""
        return Stream(self.address, self.options, wake)

    def ranges(self) -> list[Range]:
        """The offsets from `start` to `until`, by partition."""
        brokers, settings = self.address.brokers, self.options.settings
        wanted = client.partitions_of(brokers, settings, self.address.topics)
        asking = client.admin(brokers, settings, client.Told())
        committed = client.is_committed(settings)
        low = client.offsets_at(asking, wanted, "earliest", committed)
        high = client.offsets_at(asking, wanted, "latest", committed)

        def place(at: When, other: dict[Partition, int]) -> dict[Partition, int]:
            if at == "earliest":
                return low
            if at == "latest":
                return high
            if isinstance(at, dict):
                found = {one: offset_of(at, *one) for one in wanted}
                return {one: other[one] if offset is None else offset for one, offset in found.items()}
            if isinstance(at, int):
                since = client.offsets_at(asking, wanted, at, committed)
                return {one: high[one] if offset < 0 else offset for one, offset in since.items()}
            raise PipelineError(f"start={at!r} is for a source without an end; give until=None, or offsets")

        starts, stops = place(self.options.start, low), place(self.options.until or "latest", high)
        problems = [
            f"{topic}[{partition}] was to be read from offset {starts[topic, partition]}, and begins at {first}: "
            f"offsets {starts[topic, partition]} to {first - 1} are gone by retention"
            for (topic, partition), first in low.items()
            if starts[topic, partition] < first
        ]
        problems += [
            f"{topic}[{partition}] was to be read to offset {stops[topic, partition]}, and ends at {last}"
            for (topic, partition), last in high.items()
            if stops[topic, partition] > last
        ]
        if problems:
            raise SourceError("; ".join(problems))
        return [Range(*one, starts[one], stops[one]) for one in wanted]

    def order(self, splits: Sequence[Split], epoch: int) -> list[Split]:
        """The partitions take turns; the same in every epoch."""
        del epoch
        return sorted(splits, key=lambda split: split.index)

    def read(self, split: Split, *, epoch: int) -> Iterator[Any]:
        """The batches of one range of offsets."""
        del epoch
        if self._reader is None:
            self._reader = Reader(self.address.brokers, self.options)
        for wanted in split.pieces:
            for messages in self._reader.read(wanted, self.options.batch_size):
                batch = make_batch(messages, self.options, self._poison)
                if batch is not None:
                    yield batch
        if self._letters is not None and self._letters.flush(self.options.patience):
            raise SourceError(f"messages that cannot be decoded cannot be written to {self.options.poison} either")

    def close(self) -> None:
        """In a rank: let go of its connections."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _poison(self, message: Any, error: Exception) -> None:
        if self.options.poison == "fail":
            failing(message, error)
        self.set_aside += 1
        if self.options.poison != "skip":
            self._send_letter(message, error)

    def _send_letter(self, message: Any, error: Exception) -> None:
        """The message as it was, and in its headers where it stood and why it is there."""
        address = parse_url(self.options.poison)
        if self._letters is None:
            self._letters = client.producer(address.brokers, self.options.settings, client.Told())
        about = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset(), "error": str(error)}
        headers = [*(message.headers() or ()), ("ghee", json.dumps(about).encode())]
        deliver(self._letters, self.options.patience, address.topics[0], message.value(), message.key(), headers=headers)


def deliver(producer: Any, patience: float, *arguments: Any, **more: Any) -> None:
    """Give a message to a producer; waits while its queue is full. Raises SourceError past `patience`."""
    deadline = time.monotonic() + patience
    while True:
        try:
            producer.produce(*arguments, **more)
            producer.poll(0)
            return
        except BufferError:
            if time.monotonic() > deadline:
                raise SourceError(f"the broker has taken nothing for {patience:.0f} s") from None
            producer.poll(0.1)
