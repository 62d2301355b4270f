"""Kafka beside plain confluent-kafka on one broker of this machine: reading, read-process-write exactly once, memory.

    python benchmarks/kafka.py                   # reading and exactly once; needs Java and Maven, and confluent-kafka
    python benchmarks/kafka.py --only memory
    python benchmarks/kafka.py --against ../before/packages/ghee/src --share 0.3    # an older ghee too, fewer rows

Both sides read the same topics by turns, each in processes of its own. A reading rate is that of the rows after the first
batch, until the last one was seen: by the loop's rank for ghee (another process than the one that reads), by
`Consumer.consume` alone for confluent-kafka, which does not look at what it gets. Exactly once: rows after those of the
first transaction over the time between the two, by the broker's clock (`LogAppendTime` of the output); the plain loop
consumes, produces, and commits offsets and rows in transactions of as many rows as ghee's first. Processor time is that of a
side's processes from start to end, without the broker's: other programs on the machine hardly change it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import confluent_kafka as kafka
import memory

import ghee
from servers.kafka import Kafka
from servers.topics import committed, make_topic

SIZES = {100: 3_000_000, 10_000: 60_000}
"""How many messages of so many bytes: 300 and 600 MB."""

TRANSACTION_ROWS = 2 << 16
"""Rows of a transaction of the plain loop, and of ghee's first ones: 65,536 of each of two partitions."""


def fill(address: str, size: int, count: int, partitions: int = 2) -> str:
    """A topic with so many messages."""
    topic = make_topic(address, partitions)
    producer = kafka.Producer({"bootstrap.servers": address, "linger.ms": 20, "queue.buffering.max.kbytes": 1 << 17,
                               "queue.buffering.max.messages": 200_000})  # fmt: skip
    for number in range(count):
        value = b"%012d" % number + b"x" * (size - 12)
        while True:
            try:
                producer.produce(topic, value, partition=number % partitions)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()
    return topic


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


MOST = 4096
"""Messages that one call of the bare loop takes."""

# librdkafka's own default lets a partition's fetching rest for a second whenever 100,000 messages lie ready.
TUNED = {"fetch.queue.backoff.ms": 20, "fetch.wait.max.ms": 20, "isolation.level": "read_committed"}


def read_plain(address: str, topic: str, count: int, settings: dict[str, Any] | None = None) -> float:
    """Rows per second of the bare loop."""
    consumer = kafka.Consumer({
        "bootstrap.servers": address, "group.id": "plain", "enable.auto.commit": False, **(settings or {}),
    })  # fmt: skip
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    consumer.assign([kafka.TopicPartition(topic, number, 0) for number in partitions])
    seen, first, began = 0, 0, 0.0
    while seen < count:
        seen += len(consumer.consume(MOST, timeout=1))
        if seen and not first:
            first, began = seen, time.perf_counter()
    rate = (seen - first) / (time.perf_counter() - began)
    consumer.close()
    return rate


def read_ghee(address: str, topic: str, count: int, columns: list[str] | None = None) -> float:
    """Rows per second of one reading rank and a loop that counts."""

    def train(batches: Any) -> tuple[int, float]:
        seen, first, began = 0, 0, 0.0
        for batch in batches:
            seen += batch.num_rows
            if not first:
                first, began = seen, time.perf_counter()
        return seen, (seen - first) / (time.perf_counter() - began)

    source = ghee.read(f"kafka://{address}/{topic}", until="latest", columns=columns)
    seen, rate = ghee.run(source.loop(train), progress=False).result
    assert seen == count, f"{seen:,} rows came, {count:,} are there"
    return float(rate)


# ── exactly once ─────────────────────────────────────────────────────────────────────────────────────────────────────


def copy_plain(address: str, first: str, second: str, count: int) -> None:
    """Consume, produce, commit rows and offsets together."""
    consumer = kafka.Consumer({
        "bootstrap.servers": address, "group.id": second, "enable.auto.commit": False, "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
    })  # fmt: skip
    producer = kafka.Producer({"bootstrap.servers": address, "transactional.id": second, "linger.ms": 5,
                               "queue.buffering.max.messages": 2 * TRANSACTION_ROWS})  # fmt: skip
    consumer.subscribe([first])
    producer.init_transactions(60)
    done = 0
    while done < count:
        producer.begin_transaction()
        inside = 0
        while inside < TRANSACTION_ROWS and done + inside < count:
            messages = consumer.consume(MOST, timeout=1)
            for message in messages:
                while True:
                    try:
                        producer.produce(second, message.value())
                        break
                    except BufferError:
                        producer.poll(0.1)
            producer.poll(0)
            inside += len(messages)
        producer.send_offsets_to_transaction(
            consumer.position(consumer.assignment()), consumer.consumer_group_metadata(), 60
        )
        producer.commit_transaction(60)
        done += inside
    consumer.close()


def copy_ghee(address: str, first: str, second: str, count: int) -> None:
    """The same as a stream with transactions, stopped when all is committed."""
    url = f"kafka://{address}"
    source = ghee.read(f"{url}/{first}?group={second}", columns=["value"])
    run = ghee.run(source.write(f"{url}/{second}", transactions=True), wait=False, progress=False)
    while sum(committed(address, second, first, 2)) < count:
        if run.wait(0.5):
            raise RuntimeError(f"the stream has ended: {run.result}")
    run.stop()
    run.wait()
    assert run.report.balanced


def rate_of_copy(address: str, topic: str, count: int) -> float:
    """Rows per second of the output, by the broker's clock, after the first transaction's."""
    consumer = kafka.Consumer({"bootstrap.servers": address, "group.id": "rates", "enable.auto.commit": False,
                               "enable.partition.eof": True})  # fmt: skip
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    consumer.assign([kafka.TopicPartition(topic, number, 0) for number in partitions])
    times: list[int] = []
    left = set(partitions)
    while left:
        for message in consumer.consume(10_000, timeout=1):
            if message.error() is None:
                times.append(message.timestamp()[1])
            else:
                left.discard(message.partition())
    consumer.close()
    assert len(times) == count, f"{len(times):,} rows came out, {count:,} went in"
    times.sort()
    return (count - TRANSACTION_ROWS) / (times[-1] - times[TRANSACTION_ROWS - 1]) * 1000


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def slow_trainer(address: str, topic: str, count: int, credit: int, kilobytes: int, step: float) -> memory.Usage:
    """One reading rank before a loop that takes `step` seconds for each batch of 256 messages."""

    def train(batches: Any) -> int:
        seen = 0
        for batch in batches:
            time.sleep(step)  # the work of a device
            seen += batch.num_rows
        return seen

    source = ghee.read(f"kafka://{address}/{topic}", until="latest", columns=["value"], batch_size=256,
                       settings={"queued.max.messages.kbytes": kilobytes})  # fmt: skip
    with memory.Watch() as usage:
        assert ghee.run(source.loop(train, credit=credit), progress=False).result == count
    return usage


def report_memory(address: str, repeats: int, against: str, share: float) -> None:
    """The peak above that of the least credit and the least queue, against both together."""
    del against, share
    size, count, credit, queue = 10_000, 60_000, 64 << 20, 16 << 10
    topic = fill(address, size, count, 1)
    print("a full topic of 600 MB, batches of 2.56 MB, the loop takes 0.05 s for each: peak of all processes together")
    print(f"{'credit':>10} {'queue of librdkafka':>20} {'peak':>8} {'above the least':>16} {'of credit + queue':>18}")
    for _ in range(repeats):
        least = slow_trainer(address, topic, count, 1, 1024, 0.05)
        most = slow_trainer(address, topic, count, credit, queue, 0.05)
        above = most.peak - least.peak
        print(f"{'1 B':>10} {'1 MiB':>20} {least.peak / 1e6:5.0f} MB")
        print(f"{'64 MiB':>10} {'16 MiB':>20} {most.peak / 1e6:5.0f} MB {above / 1e6:13.0f} MB"
              f" {above / (credit + (queue << 10)):18.0%}", flush=True)  # fmt: skip


# ── both sides by turns ──────────────────────────────────────────────────────────────────────────────────────────────

SIDES: dict[str, Callable[..., Any]] = {
    "read_plain": read_plain, "read_ghee": read_ghee, "copy_plain": copy_plain, "copy_ghee": copy_ghee,
}  # fmt: skip


def apart(side: str, *arguments: Any, source: str = "") -> tuple[Any, float]:
    """One side in a process of its own, with the ghee in `source`; what it says, and its processor time in seconds."""
    command = [sys.executable, __file__, "--side", side, json.dumps(arguments)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, **({"PYTHONPATH": source} if source else {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]), spent


def report_reading(address: str, repeats: int, against: str, share: float) -> None:
    """Rows per second of both, by size of the messages."""
    for size, whole in SIZES.items():
        count = max(int(whole * share), 3 * MOST)  # fewer come in one call, whose time is not known
        topic = fill(address, size, count)
        sides: dict[str, tuple[Any, ...]] = {
            "consume loop": ("read_plain", TUNED, ""), "consume loop, librdkafka's defaults": ("read_plain", {}, ""),
            "ghee, the value": ("read_ghee", ["value"], ""), "ghee, all seven columns": ("read_ghee", None, ""),
        }  # fmt: skip
        if against:
            sides["the older ghee, the value"] = ("read_ghee", ["value"], against)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        spent: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, (side, how, source) in sides.items():
                rate, seconds = apart(side, address, topic, count, how, source=source)
                rates[name].append(rate)
                spent[name].append(seconds)
        base = statistics.median(rates["consume loop"])
        print(f"{count:,} messages of {size:,} bytes in two partitions:")
        for name, found in rates.items():
            middle = statistics.median(found)
            print(
                f"  {name:<38} {middle:>10,.0f}/s  {middle / base:5.2f} of the loop  {[round(x) for x in found]}  "
                f"processor {statistics.median(spent[name]):.2f} s", flush=True,
            )  # fmt: skip


def report_copying(address: str, repeats: int, against: str, share: float) -> None:
    """Rows per second of both, exactly once."""
    count = max(int(1_000_000 * share), 3 * TRANSACTION_ROWS)  # the first transaction is not timed
    first = fill(address, 100, count)
    sides = {"transactional loop": ("copy_plain", ""), "ghee": ("copy_ghee", "")}
    if against:
        sides["the older ghee"] = ("copy_ghee", against)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (side, source) in sides.items():
            second = make_topic(address, 2, **{"message.timestamp.type": "LogAppendTime"})
            spent[name].append(apart(side, address, first, second, count, source=source)[1])
            rates[name].append(rate_of_copy(address, second, count))
    base = statistics.median(rates["transactional loop"])
    print(f"exactly once, {count:,} messages of 100 bytes:")
    for name, found in rates.items():
        middle = statistics.median(found)
        print(f"  {name:<20} {middle:>10,.0f}/s  {middle / base:5.2f} of the loop  {[round(x) for x in found]}  "
              f"processor {statistics.median(spent[name]):.2f} s", flush=True)  # fmt: skip


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reports = {"reading": report_reading, "copying": report_copying, "memory": report_memory}
    parser.add_argument("--only", choices=reports, help="one part; without it reading and copying")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", default="", help="packages/ghee/src of an older checkout")
    parser.add_argument("--share", type=float, default=1.0, help="of the rows")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side[0]](*json.loads(arguments.side[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        broker = Kafka(Path(folder))
        broker.fetch()
        broker.start()
        try:
            for name in [arguments.only] if arguments.only else ["reading", "copying"]:
                reports[name](broker.address, arguments.repeats, arguments.against, arguments.share)
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
