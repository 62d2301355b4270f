"""A topic without an end: committed once it was acknowledged, stopped in order, gone on with."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import ghee
from servers.kafka import Kafka
from servers.topics import committed, make_topic, numbers, produce

pytestmark = pytest.mark.server


class Seen:
    """A sink that can be waited for."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self._change = threading.Condition()

    def __call__(self, batch: Any) -> None:
        with self._change:
            self.values += map(int, batch["value"].to_pylist())
            self._change.notify_all()

    def wait_for(self, count: int) -> None:
        with self._change:
            assert self._change.wait_for(lambda: len(self.values) >= count, 90), len(self.values)


def start(kafka: Kafka, topic: str, group: str, seen: Seen) -> ghee.Run:
    source = ghee.read(f"kafka://{kafka.address}/{topic}?group={group}", batch_size=100)
    return ghee.run(source.write(seen), on="inline", wait=False)


def test_a_stream_goes_on_after_what_was_committed(kafka: Kafka) -> None:
    topic = make_topic(kafka.address, 2)
    produce(kafka.address, topic, numbers(1_000, 2))
    seen = Seen()
    run = start(kafka, topic, topic, seen)
    seen.wait_for(1_000)
    produce(kafka.address, topic, numbers(500, 2, first=1_000))
    seen.wait_for(1_500)
    run.stop()
    assert run.wait(60)
    assert run.report.balanced
    assert run.report.lag == {f"{topic}[0]": 0, f"{topic}[1]": 0}
    assert f"lag: 0 offsets ({topic}[0] 0, {topic}[1] 0)" in str(run.report)
    assert sorted(seen.values) == list(range(1_500))
    assert committed(kafka.address, topic, topic, 2) == [750, 750]
    produce(kafka.address, topic, numbers(10, 2, first=1_500))
    later = Seen()
    again = start(kafka, topic, topic, later)
    later.wait_for(10)
    again.stop()
    assert again.wait(60)
    assert sorted(later.values) == list(range(1_500, 1_510))


def test_offsets_follow_the_checkpoints_of_a_loop(kafka: Kafka) -> None:
    topic = make_topic(kafka.address)
    produce(kafka.address, topic, numbers(300))

    def train(batches: Any) -> None:
        for number, epoch in enumerate(batches.epochs()):
            for _ in epoch:
                pass
            if number == 1:
                raise RuntimeError("broken")
            ghee.checkpoint({"epoch": number})

    source = ghee.read(f"kafka://{kafka.address}/{topic}?group={topic}", batch_size=100)
    run = ghee.run(source.loop(train), on="inline", wait=False)
    clock = threading.Event()  # the broker tells nobody of a commit
    for _ in range(300):
        if committed(kafka.address, topic, topic, 1) == [300]:
            break
        clock.wait(0.2)
    produce(kafka.address, topic, numbers(200))
    assert run.wait(60)
    with pytest.raises(RuntimeError, match="broken"):
        _ = run.result
    assert committed(kafka.address, topic, topic, 1) == [300]
