"""A name service of two name nodes, found in HADOOP_CONF_DIR: one dies while files are read and published."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from ghee.io.opening import open_sink, open_source
from servers.contract import running
from servers.hdfs import HaHdfs


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HaHdfs]:
    for server in running(HaHdfs, tmp_path_factory):
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(300)  # Java is started eight times
def test_the_second_name_node_takes_over(service: HaHdfs) -> None:
    def write(name: str) -> None:
        sink = open_sink(f"hdfs://cluster/{name}", rows_per_file=100)
        sink.prepare()
        writer = sink.writer(0)
        for start in range(0, 400, 50):
            writer.write(pa.table({"n": range(start, start + 50)}))
        parts = writer.close()
        if name == "second":
            service.fail_over()
        sink.publish(parts)

    write("first")
    source = open_source("hdfs:///first", batch_size=10)
    batches = (batch for split in source.splits() for batch in source.read(split, epoch=0))
    seen = next(batches)["n"].to_pylist()
    write("second")
    seen += [n for batch in batches for n in batch["n"].to_pylist()]
    assert sorted(seen) == list(range(400))
    again = open_source("hdfs://cluster/second")
    assert sorted(n for s in again.splits() for b in again.read(s, epoch=0) for n in b["n"].to_pylist()) == list(range(400))
