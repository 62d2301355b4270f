"""A topic with an end, read from a real broker."""

from __future__ import annotations

import datetime
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import ghee
from ghee.errors import PipelineError, SourceCorruptError, SourceError, SourceNotFoundError
from servers.kafka import Kafka
from servers.topics import delete_before, make_topic, numbers, produce, read_all

pytestmark = pytest.mark.server


def rows_of(kafka: Kafka, topic: str, *, on: str = "inline", **options: Any) -> list[dict[str, Any]]:
    found: list[Any] = []
    options = {"until": "latest", "batch_size": 100, **options}
    ghee.run(ghee.read(f"kafka://{kafka.address}/{topic}", **options).write(found.append), on=on)
    return [row for batch in found for row in batch.to_pylist()]


def test_every_part_of_a_message_is_a_column(kafka: Kafka) -> None:
    topic = make_topic(kafka.address, 2)
    messages = [
        {"key": b"a", "value": b"1", "partition": 0, "timestamp": 1_000, "headers": [("h", b"x"), ("h", None)]},
        {"key": None, "value": b"", "partition": 0, "timestamp": 2_000},
        {"key": b"b", "value": None, "partition": 1, "timestamp": 3_000},
    ]
    produce(kafka.address, topic, messages)
    rows = sorted(rows_of(kafka, topic), key=lambda row: row["timestamp"])
    assert [(row["key"], row["value"]) for row in rows] == [(b"a", b"1"), (None, b""), (b"b", None)]
    assert [(row["topic"], row["partition"], row["offset"]) for row in rows] == [(topic, 0, 0), (topic, 0, 1), (topic, 1, 0)]
    assert rows[0]["headers"] == [{"key": "h", "value": b"x"}, {"key": "h", "value": None}]
    assert rows[1]["headers"] is None
    assert rows[2]["timestamp"] == datetime.datetime.fromtimestamp(3, datetime.UTC)


def test_every_message_once_over_several_ranks(kafka: Kafka) -> None:
    topic = make_topic(kafka.address, 3)
    produce(kafka.address, topic, numbers(20_000, 3))
    rows = rows_of(kafka, topic, on="local", replicas=2, columns=["value"], batch_size=500)
    assert sorted(int(row["value"]) for row in rows) == list(range(20_000))


def test_several_topics_and_patterns(kafka: Kafka) -> None:
    first, second = make_topic(kafka.address, name="many"), make_topic(kafka.address, name="many")
    produce(kafka.address, first, numbers(3))
    produce(kafka.address, second, numbers(3, first=3))
    assert sorted(int(row["value"]) for row in rows_of(kafka, f"{first},{second}")) == list(range(6))
    assert {row["topic"] for row in rows_of(kafka, "^many-.*")} == {first, second}


def test_offsets_and_times_as_beginning_and_end(kafka: Kafka) -> None:
    topic, began = make_topic(kafka.address), int(time.time() * 1000)
    produce(kafka.address, topic, [{"value": b"%d" % n, "timestamp": began + 1_000 * n} for n in range(100)])

    def values(**options: Any) -> list[int]:
        return [int(row["value"]) for row in rows_of(kafka, topic, **options)]

    assert values(start={0: 10}, until={0: 20}) == list(range(10, 20))
    assert values(start=began + 90_000) == list(range(90, 100))
    assert values(until=datetime.datetime.fromtimestamp(began / 1000 + 4.5, datetime.UTC)) == list(range(5))
    assert values(start="latest") == []


def test_a_transaction_that_was_given_up_is_not_read(kafka: Kafka) -> None:
    from confluent_kafka import Producer

    topic = make_topic(kafka.address)
    producer = Producer({"bootstrap.servers": kafka.address, "transactional.id": topic})
    producer.init_transactions(60)
    for number, end in enumerate((producer.commit_transaction, producer.abort_transaction, producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(topic, b"%d" % number)
        producer.flush()
        end()
    assert [row["value"] for row in rows_of(kafka, topic)] == [b"0", b"2"]


def test_json_values_become_columns(kafka: Kafka) -> None:
    topic = make_topic(kafka.address)
    produce(
        kafka.address, topic, [{"value": json.dumps({"user": n, "offset": n / 2}, indent=n % 2 or None)} for n in range(10)]
    )
    rows = rows_of(kafka, topic, decode="json", columns=["user", "offset", "kafka_offset"])
    assert rows == [{"user": n, "offset": n / 2, "kafka_offset": n} for n in range(10)]


def test_arrow_and_a_function_decode(kafka: Kafka) -> None:
    topic = make_topic(kafka.address)
    table = pa.table({"x": [1, 2, 3]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    produce(kafka.address, topic, [{"value": sink.getvalue().to_pybytes()}, {"value": None}] * 2)
    rows = rows_of(kafka, topic, decode="arrow", columns=["x", "kafka_offset"])
    assert [(row["x"], row["kafka_offset"]) for row in rows] == [(1, 0), (2, 0), (3, 0), (1, 2), (2, 2), (3, 2)]
    lengths = rows_of(kafka, topic, decode=lambda value: {"length": len(value)}, columns=["length"])
    assert [row["length"] is None for row in lengths] == [False, True, False, True]


@pytest.fixture
def poisoned(kafka: Kafka) -> str:
    topic = make_topic(kafka.address)
    produce(kafka.address, topic, [{"value": b"{" if n == 7 else b'{"n": %d}' % n, "key": b"k"} for n in range(10)])
    return topic


def test_a_poison_message_fails_the_run_and_is_named(kafka: Kafka, poisoned: str) -> None:
    with pytest.raises(SourceCorruptError, match=rf"{poisoned}\[0\] offset 7 cannot be decoded: JSONDecodeError"):
        rows_of(kafka, poisoned, decode="json")


def test_a_poison_message_is_passed_over_and_counted(kafka: Kafka, poisoned: str) -> None:
    found: list[Any] = []
    source = ghee.read(f"kafka://{kafka.address}/{poisoned}?poison=skip", until="latest", decode="json")
    run = ghee.run(source.write(found.append), on="inline")
    assert [row["n"] for batch in found for row in batch.to_pylist()] == [n for n in range(10) if n != 7]
    assert run.report.stage("read").set_aside == 1
    assert "set 1 messages aside" in str(run.report)


def test_a_poison_message_goes_to_the_dead_letter_topic(kafka: Kafka, poisoned: str) -> None:
    letters = make_topic(kafka.address)
    rows_of(kafka, poisoned, decode="json", poison=f"kafka://{kafka.address}/{letters}")
    (letter,) = read_all(kafka.address, letters)
    assert (letter.key(), letter.value()) == (b"k", b"{")
    assert json.loads(dict(letter.headers())["ghee"])["offset"] == 7


def test_the_consoles_producer_is_read(kafka: Kafka) -> None:
    """Java's client, with its own partitioner, compression and headers."""
    topic = make_topic(kafka.address, 2)
    lines = "".join(f"h1:v{n}\tkey{n}\tvalue ä{n}\n" for n in range(50))
    kafka.tool(
        "org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", kafka.address, "--topic", topic,
        "--compression-codec", "gzip", "--property", "parse.key=true", "--property", "parse.headers=true", stdin=lines,
    )  # fmt: skip
    rows = rows_of(kafka, topic)
    assert sorted(row["value"].decode() for row in rows) == sorted(f"value ä{n}" for n in range(50))
    assert all(row["headers"] == [{"key": "h1", "value": b"v" + row["key"][3:]}] for row in rows)


def test_a_reading_rank_is_killed(kafka: Kafka, tmp_path: Path) -> None:
    topic = make_topic(kafka.address, 2)
    produce(kafka.address, topic, numbers(20_000, 2))
    mark = str(tmp_path / "killed")

    def kill_once(batch: Any) -> Any:
        if not os.path.exists(mark) and batch["offset"][0].as_py() > 3_000:
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    found: list[Any] = []
    source = ghee.read(f"kafka://{kafka.address}/{topic}", until="latest", batch_size=200)
    run = ghee.run(source.map(kill_once, replicas=2).write(found.append))
    assert os.path.exists(mark)
    assert run.report.restarts
    assert sorted(int(value) for batch in found for value in batch["value"].to_pylist()) == list(range(20_000))


# ── what is wrong is said ────────────────────────────────────────────────────────────────────────────────────────────


def test_no_broker_is_told_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"no Kafka broker answers at 127.0.0.1:1 within 10 s"):
        ghee.run(ghee.read("kafka://127.0.0.1:1/t", until="latest").write([]), on="inline")
    assert time.monotonic() - began < 30


def test_no_such_topic(kafka: Kafka) -> None:
    topic = make_topic(kafka.address, name="ratings")
    with pytest.raises(SourceNotFoundError, match=rf"no topic '{topic}s' .there is {topic}"):
        rows_of(kafka, f"{topic}s")


def test_offsets_that_retention_has_taken_are_named(kafka: Kafka) -> None:
    topic = make_topic(kafka.address)
    produce(kafka.address, topic, numbers(100))
    delete_before(kafka.address, topic, 0, 40)
    with pytest.raises(SourceError, match=rf"{topic}\[0\].*offsets 10 to 39 are gone by retention"):
        rows_of(kafka, topic, start={0: 10})
    assert len(rows_of(kafka, topic)) == 60


def test_retention_takes_what_is_about_to_be_read(kafka: Kafka) -> None:
    topic = make_topic(kafka.address)
    produce(kafka.address, topic, numbers(1_000), **{"batch.num.messages": 10})
    address = kafka.address

    def take_away(batch: Any) -> Any:
        if batch["offset"][0].as_py() == 0:
            delete_before(address, topic, 0, 900)
        return batch

    found: list[Any] = []
    settings = {"max.partition.fetch.bytes": 2000, "queued.max.messages.kbytes": 1, "fetch.max.bytes": 2000}
    settings["message.max.bytes"] = 2000
    source = ghee.read(f"kafka://{kafka.address}/{topic}", until="latest", batch_size=10, settings=settings)
    with pytest.raises(SourceError, match="are gone by retention before they were read"):
        ghee.run(source.map(take_away).write(found.append), on="inline")


def test_wrong_credentials(kafka: Kafka) -> None:
    topic = make_topic(kafka.address)
    produce(kafka.address, topic, numbers(5))
    settings = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "ghee"}
    url = f"kafka://{kafka.sasl_address}/{topic}"
    found: list[Any] = []
    good = ghee.read(url, until="latest", settings={**settings, "sasl.password": "secret"})
    ghee.run(good.write(found.append), on="inline")
    assert sum(batch.num_rows for batch in found) == 5
    bad = ghee.read(url, until="latest", settings={**settings, "sasl.password": "wrong"}).write([])
    with pytest.raises(SourceError, match="refuses the credentials"):
        ghee.run(bad, on="inline")
    assert "wrong" not in str(bad)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"until": "yesterday"}, "until='yesterday': allowed are"),
        ({"decode": "xml"}, "decode='xml'"),
        ({"settings": {"group.id": "x"}}, "'group.id' is ghee's own: give group="),
        ({"limit": 5}, "limit: a topic is read as it comes"),
        ({"columns": ["user"]}, "decode= makes columns"),
    ],
)
def test_wrong_options(options: dict[str, Any], said: str) -> None:
    options = {"until": "latest", **options}
    with pytest.raises(PipelineError, match=said):
        ghee.run(ghee.read("kafka://127.0.0.1:1/t", **options).write([]), on="inline")


def test_the_broker_goes_away_in_the_middle(own_kafka: Kafka) -> None:
    topic = make_topic(own_kafka.address)
    produce(own_kafka.address, topic, numbers(20_000))
    killed = []

    def kill_once(batch: Any) -> None:
        found.extend(batch["value"].to_pylist())
        if not killed:
            killed.append(True)
            own_kafka.kill()
            own_kafka.restart()

    found: list[bytes] = []
    settings = {"max.partition.fetch.bytes": 20000, "queued.max.messages.kbytes": 16, "fetch.max.bytes": 20000}
    settings["message.max.bytes"] = 20000
    source = ghee.read(f"kafka://{own_kafka.address}/{topic}", until="latest", batch_size=50, settings=settings)
    ghee.run(source.map(lambda batch: batch, credit="16Ki").write(kill_once), on="inline")
    assert sorted(map(int, found)) == list(range(20_000))
    assert killed
