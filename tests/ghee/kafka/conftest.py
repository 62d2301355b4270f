"""The broker of tests/servers as a fixture; the tests of this folder that use it are marked `server`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # at the end: folders of tests must not hide the packages

from servers.contract import pytest_runtest_makereport, running
from servers.kafka import Kafka
from servers.registry import Registry

# `tox -e ghee` runs without the extra; `tox run -e kafka` has it.
collect_ignore_glob = [] if importlib.util.find_spec("confluent_kafka") else ["test_*.py"]

__all__ = ["pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    yield from running(Kafka, tmp_path_factory)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    yield from running(Registry, tmp_path_factory)


@pytest.fixture
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker that a test may kill."""
    with contextmanager(running)(Kafka, tmp_path_factory) as server:
        yield server
