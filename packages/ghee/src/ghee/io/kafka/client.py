"""The one file that imports confluent_kafka: clients, what the broker knows, and its errors in our words."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ghee.errors import PipelineError, SourceError, SourceNotFoundError
from ghee.install import how_to_install

if TYPE_CHECKING:
    import confluent_kafka
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient

Partition = tuple[str, int]

START_SECONDS = 10.0
"""How long a broker that cannot be reached is asked before anything has started: the address may be wrong."""

AGAIN_SECONDS = 30.0
"""How long one question waits for a broker that can be reached or has answered before: as long as one takes to start."""

QUEUE_KILOBYTES = 16 << 10
"""What librdkafka fetches ahead in each reading rank, at the most; `queued.max.messages.kbytes` says otherwise."""


def library() -> Any:
    """confluent_kafka. Raises PipelineError where it is not installed."""
    try:
        import confluent_kafka
        import confluent_kafka.admin
    except ImportError as error:
        raise PipelineError(f"kafka:// needs confluent-kafka ({error}): {how_to_install('kafka')}") from error
    return confluent_kafka


class Told:
    """What librdkafka has said last of its connections; passed to a client as its callback."""

    def __init__(self) -> None:
        self.last = ""
        self.refused = False
        self.fatal = ""

    def __call__(self, error: Any) -> None:
        kinds = library().KafkaError
        if error.code() != kinds._ALL_BROKERS_DOWN or not self.last:  # which says less than what went before
            self.last = error.str()
        self.refused = self.refused or error.code() in (kinds._AUTHENTICATION, kinds.SASL_AUTHENTICATION_FAILED)
        if error.fatal():
            self.fatal = error.str()


def common(brokers: str, settings: Mapping[str, str], told: Told) -> dict[str, Any]:
    """The settings of every client: what librdkafka prints of its connections is told by us instead."""
    return {
        "bootstrap.servers": brokers, "error_cb": told, "log_level": 0, "reconnect.backoff.max.ms": 2000, **settings,
    }  # fmt: skip


def only_of(settings: Mapping[str, str], kind: str) -> dict[str, str]:
    """The settings that a client of this kind takes: the other kind's are left out."""
    other = _OF_PRODUCER if kind == "consumer" else _OF_CONSUMER
    return {key: value for key, value in settings.items() if not re.match(other, key)}


_OF_PRODUCER = (
    r"linger|queue\.buffering|batch\.|compression|acks|request\.required|message\.timeout|delivery|retries|"
    r"enable\.idempotence|transaction|partitioner"
)
_OF_CONSUMER = (
    r"fetch|queued|isolation|session|heartbeat|max\.poll|check\.crcs|group|max\.partition|receive\.message|auto\.offset"
)


def admin(brokers: str, settings: Mapping[str, str], told: Told) -> AdminClient:
    """A client that asks the broker about topics and offsets."""
    made: AdminClient = library().admin.AdminClient(
        common(brokers, only_of(only_of(settings, "consumer"), "producer"), told)
    )
    return made


def consumer(brokers: str, settings: Mapping[str, str], told: Told, **more: Any) -> Consumer:
    """A client that reads. Raises PipelineError for a setting that librdkafka does not know."""
    config = {
        "group.id": "ghee", "enable.auto.commit": False, "enable.auto.offset.store": False, "auto.offset.reset": "error",
        "enable.partition.eof": True, "isolation.level": "read_committed", "queued.max.messages.kbytes": QUEUE_KILOBYTES,
        # A fetch that waits for new messages of one partition holds up the first of the next; ranges are there already.
        "fetch.wait.max.ms": 20, "fetch.error.backoff.ms": 100, "fetch.queue.backoff.ms": 20,
        **common(brokers, only_of(settings, "consumer"), told), **more,
    }  # fmt: skip
    made: Consumer = _made(library().Consumer, config)
    return made


def producer(brokers: str, settings: Mapping[str, str], told: Told, **more: Any) -> Producer:
    """A client that writes, idempotent. Raises PipelineError for a setting that librdkafka does not know."""
    config = {
        "enable.idempotence": True, **common(brokers, only_of(settings, "producer"), told), **more,
    }  # fmt: skip
    made: Producer = _made(library().Producer, config)
    return made


def _made(kind: Any, config: dict[str, Any]) -> Any:
    try:
        return kind(config)
    except library().KafkaException as error:
        raise PipelineError(f"librdkafka does not take its settings: {error.args[0].str()}") from error


def describe(brokers: str, settings: Mapping[str, str], patience: float | None = None) -> dict[str, list[int]]:
    """All topics with their partitions. Raises SourceError where no broker answers.

    `patience`: seconds, of a run that goes on. Before one starts: START_SECONDS where an address cannot be reached,
    AGAIN_SECONDS where it can, and is slow.
    """
    told = Told()
    # An address that gives no sign at all is then told of as soon as one that refuses.
    soon = {"socket.connection.setup.timeout.ms": f"{START_SECONDS * 800:.0f}"}
    try:
        client = admin(brokers, {**soon, **settings}, told)
    except library().KafkaException as error:
        raise PipelineError(f"librdkafka does not take its settings: {error.args[0].str()}") from error
    began = time.monotonic()
    while True:
        try:
            found = client.list_topics(timeout=2)
            break
        except library().KafkaException as error:
            client.poll(0)
            if told.refused:
                raise SourceError(f"the broker {brokers} refuses the credentials: {told.last}") from error
            limit = patience if patience is not None else START_SECONDS if told.last else AGAIN_SECONDS
            if time.monotonic() - began > limit:
                said = told.last or error.args[0].str()
                raise SourceError(f"no Kafka broker answers at {brokers} within {limit:.0f} s: {said}") from error
    return {
        name: sorted(topic.partitions)
        for name, topic in found.topics.items()
        if topic.error is None or topic.error.code() == 0
    }


def partitions_of(
    brokers: str, settings: Mapping[str, str], wanted: Sequence[str], patience: float | None = None
) -> list[Partition]:
    """The partitions of the wanted topics; one that begins with ^ is a pattern. Raises SourceNotFoundError."""
    topics = describe(brokers, settings, patience)
    found: dict[str, None] = {}
    lacking = []
    for name in wanted:
        matching = [topic for topic in topics if re.match(name, topic)] if name.startswith("^") else [name]
        if not matching or matching[0] not in topics:
            near = difflib.get_close_matches(name, topics, 3)
            lacking.append(f"{name!r}" + (f" (there is {', '.join(near)})" if near else ""))
        found.update(dict.fromkeys(sorted(matching)))
    if lacking:
        raise SourceNotFoundError(
            f"the brokers {brokers} have no topic {', '.join(lacking)}, or do not show it to this user"
        )
    return [(topic, partition) for topic in found for partition in topics[topic]]


def offsets_at(client: AdminClient, wanted: Iterable[Partition], at: str | int, committed: bool) -> dict[Partition, int]:
    """Each partition's offset at "earliest", "latest" or a time in ms. `committed`: the end of what transactions settled.

    Raises SourceError where the broker does not answer.
    """
    kafka = library()
    spec = kafka.admin.OffsetSpec
    which = spec.earliest() if at == "earliest" else spec.latest() if at == "latest" else spec.for_timestamp(int(at))
    level = kafka.IsolationLevel.READ_COMMITTED if committed else kafka.IsolationLevel.READ_UNCOMMITTED
    places = [kafka.TopicPartition(topic, partition) for topic, partition in wanted]
    if not places:
        return {}
    asked = client.list_offsets(dict.fromkeys(places, which), isolation_level=level, request_timeout=AGAIN_SECONDS)
    try:
        return {(place.topic, place.partition): future.result().offset for place, future in asked.items()}
    except kafka.KafkaException as error:
        raise SourceError(f"the broker does not say where its partitions begin and end: {error.args[0].str()}") from error


def is_committed(settings: Mapping[str, str]) -> bool:
    """Whether only what transactions have committed is read."""
    return settings.get("isolation.level", "read_committed") == "read_committed"


def place(topic: str, partition: int, offset: int) -> confluent_kafka.TopicPartition:
    """A place in a partition, as the library has it."""
    made: confluent_kafka.TopicPartition = library().TopicPartition(topic, partition, offset)
    return made
