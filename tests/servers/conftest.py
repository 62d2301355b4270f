"""Real servers for tests: each is started on first use and ends with the session. What a machine lacks is said."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from servers import kafka as kafka_server


def lacking(reason: str | None) -> None:
    """A visible skip where a program is missing; a failure where CI is set."""
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def kafka() -> Iterator[kafka_server.KafkaServer]:
    lacking(kafka_server.missing())
    with kafka_server.KafkaServer() as server:
        yield server
        print(server.log())


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHEE_HOME", str(tmp_path_factory.mktemp("home")))
