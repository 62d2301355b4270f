"""Values whose schemas are in a schema registry: written by confluent-kafka's own serializers, read by ghee."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

import ghee
from ghee.errors import PipelineError, SourceCorruptError, SourceError
from servers.contract import free_port
from servers.kafka import Kafka
from servers.registry import Registry
from servers.topics import make_topic, produce

pytestmark = pytest.mark.server


def avro(fields: list[dict[str, Any]]) -> str:
    return json.dumps({"type": "record", "name": "Rating", "fields": fields})


FIRST = avro([{"name": "user", "type": "long"}, {"name": "stars", "type": "double"}])
SECOND = avro([*json.loads(FIRST)["fields"], {"name": "place", "type": ["null", "string"], "default": None}])


def serialize(registry: Registry, topic: str, make: Any, value: Any) -> bytes:
    """`make` makes a serializer, given a client of the registry."""
    with SchemaRegistryClient({"url": registry.address}) as client:
        made: bytes = make(client)(value, SerializationContext(topic, MessageField.VALUE))
    return made


def of_avro(schema: str) -> Any:
    return lambda client: AvroSerializer(client, schema)


PROTOBUF = """
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.internal import builder

_file = descriptor_pb2.FileDescriptorProto(name="rating.proto", package="tests", syntax="proto3")
_message = _file.message_type.add(name="Rating")
for _number, (_name, _type) in enumerate([("user_id", 3), ("stars", 1)], 1):
    _message.field.add(name=_name, number=_number, type=_type, label=1)
DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(_file.SerializeToString())
builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())
builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, "rating_pb2", globals())
"""
"""What protoc would make of a message with an int64 and a double."""


def rows_of(kafka: Kafka, topic: str, url: str, decode: Any = "avro", on: str = "inline", **options: Any) -> list[Any]:
    found: list[Any] = []
    settings = {"schema.registry.url": url}
    source = ghee.read(f"kafka://{kafka.address}/{topic}", until="latest", decode=decode, settings=settings, **options)
    ghee.run(source.write(found.append), on=on)
    return [row for batch in found for row in batch.to_pylist()]


def test_avro_whose_schema_changes(kafka: Kafka, registry: Registry) -> None:
    """Messages of two versions of a schema in one batch; a tombstone; in another process, which asks for itself."""
    topic = make_topic(kafka.address)
    first = serialize(registry, topic, of_avro(FIRST), {"user": 1, "stars": 4.5})
    second = serialize(registry, topic, of_avro(SECOND), {"user": 2, "stars": 3.0, "place": "home"})
    produce(kafka.address, topic, [{"value": first}, {"value": second}, {"value": None}])
    rows = rows_of(kafka, topic, registry.address, on="local", columns=["user", "stars", "place"])
    assert rows == [
        {"user": 1, "stars": 4.5, "place": None},
        {"user": 2, "stars": 3.0, "place": "home"},
        {"user": None, "stars": None, "place": None},
    ]


def test_protobuf_by_its_message_class(
    kafka: Kafka, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rating_pb2.py").write_text(PROTOBUF)
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("rating_pb2").Rating
    topic = make_topic(kafka.address)
    how = {"use.deprecated.format": False}
    value = serialize(registry, topic, lambda client: ProtobufSerializer(kind, client, how), kind(user_id=1, stars=4.5))
    empty = serialize(registry, topic, lambda client: ProtobufSerializer(kind, client, how), kind())
    produce(kafka.address, topic, [{"value": value}, {"value": empty}])
    rows = rows_of(kafka, topic, registry.address, kind, columns=["user_id", "stars"])
    assert rows == [{"user_id": 1, "stars": 4.5}, {"user_id": 0, "stars": 0.0}]


def test_what_is_no_avro_is_a_poison_message(kafka: Kafka, registry: Registry) -> None:
    topic = make_topic(kafka.address)
    good = serialize(registry, topic, of_avro(FIRST), {"user": 1, "stars": 2.0})
    produce(kafka.address, topic, [{"value": good}, {"value": b'{"user": 1}'}, {"value": good[:-3]}])
    with pytest.raises(SourceCorruptError, match=r"offset 1 cannot be decoded"):
        rows_of(kafka, topic, registry.address)
    assert rows_of(kafka, topic, registry.address, poison="skip", columns=["user"]) == [{"user": 1}]


def test_a_registry_that_is_not_there_or_does_not_know_the_schema(kafka: Kafka, registry: Registry) -> None:
    """Neither is the message's fault, so nothing is skipped."""
    topic = make_topic(kafka.address)
    produce(kafka.address, topic, [{"value": b"\0\0\0\xff\xff1"}])
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SourceError, match=f"the schema registry {url} does not give what is asked"):
        rows_of(kafka, topic, url, poison="skip")
    with pytest.raises(SourceError, match="does not give what is asked"):
        rows_of(kafka, topic, registry.address, poison="skip")
    with pytest.raises(PipelineError, match=r"give settings=\{'schema.registry.url'"):
        ghee.run(ghee.read(f"kafka://{kafka.address}/{topic}", until="latest", decode="avro").write([]))
