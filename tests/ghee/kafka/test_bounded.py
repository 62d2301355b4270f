"""A topic with an end, read from a real broker."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ghee
from ghee.errors import PipelineError, SourceCorruptError, SourceError, SourceNotFoundError
from ghee.io.kafka.options import parse_url, read_options
from ghee.io.kafka.source import KafkaSource
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


@pytest.mark.parametrize("until", ["latest", None])
def test_no_broker_is_told_within_seconds(until: str | None) -> None:
    with pytest.raises(SourceError, match=r"no Kafka broker answers at 127.0.0.1:1 within 10 s: .*Connect"):
        ghee.run(ghee.read("kafka://127.0.0.1:1/t", until=until).write([]), on="inline")


def test_an_address_that_gives_no_sign_is_told_too() -> None:
    """Nobody takes the connection, and nobody refuses it."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        where = f"127.0.0.1:{deaf.getsockname()[1]}"
        with contextlib.ExitStack() as connections:  # so that there is no place for one more
            for _ in range(4):
                one = connections.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(deaf.getsockname())
            with pytest.raises(SourceError, match=rf"no Kafka broker answers at {where} within 10 s: "):
                ghee.run(ghee.read(f"kafka://{where}/t", until="latest").write([]), on="inline")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": {0: 101}}, r"\[0\] was to be read from offset 101 to 100, which is before it; it ends at 100"),
        ({"until": {0: 101}}, r"\[0\] was to be read to offset 101, and ends at 100"),
        ({"start": {0: 50}, "until": {0: 40}}, r"\[0\] was to be read from offset 50 to 40, which is before it"),
        ({"start": {7: 5}}, r"start= names the partitions \[7\], which are not there; there are t-\w+\[0\]"),
        ({"until": {("other", 0): 5}}, r"until= names the partitions \[\('other', 0\)\], which are not there"),
        ({"start": {0: 101}, "until": None}, r"\[0\] was to be read from offset 101, and ends at 100"),
        ({"start": {1: 1}, "until": None}, r"start= names the partitions \[1\], which are not there"),
    ],
)
def test_places_that_are_not_there(kafka: Kafka, options: dict[str, Any], said: str) -> None:
    topic = make_topic(kafka.address)
    produce(kafka.address, topic, numbers(100))
    with pytest.raises(SourceError, match=said):
        rows_of(kafka, topic, **options)


def test_a_part_that_is_read_in_the_middle_of_another(kafka: Kafka) -> None:
    """As a rank does whose neighbour has died: each part has its own rows."""
    topic = make_topic(kafka.address, 2)
    produce(kafka.address, topic, numbers(4_000, 2))
    source = KafkaSource(*topic_options(f"kafka://{kafka.address}/{topic}", until="latest", batch_size=50))
    splits = source.splits()
    try:
        outer = source.read(splits[0], epoch=0)
        found = [next(outer)]
        inner = [splits[1], splits[2]]  # another partition, and the same
        assert [split.pieces[0].partition for split in splits[:3]] == [0, 1, 0]
        for split in inner:
            abandoned = source.read(split, epoch=0)
            next(abandoned)
            del abandoned
            piece = split.pieces[0]
            offsets = [at for batch in source.read(split, epoch=0) for at in batch["offset"].to_pylist()]
            assert offsets == list(range(piece.start, piece.stop))
        found += outer
    finally:
        source.close()
    piece = splits[0].pieces[0]
    assert [at for batch in found for at in batch["offset"].to_pylist()] == list(range(piece.start, piece.stop))
    assert {part for batch in found for part in batch["partition"].to_pylist()} == {0}


def topic_options(url: str, **given: Any) -> tuple[Any, Any]:
    address = parse_url(url)
    return address, read_options(address, given)


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


@pytest.mark.parametrize("lost", ["fail", "skip"])
def test_retention_takes_what_is_about_to_be_read(kafka: Kafka, lost: str, capfd: pytest.CaptureFixture[str]) -> None:
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
    url = f"kafka://{kafka.address}/{topic}?lost={lost}"
    run = ghee.run(
        ghee.read(url, until="latest", batch_size=10, settings=settings).map(take_away, credit="1").write(found.append),
        on="inline", wait=False,
    )  # fmt: skip
    assert run.wait(100)
    said = r"offsets (\d+) to (\d+) are gone by retention before they were read"
    if lost == "fail":
        with pytest.raises(SourceError, match=said):
            _ = run.result
        return
    assert run.result is not None
    gone = [set(range(int(first), int(last) + 1)) for first, last in re.findall(said, capfd.readouterr().out)]
    got = [at for batch in found for at in batch["offset"].to_pylist()]
    assert gone, "nothing was said"
    assert sorted([*got, *set().union(*gone)]) == list(range(1_000))  # each was read, or named


def test_what_was_read_before_the_rest_was_lost_is_not_called_lost(kafka: Kafka, capfd: pytest.CaptureFixture[str]) -> None:
    topic = make_topic(kafka.address)
    large = [{"value": b"%180d" % number} for number in range(1_000)]  # ten fill a fetch: few are ahead of the reader
    produce(kafka.address, topic, large, **{"batch.num.messages": 10})
    settings = {"max.partition.fetch.bytes": 2000, "queued.max.messages.kbytes": 1, "fetch.max.bytes": 2000}
    settings["message.max.bytes"] = 2000
    url = f"kafka://{kafka.address}/{topic}?lost=skip"
    source = KafkaSource(*topic_options(url, until="latest", batch_size=10, settings=settings))
    try:
        splits = source.splits()
        assert len(splits[0].pieces) == 1, "several batches of one range are read before the rest is lost"
        assert splits[0].pieces[0].stop - splits[0].pieces[0].start >= 40
        got: list[int] = []
        for split in splits:
            for batch in source.read(split, epoch=0):
                got += batch["offset"].to_pylist()
                if got[-1] == 19:
                    delete_before(kafka.address, topic, 0, 900)
    finally:
        source.close()
    said = r"offsets (\d+) to (\d+) are gone by retention before they were read"
    gone = [set(range(int(first), int(last) + 1)) for first, last in re.findall(said, capfd.readouterr().out)]
    assert gone, "nothing was said"
    assert sorted([*got, *set().union(*gone)]) == list(range(1_000))


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
        ({"columns": "value"}, "columns='value' must be a list"),
        ({"decode": 3}, "decode=3: neither a format's name nor a function"),
        ({"settings": "acks=all"}, "settings='acks=all' must be a dict"),
        ({"settings": {"fetch.min.bytes": "many"}}, "librdkafka does not take its settings: .*fetch.min.bytes"),
        ({"settings": {"no.such": 1}}, "librdkafka does not take its settings: .*no.such"),
        ({"start": {"0": 5}}, "partitions are whole numbers, or pairs of topic and number"),
        ({"start": {0: -5}}, "offsets are whole numbers"),
        ({"patience": -1}, "patience=-1.0 must be a number of seconds"),
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


def test_a_run_that_goes_on_ends_where_it_was_to_end(kafka: Kafka, tmp_path: Path) -> None:
    """What "latest" is was found when it first began; what has come since is another run's."""
    topic = make_topic(kafka.address, 2)
    produce(kafka.address, topic, numbers(1_000, 2))
    broken = tmp_path / "broken"

    def check(batch: Any) -> Any:
        if batch["offset"][0].as_py() >= 300 and not broken.exists():
            broken.touch()
            raise RuntimeError("broken")
        return batch

    source = ghee.read(f"kafka://{kafka.address}/{topic}", until="latest", batch_size=100, columns=["value", "offset"])
    pipeline = source.map(check).write(str(tmp_path / "out"), rows_per_file=100)
    run = ghee.run(pipeline, on="inline", wait=False)
    assert run.wait(60)
    with pytest.raises(RuntimeError, match="broken"):
        _ = run.result
    produce(kafka.address, topic, numbers(10, 2, first=1_000))
    ghee.run(pipeline, on="inline", resume=run.id)
    assert sorted(map(int, pq.read_table(tmp_path / "out")["value"].to_pylist())) == list(range(1_000))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kafka://127.0.0.1:1/topic?group=", "group= is empty"),
        ("kafka://127.0.0.1:1/%5E%5B", "is no pattern for topics: unterminated character set"),
        ("kafka://127.0.0.1:1/topic?patience=long", "patience='long' must be a number of seconds, 0 or more"),
        ("kafka://127.0.0.1:1/topic?patience=nan", "patience=nan must be a number of seconds, 0 or more"),
        ("kafka://127.0.0.1:1/topic?grop=g", "option 'grop' in the URL: allowed are decode, group"),
        ("kafka://127.0.0.1:1/topic?lost=maybe", 'lost=\'maybe\': allowed are "fail" and "skip"'),
        ("kafka://127.0.0.1:1/topic?start=soon", "start='soon': allowed are"),
    ],
)
def test_what_is_wrong_in_a_url_is_said(url: str, said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        ghee.run(ghee.read(url).write([]), on="inline")
