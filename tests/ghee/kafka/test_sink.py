"""A topic as a sink, at least once: what the messages are, and when they count as written. On a real broker."""

from __future__ import annotations

import json
import threading
from typing import Any

import pyarrow as pa
import pytest

import ghee
from ghee.errors import BatchError, PipelineError, SinkError
from servers.kafka import Kafka
from servers.topics import committed, make_topic, numbers, produce, read_all

pytestmark = pytest.mark.server


def write(kafka: Kafka, topic: str, batches: list[Any], **options: Any) -> list[Any]:
    ghee.run(ghee.read(batches).write(f"kafka://{kafka.address}/{topic}", **options), on="inline")
    return read_all(kafka.address, topic)


def test_a_topic_is_copied_with_all_that_messages_have(kafka: Kafka) -> None:
    first, second = make_topic(kafka.address), make_topic(kafka.address)
    produce(kafka.address, first, [
        {"key": b"a", "value": b"1", "timestamp": 1_000, "headers": [("h", b"x"), ("h", None)]},
        {"key": None, "value": b"", "timestamp": 2_000},
        {"key": b"b", "value": None, "timestamp": 3_000},
    ])  # fmt: skip
    url = f"kafka://{kafka.address}"
    ghee.run(ghee.read(f"{url}/{first}", until="latest").write(f"{url}/{second}"), on="inline")
    before, after = read_all(kafka.address, first), read_all(kafka.address, second)
    for what in ("key", "value", "timestamp", "headers"):
        assert [getattr(message, what)() for message in after] == [getattr(message, what)() for message in before], what


def test_every_row_over_several_ranks(kafka: Kafka) -> None:
    first, second = make_topic(kafka.address, 3), make_topic(kafka.address, 2)
    produce(kafka.address, first, numbers(20_000, 3))
    url = f"kafka://{kafka.address}"
    source = ghee.read(f"{url}/{first}", until="latest", batch_size=500, columns=["value"])
    ghee.run(source.map(lambda batch: batch, replicas=2).write(f"{url}/{second}", replicas=2))
    assert sorted(int(message.value()) for message in read_all(kafka.address, second)) == list(range(20_000))


def test_values_keys_and_partitions_by_column_and_by_function(kafka: Kafka) -> None:
    topic = make_topic(kafka.address, 4)
    batch = {"user": [1, 2, 3], "name": ["ä", None, "c"], "at": [3, 0, 1]}
    found = write(kafka, topic, [batch], encode="json", key="user", partition="at")
    assert {message.partition(): (message.key(), json.loads(message.value())) for message in found} == {
        3: (b"1", {"user": 1, "name": "ä", "at": 3}), 0: (b"2", {"user": 2, "name": None, "at": 0}),
        1: (b"3", {"user": 3, "name": "c", "at": 1}),
    }  # fmt: skip
    topic = make_topic(kafka.address, 4)
    found = write(
        kafka, topic, [batch], encode=lambda row: row["name"], key=lambda row: f"k{row['user']}",
        partition=lambda row: row["user"],
    )  # fmt: skip
    assert sorted((message.partition(), message.key(), message.value()) for message in found) == [
        (1, b"k1", "ä".encode()), (2, b"k2", None), (3, b"k3", b"c"),
    ]  # fmt: skip


def test_a_batch_is_one_message_of_arrow(kafka: Kafka) -> None:
    topic = make_topic(kafka.address)
    tables = [
        pa.ipc.open_stream(m.value()).read_all() for m in write(kafka, topic, [{"x": [1, 2]}, {"x": [3]}], encode="arrow")
    ]
    assert [table.to_pydict() for table in tables] == [{"x": [1, 2]}, {"x": [3]}]


def test_equal_keys_lie_where_javas_client_puts_them_and_the_console_reads_ours(kafka: Kafka) -> None:
    ours, theirs = make_topic(kafka.address, 5), make_topic(kafka.address, 5)
    keys = [f"key{number}" for number in range(40)]
    found = write(kafka, ours, [{"value": keys}], key="value")
    server = ["--bootstrap-server", kafka.address]
    kafka.tool(
        "org.apache.kafka.tools.ConsoleProducer", *server, "--topic", theirs, "--property", "parse.key=true",
        stdin="".join(f"{key}\t{key}\n" for key in keys),
    )  # fmt: skip
    where = {message.key(): message.partition() for message in read_all(kafka.address, theirs)}
    assert {message.key(): message.partition() for message in found} == where
    said = kafka.tool(
        "org.apache.kafka.tools.consumer.ConsoleConsumer", *server, "--topic", ours, "--from-beginning", "--max-messages",
        "40", "--timeout-ms", "60000",
    )  # fmt: skip
    assert sorted(said.split()) == sorted(keys)


def test_offsets_are_committed_after_the_broker_has_the_rows(kafka: Kafka) -> None:
    first, second = make_topic(kafka.address, 2), make_topic(kafka.address)
    produce(kafka.address, first, numbers(2_000, 2))
    url = f"kafka://{kafka.address}"
    # Nothing is sent for a minute unless it is flushed: the end of a cut must.
    run = ghee.run(
        ghee.read(f"{url}/{first}?group={first}", batch_size=100).write(f"{url}/{second}?linger.ms=60000"),
        on="inline", wait=False,
    )  # fmt: skip
    wait_for_commit(kafka, first, [1_000, 1_000])
    assert sorted(int(message.value()) for message in read_all(kafka.address, second)) == list(range(2_000))
    run.stop()
    assert run.wait(60)
    assert run.report.balanced


def wait_for_commit(kafka: Kafka, topic: str, offsets: list[int]) -> None:
    clock = threading.Event()  # the broker tells nobody of a commit
    for _ in range(300):
        if committed(kafka.address, topic, topic, len(offsets)) == offsets:
            return
        clock.wait(0.2)
    raise AssertionError(committed(kafka.address, topic, topic, len(offsets)))


def test_the_queue_is_bounded(kafka: Kafka) -> None:
    """A queue of 100 kB takes 5 MB: whoever produces waits for the broker."""
    topic = make_topic(kafka.address)
    found = write(kafka, topic, [{"value": [b"x" * 1000] * 500}] * 10, settings={"queue.buffering.max.kbytes": 100})
    assert len(found) == 5_000


def test_the_broker_goes_away_in_the_middle(own_kafka: Kafka, capfd: pytest.CaptureFixture[str]) -> None:
    topic = make_topic(own_kafka.address)
    killed = threading.Event()

    def batches() -> Any:
        for number in range(200):
            if number == 100:
                own_kafka.kill()
                killed.set()
            yield {"value": [b"%d" % (100 * number + n) for n in range(100)]}

    settings = {"queue.buffering.max.messages": 500}
    pipeline = ghee.read(batches()).write(f"kafka://{own_kafka.address}/{topic}", settings=settings)
    run = ghee.run(pipeline, on="inline", wait=False)
    assert killed.wait(60)
    said = ""
    while f"ghee: waiting for kafka://{own_kafka.address}/{topic}: " not in said:
        assert not run.wait(0.2), run.result
        said += capfd.readouterr().out
    own_kafka.restart()
    assert run.wait(90)
    assert run.result
    assert sorted(int(message.value()) for message in read_all(own_kafka.address, topic)) == list(range(20_000))
    assert "takes messages again after" in said + capfd.readouterr().out


# ── what is wrong is said ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_larger_than_the_limit(kafka: Kafka) -> None:
    topic = make_topic(kafka.address, **{"max.message.bytes": "100000"})
    with pytest.raises(SinkError, match=rf"{topic}: a message of 2,000,000 bytes is larger than the limit"):
        write(kafka, topic, [{"value": [b"x" * 2_000_000]}])
    with pytest.raises(SinkError, match=rf"{topic}: a message of 200,000 bytes is larger than the limit"):
        write(kafka, topic, [{"value": [b"x" * 200_000]}])
    assert read_all(kafka.address, topic) == []


def test_no_such_topic_and_no_such_partition(kafka: Kafka) -> None:
    topic = make_topic(kafka.address, name="scores")
    with pytest.raises(SinkError, match=rf"no topic '{topic}s' .there is {topic}.*make it with the partitions"):
        write(kafka, f"{topic}s", [{"value": ["x"]}])
    with pytest.raises(SinkError, match="no such partition"):
        write(kafka, topic, [{"value": ["x"]}], partition=lambda row: 7)


def test_no_broker_is_told_within_seconds_and_wrong_credentials(kafka: Kafka) -> None:
    with pytest.raises(SinkError, match=r"no Kafka broker answers at 127.0.0.1:1 within 10 s"):
        ghee.run(ghee.read([{"value": ["x"]}]).write("kafka://127.0.0.1:1/t"), on="inline")
    settings = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "ghee"}
    settings["sasl.password"] = "wrong"
    pipeline = ghee.read([{"value": ["x"]}]).write(f"kafka://{kafka.sasl_address}/t", settings=settings)
    with pytest.raises(SinkError, match="refuses the credentials"):
        ghee.run(pipeline, on="inline")


@pytest.mark.parametrize(
    ("batch", "options", "said"),
    [
        ({"x": [1]}, {}, "has a column 'value'.*and this one has .'x'"),
        ({"value": [1]}, {}, "the column 'value' is int64; a message's value is bytes or text"),
        ({"x": [1]}, {"encode": "json", "key": "y"}, "key='y' names no column; the batch has .'x'"),
        ({"x": [b"1"]}, {"encode": "json"}, "JSON has no form for bytes: x"),
        ({"x": [1]}, {"encode": lambda row: row}, "encode= gave dict"),
        ({"x": [1], "value": ["a"]}, {"partition": lambda row: -1}, "partition= gave -1"),
        ([1], {}, "got a list that holds int"),
    ],
)
def test_wrong_batches(kafka: Kafka, batch: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BatchError, match=said):
        write(kafka, make_topic(kafka.address), [batch], **options)


@pytest.mark.parametrize(
    ("topic", "options", "said"),
    [
        ("a,b", {}, "a sink writes one topic"),
        ("a", {"encode": "xml"}, "encode='xml'"),
        ("a", {"key": 3}, "key=3"),
        ("a", {"mode": "append"}, "mode: a topic takes none of these"),
        ("a", {"settings": {"transactional.id": "x"}}, "'transactional.id' is ghee's own"),
        ("a?group=g", {}, "option 'group' in the URL of a sink"),
        ("a", {"encode": "arrow", "key": "x"}, "a whole batch is one message"),
        ("a", {"patience": "long"}, "patience='long' must be a number of seconds, 0 or more"),
        ("a", {"transactions": True}, "'write' has transactions=True.*read a topic with group= and without until="),
    ],
)
def test_wrong_options(topic: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        ghee.run(ghee.read([{"value": ["x"]}]).write(f"kafka://127.0.0.1:1/{topic}", **options), on="inline")


def test_options_of_topics_are_refused_elsewhere(tmp_path: Any) -> None:
    with pytest.raises(PipelineError, match="key: for kafka://broker/topic only"):
        ghee.run(ghee.read([{"value": ["x"]}]).write(str(tmp_path / "out"), key="value"), on="inline")
