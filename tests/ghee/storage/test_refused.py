"""What a real server refuses: an address where nobody is, rights, keys, room. Named, nothing lost, old output as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from stores import Store

from ghee.errors import SinkError, SinkExistsError, SourceError
from ghee.io.manifest import read_manifest
from ghee.io.opening import open_sink, open_source
from ghee.io.sinks import files
from servers.contract import free_port

NOT_LET_IN = r"ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY_ID|HTTP status 403"


def ids(url: str, **options: Any) -> list[int]:
    source = open_source(url, **options)
    return sorted(n for split in source.splits() for batch in source.read(split, epoch=0) for n in batch["n"].to_pylist())


def table(start: int, rows: int, **more: Any) -> Any:
    return pa.table({"n": range(start, start + rows), **more})


def write(url: str, tables: list[Any], **options: Any) -> None:
    sink = open_sink(url, **options)
    sink.prepare()
    writer = sink.writer(0)
    try:
        for each in tables:
            writer.write(each)
        sink.publish(writer.close())
    except BaseException:
        writer.abort()
        sink.abort()
        raise


@pytest.mark.server
@pytest.mark.parametrize("kind", ["hdfs", "s3"])
def test_nobody_at_the_address(kind: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    url = "s3://bucket" if kind == "s3" else f"hdfs://127.0.0.1:{port}"
    options = {"storage_options": {"endpoint_override": f"http://127.0.0.1:{port}"}} if kind == "s3" else {}
    with pytest.raises(SourceError, match=f"127.0.0.1(:| port ){port}"):
        ids(f"{url}/in", **options)
    with pytest.raises(SinkError, match=f"127.0.0.1(:| port ){port}"):
        write(f"{url}/out", [table(0, 1)], **options)
    assert capfd.readouterr().err.count("waiting for up to 4 s") == 2  # not the 120 s of a store that was there


ALICE = """
import sys
from ghee.errors import GheeError
from test_refused import ids, table, write

for attempt in (lambda: ids(sys.argv[1] + "/in"), lambda: write(sys.argv[1] + "/out", [table(5, 5)], mode="overwrite")):
    try:
        attempt()
    except GheeError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.server
def test_no_permission_on_hdfs(hdfs: Store) -> None:
    """In another process, for a process is one user."""
    import hdfs_native

    hdfs.put_table("in/a.parquet", table(0, 5))
    write(hdfs.url("out"), [table(0, 5)])
    hdfs_native.Client(f"hdfs://{hdfs.authority}").set_permission(hdfs.path("in"), 0o700)
    paths = os.pathsep.join(sys.path)
    env = {**os.environ, "HADOOP_USER_NAME": "alice", "PYTHONPATH": paths}
    command = [sys.executable, "-c", ALICE, hdfs.url()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=os.path.dirname(__file__))
    assert "is away" not in done.stderr
    reading, writing = done.stdout.splitlines()
    assert "SourceError" in reading
    assert "SinkError" in writing
    for line, path in ((reading, "/in"), (writing, "/out")):
        assert "Permission denied: user=alice" in line
        assert hdfs.path() + path in line
    assert ids(hdfs.url("out")) == list(range(5))


@pytest.mark.server
@pytest.mark.parametrize("wrong", [{"secret_key": "wrong"}, {"access_key": "nobody", "secret_key": "wrong"}])
def test_wrong_keys_of_s3(wrong: dict[str, str], s3: Store, capfd: pytest.CaptureFixture[str]) -> None:
    s3.put_table("in/a.parquet", table(0, 5))
    write(s3.url("out"), [table(0, 5)])
    options = {"storage_options": {"access_key": os.environ["AWS_ACCESS_KEY_ID"], **wrong}}
    with pytest.raises(SourceError, match=NOT_LET_IN):
        ids(s3.url("in"), **options)
    with pytest.raises(SinkError, match=NOT_LET_IN):
        write(s3.url("out"), [table(5, 5)], mode="overwrite", **options)
    assert "is away" not in capfd.readouterr().err
    assert ids(s3.url("out")) == list(range(5))


@pytest.mark.server
def test_no_room_on_hdfs(hdfs: Store, capfd: pytest.CaptureFixture[str]) -> None:
    write(hdfs.url("out"), [table(0, 5)])
    hdfs.server.admin("-setSpaceQuota", "5m", hdfs.path("out"))
    big = [table(i, 1, x=[os.urandom(1 << 20)]) for i in range(10, 20)]
    with pytest.raises(SinkError, match="quota"):
        write(hdfs.url("out"), big, mode="overwrite", rows_per_file=2)
    assert "is away" not in capfd.readouterr().err
    assert ids(hdfs.url("out")) == list(range(5))
    assert not [name for name in hdfs.names("out") if "_staging" in name]
    hdfs.server.admin("-clrSpaceQuota", hdfs.path("out"))
    write(hdfs.url("out"), big, mode="overwrite", rows_per_file=2)
    assert ids(hdfs.url("out")) == list(range(10, 20))


@pytest.mark.server
@pytest.mark.parametrize("kind", ["hdfs", "s3"])
@pytest.mark.parametrize("mode", ["error", "append"])
def test_of_two_publishes_at_one_moment_the_second_sees_the_first(
    kind: str, mode: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run publishes between this one's last look (at the folder; at the manifest to add to) and its next step."""
    store: Store = request.getfixturevalue(kind)
    place, name = (files.FileSink, "_move_in") if mode == "error" else (files, "put_in_place")
    real, url = getattr(place, name), store.url("out")

    def late(*given: Any) -> None:
        monkeypatch.setattr(place, name, real)
        write(url, [table(0, 5)], mode=mode)
        real(*given)

    monkeypatch.setattr(place, name, late)
    if mode == "error":
        with pytest.raises(SinkExistsError):
            write(url, [table(5, 5)], mode=mode)
    else:
        write(url, [table(5, 5)], mode=mode)
    assert ids(url) == list(range(5 if mode == "error" else 10))
    assert len([name for name in store.names("out") if "/" in name]) == len(ids(url)) // 5 + 1
    manifest = read_manifest(store.filesystem, store.path("out"))
    assert manifest is not None
    assert manifest["rows"] == len(ids(url))
