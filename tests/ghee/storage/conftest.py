"""The real servers of tests/servers, as fixtures; every test of this folder that uses one is marked `server`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # at the end: folders of tests must not hide the packages

from servers.contract import pytest_runtest_makereport, running
from servers.hdfs import Hdfs
from servers.s3 import S3

__all__ = ["pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def hdfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    yield from running(Hdfs, tmp_path_factory)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    yield from running(S3, tmp_path_factory)
