"""Topics as a source: which offsets belong to which split, and a rank's reading of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ghee.errors import PipelineError, SourceError
from ghee.io.contract import Split
from ghee.io.kafka import client, registry
from ghee.io.kafka.client import Partition
from ghee.io.kafka.messages import failing, make_batch
from ghee.io.kafka.options import Address, ReadOptions, When, offset_of, parse_url, unknown_partitions
from ghee.io.kafka.ranges import Range, cut
from ghee.io.kafka.reader import Readers
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
        self._ranges: list[Range] | None = None
        self._patience: float | None = None
        self._readers: Readers | None = None
        self._letters: Any = None
        self._schemas: registry.Schemas | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": None, "_letters": None, "_schemas": None}

    @property
    def endless(self) -> bool:
        """Whether it has no end."""
        return self.options.endless

    def check_epochs(self, epochs: int) -> None:
        """An endless source has one pass."""
        if epochs > 1 and self.endless:
            raise PipelineError(f'epochs={epochs}: a topic without until= has no end; give until="latest"')

    def splits(self) -> list[Split]:
        """Raises SourceError where no broker answers, SourceNotFoundError for a topic, SourceError for lost offsets.

        What "latest" is stays as it was when it was first asked for: a run that begins again ends where it was to end.
        """
        self._check_registry()
        if self._ranges is None:
            self._ranges = self.ranges()
        return cut(self._ranges, self.options.batch_size)

    @property
    def fixed(self) -> list[list[Any]] | None:
        """For the journal: the offsets that `splits` has found, where the source has an end."""
        return None if self._ranges is None else [list(one) for one in self._ranges]

    def fix(self, ranges: Sequence[Sequence[Any]]) -> None:
        """Go on with what an earlier run has found. Offsets that are gone since are noticed where they are read."""
        self._ranges = [Range(*one) for one in ranges]

    def stream(self, wake: Callable[[], None]) -> Stream:
        """In the driver, of an endless source: what cuts it into epochs."""
        self._check_registry()
        made = Stream(self.address, self.options, wake, self._patience)
        self._patience = self.options.patience  # where the run begins again, the broker has been there
        return made

    def _check_registry(self) -> None:
        if registry.is_needed(self.options.decode):
            registry.check(self.options.registry)

    def ranges(self) -> list[Range]:
        """The offsets from `start` to `until`, by partition."""
        brokers, settings = self.address.brokers, self.options.settings
        client.consumer(brokers, settings, client.Told()).close()  # a setting that is wrong is told before anything starts
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
        problems = unknown_partitions("start", self.options.start, wanted)
        problems += unknown_partitions("until", self.options.until, wanted)
        problems += [
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
        problems += [
            f"{topic}[{partition}] was to be read from offset {starts[topic, partition]} to {stop}, which is before it"
            + (f"; it ends at {high[topic, partition]}" if starts[topic, partition] > high[topic, partition] else "")
            for (topic, partition), stop in stops.items()
            if starts[topic, partition] > stop
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
        options = self.options
        if registry.is_needed(options.decode):
            self._schemas = self._schemas or registry.Schemas(options.decode, options.registry)
            options = replace(options, decode=self._schemas)
        if self._readers is None:
            self._readers = Readers(self.address.brokers, self.options)
        for wanted in split.pieces:
            for messages in self._readers.read(wanted, self.options.batch_size):
                batch = make_batch(messages, options, self._poison)
                if batch is not None:
                    yield batch
        if self._letters is not None and self._letters.flush(self.options.patience):
            raise SourceError(f"messages that cannot be decoded cannot be written to {self.options.poison} either")

    def close(self) -> None:
        """In a rank: let go of its connections."""
        if self._readers is not None:
            self._readers.close()
            self._readers = None
        if self._schemas is not None:
            self._schemas.close()
            self._schemas = None

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
