"""What the Kafka tests do to topics, with plain confluent-kafka: nothing of ghee is used here."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic


def make_topic(address: str, partitions: int = 1, name: str = "t", **config: str) -> str:
    name = f"{name}-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": address})
    for future in admin.create_topics([NewTopic(name, partitions, config=config)], request_timeout=90).values():
        future.result(100)  # a broker that has just started, on a busy machine
    return name


def produce(address: str, topic: str, messages: Iterable[dict[str, Any]], **config: Any) -> None:
    producer = Producer({"bootstrap.servers": address, "linger.ms": 5, **config})
    for message in messages:
        while True:
            try:
                producer.produce(topic, **message)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(60) == 0


def numbers(count: int, partitions: int = 1, first: int = 0) -> list[dict[str, Any]]:
    return [{"value": b"%d" % number, "partition": number % partitions} for number in range(first, first + count)]


def delete_before(address: str, topic: str, partition: int, offset: int) -> None:
    """What retention does: the offsets before are gone."""
    admin = AdminClient({"bootstrap.servers": address})
    for future in admin.delete_records([TopicPartition(topic, partition, offset)]).values():
        future.result(30)


def read_all(address: str, topic: str, committed: bool = True) -> list[Any]:
    """Every message of a topic, partition by partition."""
    consumer = Consumer({
        "bootstrap.servers": address, "group.id": uuid.uuid4().hex, "enable.partition.eof": True,
        "enable.auto.commit": False,
        "isolation.level": "read_committed" if committed else "read_uncommitted",
    })  # fmt: skip
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    left, found = set(partitions), []
    while left:
        for message in consumer.consume(1000, timeout=1):
            if message.error() is None:
                found.append(message)
            else:
                left.discard(message.partition())
    consumer.close()
    return found


def committed(address: str, group: str, topic: str, partitions: int) -> list[int]:
    """The group's committed offsets; -1001 where there is none. Empty where the broker does not say: it is asked again."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": group})
    try:
        found = consumer.committed([TopicPartition(topic, number) for number in range(partitions)], timeout=3)
    except KafkaException:  # its coordinator is not there yet, or it is away, or a transaction is open
        return []
    finally:
        consumer.close()
    return [place.offset for place in found]
