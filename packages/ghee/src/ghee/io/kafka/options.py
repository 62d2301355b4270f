"""What a user says of a topic, checked: the URL, where to begin and to end, librdkafka's own settings. Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from ghee.errors import PipelineError
from ghee.io.kafka import registry

SCHEME = "kafka://"
COLUMNS = ("key", "value", "headers", "timestamp", "topic", "partition", "offset")
"""Of a message that is not decoded. Beside decoded fields they are named kafka_key, kafka_headers and so on."""

DECODED = "kafka_"
FORMATS = ("json", "arrow")
SCHEMAS = ("avro",)
"""Decoded by a schema of the registry; Protobuf is named by the class of its message."""
POISON = ("fail", "skip")

Offsets = Mapping[Any, int]
When = str | int | Offsets
"""A place in every partition: "earliest", "latest", "committed", milliseconds since 1970, or offsets by partition."""

_OURS = {
    "bootstrap.servers": "it stands in the URL",
    "group.id": "give group=",
    "enable.auto.commit": "offsets are committed once what was made of them was acknowledged",
    "enable.auto.offset.store": "offsets are committed once what was made of them was acknowledged",
    "auto.offset.reset": "give start=",
    "partition.assignment.strategy": "ranges are handed out by the driver",
    "enable.partition.eof": "the source needs it",
    "transactional.id": "give transactions=",
}


@dataclass(frozen=True)
class Address:
    """A kafka:// URL: brokers, topics, and the options after the question mark."""

    brokers: str
    topics: tuple[str, ...]
    options: Mapping[str, str]

    @property
    def url(self) -> str:
        """Without its options, which may hold a password."""
        return f"{SCHEME}{self.brokers}/{','.join(self.topics)}"


@dataclass(frozen=True)
class ReadOptions:
    """How topics are read. `settings` are librdkafka's; `patience` is in seconds; `poison` may be a dead-letter topic."""

    columns: tuple[str, ...] | None = None
    batch_size: int = 4096
    group: str | None = None
    start: When = "earliest"
    until: When | None = None
    decode: str | Callable[[bytes], Any] | None = None
    poison: str = "fail"
    lost: str = "fail"
    patience: float = 300.0
    schema: Any = None
    settings: Mapping[str, str] = field(default_factory=dict)
    registry: Mapping[str, str] = field(default_factory=dict)

    @property
    def endless(self) -> bool:
        """Whether it is read on for as long as the run lives."""
        return self.until is None


@dataclass(frozen=True)
class WriteOptions:
    """How a topic is written. `key` and `partition`: a column, or a function of a row (a dict); `encode`: what the value is.

    `transactions`: rows and the offsets that they were made of appear together, and once.
    """

    key: str | Callable[[Mapping[str, Any]], Any] | None = None
    partition: str | Callable[[Mapping[str, Any]], Any] | None = None
    encode: str | Callable[[Mapping[str, Any]], Any] | None = None
    transactions: bool = False
    patience: float = 300.0
    settings: Mapping[str, str] = field(default_factory=dict)


def is_kafka(value: object) -> bool:
    """Whether a source or a target is a topic."""
    return isinstance(value, str) and value.lower().startswith(SCHEME)


def parse_url(url: str) -> Address:
    """kafka://host:port,host:port/topic,topic?group=g: brokers, topics, options. Raises PipelineError."""
    rest, _, query = url[len(SCHEME) :].partition("?")
    brokers, _, path = rest.partition("/")
    topics = tuple(unquote(topic) for topic in path.split(",") if topic)
    if "@" in brokers:
        raise PipelineError(
            "a kafka:// URL holds no user and password: give settings={'security.protocol': 'SASL_SSL', "
            "'sasl.mechanism': 'PLAIN', 'sasl.username': …, 'sasl.password': …}"
        )
    for topic in topics:
        if topic.startswith("^"):
            try:
                re.compile(topic)
            except re.error as error:
                raise PipelineError(f"{topic!r} is no pattern for topics: {error}") from error
    if not brokers or not topics:
        raise PipelineError(f"{url!r} names no {'topic' if brokers else 'broker'}; expected kafka://host:port/topic")
    return Address(brokers, topics, dict(parse_qsl(query, keep_blank_values=True)))


def read_options(address: Address, given: Mapping[str, Any]) -> ReadOptions:
    """The options of the call and of the URL together. Raises PipelineError with everything that is wrong."""
    problems: list[str] = []
    texts = {key: value for key, value in address.options.items() if "." not in key}
    settings = {key: value for key, value in address.options.items() if "." in key}
    settings |= _given_settings(given, problems)
    known = {"group", "start", "until", "poison", "lost", "decode", "patience"}
    problems += [f"option {key!r} in the URL: allowed are {', '.join(sorted(known))} and librdkafka's settings"
                 for key in texts if key not in known]  # fmt: skip
    named = {key: value for key, value in given.items() if value is not None and key != "settings"}
    problems += [f"{key!r} is given in the URL and in the call" for key in texts if key in named]
    said: dict[str, Any] = {key: value for key, value in texts.items() if key in known} | named
    for key in ("start", "until"):
        if key in said:
            try:
                said[key] = when(said[key])
            except PipelineError as error:
                problems.append(f"{key}={said[key]!r}: {error}")
    if "patience" in said:
        try:
            said["patience"] = float(said["patience"])
        except (TypeError, ValueError):
            problems.append(f"patience={said.pop('patience')!r} must be a number of seconds, 0 or more")
    if said.get("columns") is not None:
        said["columns"] = tuple(said["columns"])
    of_registry, settings = registry.split_settings(settings)
    options = ReadOptions(**said, settings=settings, registry=of_registry)
    problems += _problems(options)
    if problems:
        raise PipelineError("; ".join(problems))
    return options


def _given_settings(given: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    """settings= as librdkafka takes them."""
    settings = given.get("settings") or {}
    if not isinstance(settings, Mapping):
        problems.append(f"settings={settings!r:.100} must be a dict of librdkafka's settings")
        return {}
    return {str(key): str(value).lower() if isinstance(value, bool) else str(value) for key, value in settings.items()}


def _problems(options: ReadOptions) -> list[str]:
    problems = settings_problems(options.settings)
    if not (options.decode is None or isinstance(options.decode, str) or callable(options.decode)):
        problems.append(f"decode={options.decode!r}: neither a format's name nor a function of a value's bytes")
    if isinstance(options.decode, str) and options.decode not in FORMATS + SCHEMAS:
        problems.append(
            f'decode={options.decode!r}: allowed are "json", "arrow", "avro", a message class of Protobuf, and a function '
            "of a value's bytes"
        )
    if registry.is_needed(options.decode) and "url" not in options.registry:
        problems.append("schemas are in a registry: give settings={'schema.registry.url': 'http://…'}")
    if options.registry and not registry.is_needed(options.decode):
        problems.append('settings of a schema registry are for decode="avro" and message classes of Protobuf')
    if not options.patience >= 0:
        problems.append(f"patience={options.patience!r} must be a number of seconds, 0 or more")
    if options.poison not in POISON and not is_kafka(options.poison):
        problems.append(f'poison={options.poison!r}: allowed are "fail", "skip" and "kafka://broker/topic"')
    if options.lost not in ("fail", "skip"):
        problems.append(f'lost={options.lost!r}: allowed are "fail" and "skip"')
    if options.group == "":  # librdkafka's client ends the whole process for it
        problems.append("group= is empty: name the group, or leave it out")
    if options.start == "committed" and options.group is None:
        problems.append('start="committed" needs group=')
    if options.columns is not None and options.decode is None:
        wrong = [name for name in options.columns if name not in COLUMNS]
        if wrong:
            problems.append(f"columns={wrong}: a message has {', '.join(COLUMNS)}; decode= makes columns of its value")
    return problems


def write_options(address: Address, given: Mapping[str, Any]) -> WriteOptions:
    """The options of the call and of the URL together. Raises PipelineError with everything that is wrong."""
    settings = {key: value for key, value in address.options.items() if "." in key}
    problems: list[str] = []
    settings |= _given_settings(given, problems)
    problems += [
        f"option {key!r} in the URL of a sink: allowed are librdkafka's settings; others are arguments of write()"
        for key in address.options if "." not in key
    ]  # fmt: skip
    if len(address.topics) > 1 or address.topics[0].startswith("^"):
        problems.append(f"a sink writes one topic, not {','.join(address.topics)!r}; grow a branch for each")
    options = WriteOptions(**{key: value for key, value in given.items() if key != "settings"}, settings=settings)
    problems += settings_problems(options.settings)
    if isinstance(options.encode, str) and options.encode not in FORMATS:
        problems.append(f'encode={options.encode!r}: allowed are "json", "arrow" and a function of a row (a dict)')
    for name in ("key", "partition"):
        value = getattr(options, name)
        if not (value is None or isinstance(value, str) or callable(value)):
            problems.append(f"{name}={value!r}: allowed are a column's name and a function of a row (a dict)")
        if value is not None and options.encode == "arrow":
            problems.append(f'{name}= and encode="arrow": a whole batch is one message, which has no row to take it of')
    if not isinstance(options.patience, int | float) or isinstance(options.patience, bool) or not options.patience >= 0:
        problems.append(f"patience={options.patience!r} must be a number of seconds, 0 or more")
    if problems:
        raise PipelineError("; ".join(problems))
    return options


def settings_problems(settings: Mapping[str, str]) -> list[str]:
    """What of librdkafka's settings is not the user's to set."""
    return [f"the setting {key!r} is ghee's own: {why}" for key, why in _OURS.items() if key in settings]


def when(value: Any) -> When:
    """A place as the user says it. Raises PipelineError."""
    if isinstance(value, datetime.datetime):
        return int(value.timestamp() * 1000)
    if isinstance(value, Mapping):
        if not all(isinstance(offset, int) and offset >= 0 for offset in value.values()):
            raise PipelineError("offsets are whole numbers, as in {0: 1200} or {('topic', 0): 1200}")
        if not all(isinstance(of, int) or (isinstance(of, tuple) and len(of) == 2) for of in value):
            raise PipelineError(
                "partitions are whole numbers, or pairs of topic and number: {0: 1200}, {('topic', 0): 1200}"
            )
        return dict(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        if value in ("earliest", "latest", "committed"):
            return value
        if value.isdecimal():
            return int(value)
        try:
            return when(datetime.datetime.fromisoformat(value))
        except ValueError:
            pass
    raise PipelineError(
        'allowed are "earliest", "latest", "committed", a datetime (also as ISO text), milliseconds since 1970, '
        "and a dict of offsets by partition or (topic, partition)"
    )


def offset_of(offsets: Offsets, topic: str, partition: int) -> int | None:
    """The offset that a dict gives for a partition."""
    found = offsets.get((topic, partition), offsets.get(partition))
    return None if found is None else int(found)


def unknown_partitions(name: str, at: When | None, found: Sequence[tuple[str, int]]) -> list[str]:
    """What a dict of offsets names and the broker does not have. `name`: of the option."""
    if not isinstance(at, Mapping):
        return []
    numbers = {number for _, number in found}
    wrong = [of for of in at if (of not in numbers if isinstance(of, int) else of not in found)]
    there = ", ".join(f"{topic}[{number}]" for topic, number in found[:20])
    return [f"{name}= names the partitions {wrong}, which are not there; there are {there}"] if wrong else []


def columns_of(options: ReadOptions) -> Sequence[str]:
    """The columns of the message itself that are wanted, by their own names."""
    if options.columns is None:
        return COLUMNS
    if options.decode is None:
        return options.columns
    return [name.removeprefix(DECODED) for name in options.columns if name.startswith(DECODED)]
