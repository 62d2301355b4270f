"""The real servers of tests/servers, as fixtures; every test of this folder that uses one is marked `server`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

sys.path.append(str(Path(__file__).parents[2]))  # at the end: folders of tests must not hide the packages
sys.path.append(str(Path(__file__).parent))

from stores import Store

from servers.contract import pytest_runtest_makereport, running
from servers.hdfs import Hdfs
from servers.s3 import ACCESS_KEY, REGION, S3, SECRET_KEY

__all__ = ["pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def hdfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    yield from running(Hdfs, tmp_path_factory)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    yield from running(S3, tmp_path_factory)


KINDS = ["hdfs", "webhdfs", "s3"]


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.server) for kind in KINDS])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Each store in turn, with a folder of its own."""
    return make_store(request.param, request, monkeypatch)


@pytest.fixture
def hdfs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    return make_store("hdfs", request, monkeypatch)


@pytest.fixture
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    return make_store("s3", request, monkeypatch)


def make_store(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    server: Any = request.getfixturevalue("s3_server" if kind == "s3" else "hdfs_server")
    server.restart()  # what a test before has killed
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    if kind == "s3":
        filesystem = pafs.S3FileSystem(
            access_key=ACCESS_KEY, secret_key=SECRET_KEY, endpoint_override=server.address, region=REGION
        )
        return Store("s3", "bucket", filesystem, "bucket/", server)
    from hdfs_native.fsspec import HdfsFileSystem

    host, port = server.address.split(":")
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(HdfsFileSystem(host, int(port), skip_instance_cache=True)))
    authority = server.web if kind == "webhdfs" else server.address
    return Store(kind, f"root@{authority}" if kind == "webhdfs" else authority, filesystem, "/", server)
