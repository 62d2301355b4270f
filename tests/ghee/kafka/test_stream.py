"""A topic without an end: committed once it was acknowledged, stopped in order, gone on with."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

import ghee
from ghee.cli import run_command
from ghee.errors import SourceError
from ghee.observe.metrics import render
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
    source = ghee.read(f"kafka://{kafka.address}/{topic}?group={group}&session.timeout.ms=6000", batch_size=100)
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


def test_the_oldest_row_and_the_rows_of_the_last_seconds_are_told(kafka: Kafka) -> None:
    topic = make_topic(kafka.address, 2)
    made = int(time.time() * 1000)
    messages = numbers(300, 2)
    for number, message in enumerate(messages):
        message["timestamp"] = made - 100_000 + 100 * number
    produce(kafka.address, topic, messages)
    go_on = threading.Event()

    def held(batch: Any) -> None:
        assert go_on.wait(90)

    source = ghee.read(f"kafka://{kafka.address}/{topic}?group={topic}", batch_size=100)
    run = ghee.run(source.write(held), on="inline", wait=False)
    clock = threading.Event()  # nobody is told when a figure changes
    try:
        while run.report.oldest is None:
            assert not run.wait(0)
            clock.wait(0.1)
        report = run.report
        oldest = (time.time() * 1000 - made) / 1000 + 100
        assert 100 <= report.oldest <= oldest
        assert f"the oldest row is {report.oldest:.0f} s old; " in str(report)
        assert "rows/s in the last 10 s" in str(report)
        assert "ghee_oldest_row_seconds" in render(report)
    finally:
        go_on.set()
    while run.report.oldest is not None:  # all is acknowledged
        assert not run.wait(0)
        clock.wait(0.1)
    run.stop()
    assert run.wait(60)


def test_ghee_cancel_stops_a_stream_in_order(kafka: Kafka, capsys: pytest.CaptureFixture[str]) -> None:
    topic = make_topic(kafka.address, 2)
    produce(kafka.address, topic, numbers(1_000, 2))
    seen = Seen()
    run = start(kafka, topic, topic, seen)
    seen.wait_for(1_000)
    assert run_command(["cancel", run.id]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"run {run.id} has stopped in order"
    assert run.wait(10)
    assert run.report.balanced
    assert committed(kafka.address, topic, topic, 2) == [500, 500]


# ── a second member of the group ─────────────────────────────────────────────────────────────────────────────────────


class Member:
    """Somebody else's consumer, in a thread; commits what it has read."""

    def __init__(self, kafka: Kafka, topic: str, **settings: str) -> None:
        self._consumer = Consumer({
            "bootstrap.servers": kafka.address, "group.id": topic, "auto.offset.reset": "earliest",
            "session.timeout.ms": 6000, **settings,
        })  # fmt: skip
        self._consumer.subscribe([topic])
        self.values: list[int] = []
        self.errors: list[str] = []
        self.owns = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is not None:
                self.errors.append(message.error().name())
            elif message is not None:
                self.values.append(int(message.value()))
            self.owns = len(self._consumer.assignment())
        self._consumer.close()

    def close(self) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture
def member(kafka: Kafka) -> Iterator[Any]:
    made: list[Member] = []

    def make(*arguments: Any, **settings: str) -> Member:
        made.append(Member(*arguments, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(condition: Any, run: ghee.Run) -> None:
    clock = threading.Event()  # a group tells its own members only
    for _ in range(600):
        if condition():
            return
        assert not run.wait(0), run.result
        clock.wait(0.1)
    raise AssertionError("it has not come to it within 60 s")


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_partitions_are_shared_with_somebody_else(kafka: Kafka, member: Any, first: str) -> None:
    """Each row once, whoever comes first; when one leaves the other has all partitions."""
    topic = make_topic(kafka.address, 4)
    seen = Seen()
    strategy = {"partition.assignment.strategy": "cooperative-sticky"}
    if first == "theirs":
        other = member(kafka, topic, **strategy)
        clock = threading.Event()  # a group tells its own members only
        while other.owns < 4:
            clock.wait(0.1)
        run = start(kafka, topic, topic, seen)
    else:
        run = start(kafka, topic, topic, seen)
        until(lambda: len(run.report.lag) == 4, run)
        other = member(kafka, topic, **strategy)
    until(lambda: other.owns == len(run.report.lag) == 2, run)
    produce(kafka.address, topic, numbers(2_000, 4))
    until(lambda: len(seen.values) + len(other.values) >= 2_000, run)
    assert len(seen.values) == len(other.values) == 1_000
    other.close()
    until(lambda: len(run.report.lag) == 4, run)
    produce(kafka.address, topic, numbers(1_000, 4, first=2_000))
    until(lambda: len(seen.values) >= 2_000, run)
    run.stop()
    assert run.wait(60)
    assert run.report.balanced
    assert sorted(seen.values + other.values) == list(range(3_000))


def test_a_member_that_shares_in_another_way_is_an_error(kafka: Kafka, member: Any) -> None:
    topic = make_topic(kafka.address, 2)
    other = member(kafka, topic)
    clock = threading.Event()  # a group tells its own members only
    while other.owns < 2:
        clock.wait(0.1)
    run = start(kafka, topic, topic, Seen())
    assert run.wait(60)
    with pytest.raises(SourceError, match="share partitions in another way"):
        _ = run.result


def test_a_group_that_is_past_the_end_is_told(kafka: Kafka) -> None:
    """As after a topic was made anew: waiting for offsets that may never come would pass over all rows until then."""
    topic = make_topic(kafka.address)
    produce(kafka.address, topic, numbers(10))
    earlier = Consumer({"bootstrap.servers": kafka.address, "group.id": topic})
    earlier.commit(offsets=[TopicPartition(topic, 0, 500)], asynchronous=False)
    earlier.close()
    run = start(kafka, topic, topic, Seen())
    assert run.wait(90)
    with pytest.raises(SourceError, match=r"from offset 500, and ends at 10: the group has committed it"):
        _ = run.result
