"""How old the oldest message is that a stream has not acknowledged: one of each partition is looked at now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ghee.io.kafka import client
from ghee.io.kafka.client import Partition
from ghee.io.kafka.options import Address, ReadOptions

LOOK_SECONDS = 2.0
"""How often it is looked at."""


class Oldest:
    """Used by the stream's thread; `age` may be asked for by any."""

    def __init__(self, address: Address, options: ReadOptions) -> None:
        self._consumer = client.consumer(
            address.brokers, options.settings, client.Told(), **{
                "queued.max.messages.kbytes": 1024, "fetch.message.max.bytes": 1024, "enable.partition.eof": False,
            },
        )  # fmt: skip
        self._looked = 0.0
        self._asked: dict[Partition, int] = {}
        self._known: dict[Partition, tuple[int, float]] = {}

    def look(self, behind: Mapping[Partition, int]) -> None:
        """`behind`: by partition that lags the first offset that is not acknowledged. Waits for nothing."""
        for message in self._consumer.consume(100, timeout=0):
            self._note(message)
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self._known = {one: known for one, known in self._known.items() if one in behind}
        wanted = {one: at for one, at in behind.items() if one not in self._known or self._known[one][0] != at}
        if wanted != self._asked:
            self._asked = wanted
            self._consumer.assign([client.place(*one, at) for one, at in wanted.items()])

    def _note(self, message: Any) -> None:
        one = (message.topic(), message.partition())
        if message.error() is not None or one not in self._asked:
            return
        milliseconds = message.timestamp()[1]
        self._known[one] = (self._asked.pop(one), milliseconds / 1000)
        self._consumer.incremental_unassign([client.place(*one, 0)])

    def age(self) -> float | None:
        """Seconds since the oldest of them was made, by its timestamp; None where nothing lags or nothing is known yet."""
        times = [made for _, made in list(self._known.values()) if made > 0]
        return max(0.0, time.time() - min(times)) if times else None

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()
