"""Read, process, write, with transactions: each row once for whoever reads what is committed, whatever is killed when.

The stream that is killed runs in a process of its own (`servers/killed.py`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ghee
from ghee.errors import TransactionError
from ghee.io.kafka import sink
from ghee.io.kafka.options import ReadOptions, WriteOptions, parse_url
from ghee.io.kafka.sink import KafkaSink
from ghee.io.kafka.source import KafkaSource
from servers.contract import wait_until
from servers.kafka import Kafka
from servers.killed import POINTS, VICTIMS, Killed
from servers.topics import committed, make_topic, numbers, produce, read_all

pytestmark = pytest.mark.server

ROWS = 6_000


def test_rows_and_offsets_appear_together(kafka: Kafka) -> None:
    first, second = make_topic(kafka.address, 3), make_topic(kafka.address, 2)
    produce(kafka.address, first, numbers(ROWS, 3))
    url = f"kafka://{kafka.address}"
    source = ghee.read(f"{url}/{first}?group={first}", batch_size=500)
    pipeline = source.map(lambda batch: batch).write(f"{url}/{second}", transactions=True, replicas=2)
    run = ghee.run(pipeline, wait=False)
    wait_for_commit(kafka, first, [ROWS // 3] * 3)
    run.stop()
    assert run.wait(60)
    assert run.report.balanced
    assert sorted(int(message.value()) for message in read_all(kafka.address, second)) == list(range(ROWS))


def test_nothing_is_seen_before_it_is_committed(kafka: Kafka) -> None:
    """A run that fails in the middle of a cut leaves no row of it."""
    first, second = make_topic(kafka.address), make_topic(kafka.address)
    produce(kafka.address, first, numbers(1_000))
    url = f"kafka://{kafka.address}"

    def broken(batch: Any) -> Any:
        if batch["offset"][0].as_py() >= 500:
            raise RuntimeError("broken")
        return batch

    source = ghee.read(f"{url}/{first}?group={first}", batch_size=100)
    with pytest.raises(RuntimeError, match="broken"):
        ghee.run(source.map(broken).write(f"{url}/{second}", transactions=True), on="inline")
    assert read_all(kafka.address, second) == []
    wait_for_commit(kafka, first, [-1001])


def test_a_call_that_does_not_come_back_is_given_up(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """librdkafka's call outlasts the limit that it was given; the next writer of that name shuts the old one out."""
    monkeypatch.setattr(sink, "STUCK_SECONDS", 4.0)
    address, (broker,) = kafka.address, kafka.programs
    first, second = make_topic(address), make_topic(address)
    produce(address, first, numbers(10))
    target = KafkaSink(parse_url(f"kafka://{address}/{second}"), WriteOptions(transactions=True))
    source = KafkaSource(parse_url(f"kafka://{address}/{first}"), ReadOptions(group=first, until=None))
    stream = source.stream(lambda: None)
    stream.begin({}, transactions=True)
    try:
        stream.ask()
        wait_until(lambda: stream.take() is not None, 30, lambda: "nothing was cut")
        writer, commit = target.writer(0), ([(first, 0, 10)], stream.membership())
        writer.write({"value": [b"1", b"2"]})
        writer._producer.flush()
        broker.pause()
        with pytest.raises(TransactionError, match="has not come back for 4 s"):
            writer.end_epoch(commit)
        writer.abort()  # of which the client is not asked
        broker.go_on()
        again = target.writer(0)
        assert read_all(address, second) == []
        again.write({"value": [b"1", b"2"]})
        again.end_epoch((commit[0], stream.membership()))
        assert [message.value() for message in read_all(address, second)] == [b"1", b"2"]
        assert committed(address, first, first, 1) == [10]
    finally:
        broker.go_on()
        stream.close()


def wait_for_commit(kafka: Kafka, topic: str, offsets: list[int]) -> None:
    clock = threading.Event()  # the broker tells nobody of a commit
    for _ in range(450):
        if committed(kafka.address, topic, topic, len(offsets)) == offsets:
            return
        clock.wait(0.2)
    raise AssertionError(committed(kafka.address, topic, topic, len(offsets)))


@pytest.fixture
def killed() -> Iterator[Any]:
    """Makes a stream, and ends its process whatever happens."""
    made: list[Killed] = []

    def make(*arguments: Any) -> Killed:
        made.append(Killed(*arguments))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


@pytest.mark.parametrize("who", VICTIMS)
@pytest.mark.timeout(500)
def test_somebody_is_killed_at_every_point(own_kafka: Kafka, tmp_path: Path, killed: Any, who: str) -> None:
    stream = killed(own_kafka, tmp_path, [(who, point) for point in POINTS])
    for part in range(3):  # so that each point is come to in a cut of its own
        produce(own_kafka.address, stream.first, numbers(ROWS, 2, first=part * ROWS))
        stream.wait_for((part + 1) * ROWS)
    stream.stop()
    assert stream.left == []
    found = Counter(int(message.value()) for message in read_all(own_kafka.address, stream.second))
    assert found == Counter(range(3 * ROWS))
    assert stream.starts == (4 if who == "driver" else 1)
