"""Values whose schema is in a schema registry (Avro, Protobuf), by confluent-kafka's own deserializers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ghee.errors import GheeError, PipelineError, SourceError
from ghee.install import how_to_install

PREFIX = "schema.registry."
"""Settings that begin with it are the registry's: schema.registry.url, schema.registry.basic.auth.user.info, …"""

WAIT_SECONDS = 10
"""How long the registry may take to answer."""

Decode = Callable[[bytes], dict[str, Any]]


def is_message_class(decode: object) -> bool:
    """Whether it is a class that protoc has made."""
    return inspect.isclass(decode) and hasattr(decode, "DESCRIPTOR") and hasattr(decode, "FromString")


def is_needed(decode: object) -> bool:
    """Whether values are decoded by a schema of the registry."""
    return decode == "avro" or is_message_class(decode)


def split_settings(settings: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The registry's settings without their prefix, and librdkafka's."""
    own = {key.removeprefix(PREFIX): value for key, value in settings.items() if key.startswith(PREFIX)}
    return own, {key: value for key, value in settings.items() if not key.startswith(PREFIX)}


def check(settings: Mapping[str, str]) -> None:
    """Raises SourceError where the registry does not answer or refuses, PipelineError for settings it does not know."""
    with _client(settings) as client:
        try:
            client.get_subjects()
        except Exception as error:
            raise _explained(settings, error) from error


class Schemas:
    """In a rank: decodes values, and asks the registry once for each schema."""

    def __init__(self, decode: Any, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._client = _client(settings)
        self._decode = _avro(self._client) if decode == "avro" else _protobuf(decode, self._client)

    def __call__(self, value: bytes) -> dict[str, Any]:
        """The columns of a value. Raises SourceError where it is the registry that fails, and not the message."""
        try:
            return self._decode(value)
        except Exception as error:
            if _is_registrys(error):
                raise _explained(self._settings, error) from error
            raise

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()


def _avro(client: Any) -> Decode:
    from confluent_kafka.schema_registry.avro import AvroDeserializer

    from_avro: Any = AvroDeserializer(client)
    return lambda value: from_avro(value, None)


def _protobuf(decode: Any, client: Any) -> Decode:
    from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer

    from_protobuf: Any = ProtobufDeserializer(decode, {"use.deprecated.format": False}, client)
    return lambda value: _columns(from_protobuf(value, None))


def _columns(message: Any) -> dict[str, Any]:
    """The fields by name, as Python has them (Protobuf's JSON makes text of whole numbers); None where one is not set."""
    return {of.name: _plain(message, of) for of in message.DESCRIPTOR.fields}


def _plain(message: Any, of: Any) -> Any:
    value = getattr(message, of.name)
    if of.has_presence:
        if not message.HasField(of.name):
            return None
        return _columns(value) if of.message_type is not None else value
    if isinstance(value, Mapping):
        nested = of.message_type.fields_by_name["value"].message_type is not None
        return {str(key): _columns(one) if nested else one for key, one in value.items()}
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        return value
    return [_columns(one) if of.message_type is not None else one for one in value]


def _client(settings: Mapping[str, str]) -> Any:
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as error:
        raise PipelineError(
            f"schemas of a registry need more than confluent-kafka alone ({error}): {how_to_install('kafka-registry')}"
        ) from error
    try:
        return SchemaRegistryClient({"timeout": WAIT_SECONDS, "max.retries": 2, **settings})
    except (ValueError, TypeError) as error:
        raise PipelineError(f"the schema registry's client does not take its settings: {error}") from error


def _is_registrys(error: Exception) -> bool:
    """Whether it is the registry that fails, and not a message. Its HTTP client goes by several names."""
    from confluent_kafka.schema_registry.error import SchemaRegistryError

    return isinstance(error, SchemaRegistryError) or type(error).__module__.partition(".")[0].startswith("httpx")


def _explained(settings: Mapping[str, str], error: Exception) -> GheeError:
    return SourceError(f"the schema registry {settings['url']} does not give what is asked: {error or type(error).__name__}")
