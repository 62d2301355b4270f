"""Reading and writing on real HDFS and S3: what works on local files works there, by the same code."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from stores import Store, parquet

import ghee
from ghee.errors import SchemaError, SourceCorruptError, SourceError, SourceNotFoundError
from ghee.io.opening import open_sink, open_source

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module


def table(start: int, rows: int, **more: Any) -> pa.Table:
    return pa.table({"id": range(start, start + rows), "x": [float(i) for i in range(rows)], **more})


def read(source: Any) -> list[dict[str, Any]]:
    splits = source.order(source.splits(), 0)
    return [row for split in splits for batch in source.read(split, epoch=0) for row in batch.to_pylist()]


def ids(source: Any) -> list[int]:
    return [row["id"] for row in read(source)]


def test_folders_globs_partitions_and_row_groups(store: Store) -> None:
    for day in (1, 2):
        store.put_table(f"events/day={day}/a.parquet", table(100 * day, 50), row_group_size=10)
    store.put("events/_SUCCESS", b"")
    assert ids(open_source(store.url("events"))) == [*range(100, 150), *range(200, 250)]
    assert ids(open_source(store.url("events/day=2/*.parquet"))) == list(range(200, 250))
    assert {row["day"] for row in read(open_source(store.url("events/day=*/*.parquet")))} == {1, 2}
    source = open_source(store.url("events"), columns=["id", "day"], filter=[("id", ">=", 240), ("day", "=", 2)])
    splits = source.splits()
    assert sum(piece.stop - piece.start for split in splits for piece in split.pieces) == 1  # one row group of ten is left
    assert read(source) == [{"id": i, "day": 2} for i in range(240, 250)]
    cut = open_source(store.url("events"), split_rows=10, batch_size=5).splits()
    assert len(cut) == 10
    assert sum(split.rows or 0 for split in cut) == 100


def test_every_format_there_and_back(store: Store) -> None:
    for kind in ("parquet", "csv", "jsonl", "arrow"):
        sink = open_sink(store.url(f"out-{kind}"), format=kind, rows_per_file=40, partition_by="k")
        sink.prepare()
        writer = sink.writer(0)
        for start in (0, 50):
            writer.write(table(start, 50, k=[i % 2 for i in range(50)]))
        sink.publish(writer.close())
        found = read(open_source(store.url(f"out-{kind}")))
        assert sorted(row["id"] for row in found) == list(range(100))
        assert all(row["k"] == row["id"] % 2 for row in found)
        names = store.names(f"out-{kind}")
        assert not [name for name in names if "_staging" in name]
        with store.filesystem.open_input_stream(store.path(f"out-{kind}/_ghee.json")) as stream:
            manifest = json.loads(stream.read())
        files = [file for write in manifest["writes"] for file in write["files"]]
        assert sum(file["rows"] for file in files) == 100
        assert all(file["digest"].startswith("sha256:") for file in files)


def test_modes(store: Store) -> None:
    def write(start: int, mode: str) -> None:
        sink = open_sink(store.url("out"), mode=mode)
        sink.prepare()
        writer = sink.writer(0)
        writer.write(table(start, 10))
        sink.publish(writer.close())

    write(0, "error")
    with pytest.raises(ghee.errors.SinkExistsError):
        write(10, "error")
    write(10, "append")
    assert sorted(ids(open_source(store.url("out")))) == list(range(20))
    sink = open_sink(store.url("out"), mode="overwrite")
    sink.prepare()
    writer = sink.writer(0)
    writer.write(table(500, 5))
    assert sorted(ids(open_source(store.url("out")))) == list(range(20))  # the old is there until the new is whole
    sink.publish(writer.close())
    assert ids(open_source(store.url("out"))) == list(range(500, 505))


def test_a_file_that_was_replaced_fails_the_run_and_is_named(store: Store) -> None:
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    first, second = parquet(table(0, 20), **plain), parquet(table(1000, 20), **plain)
    assert len(first) == len(second)  # of one size, and within the second that S3's times count
    store.put("in/a.parquet", first)
    source = open_source(store.url("in"))
    splits = source.splits()
    store.put("in/a.parquet", second)
    with pytest.raises(SourceError, match=r"a\.parquet changed after it was listed"):
        list(source.read(splits[0], epoch=0))


def test_bad_input_is_named(store: Store) -> None:
    with pytest.raises(SourceNotFoundError, match="does not exist"):
        open_source(store.url("nowhere/x.parquet")).splits()
    for number in range(5):
        store.put_table(f"schemas/{number}.parquet", table(0, 5) if number != 3 else pa.table({"id": ["text"], "x": [1.0]}))
    with pytest.raises(SchemaError, match=r"3\.parquet: the column 'id' is string"):
        open_source(store.url("schemas")).splits()
    store.put("cut/a.parquet", parquet(table(0, 1000))[:-100])
    with pytest.raises(SourceCorruptError, match=r"a\.parquet"):
        open_source(store.url("cut")).splits()
    text = gzip.compress("".join(f'{{"id": {i}}}\n' for i in range(20_000)).encode())
    store.put("gzip/a.jsonl.gz", text[: len(text) // 2])
    with pytest.raises(SourceCorruptError, match=r"a\.jsonl\.gz"):
        ids(open_source(store.url("gzip")))


def double(batch: Any) -> Any:
    return batch.set_column(1, "x", pc.multiply(batch["x"], 2.0))


def train(batches: Any) -> Any:
    for epoch in batches.epochs():
        yield from epoch


@pytest.mark.slow
def test_a_whole_run_reads_maps_loops_and_writes_back(store: Store, tmp_path: Path) -> None:
    for number in range(4):
        store.put_table(f"ratings/{number}.parquet", table(1000 * number, 1000), row_group_size=100)
    pipeline = ghee.read(store.url("ratings"), batch_size=100).map(double, replicas=2).loop(train).write(store.url("out"))
    run = ghee.run(pipeline, progress=False)
    assert run.report.balanced
    found = {row["id"]: row["x"] for row in read(open_source(store.url("out")))}
    assert found == {1000 * n + i: 2.0 * i for n in range(4) for i in range(1000)}


def test_others_read_what_was_written(store: Store, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    sink = open_sink(store.url("out"), partition_by="k")
    sink.prepare()
    writer = sink.writer(0)
    writer.write(table(0, 100, k=[i % 2 for i in range(100)]))
    sink.publish(writer.close())
    import pyarrow.dataset as ds

    seen = ds.dataset(store.path("out"), filesystem=store.filesystem, partitioning="hive").to_table()
    assert sorted(seen["id"].to_pylist()) == list(range(100))
    for name in store.names("out"):
        if name.endswith(".parquet"):
            local = tmp_path / name
            local.parent.mkdir(parents=True, exist_ok=True)
            with store.filesystem.open_input_stream(store.path(name)) as stream:
                local.write_bytes(stream.read())
    rows = duckdb.sql(f"SELECT count(*), sum(id) FROM read_parquet('{tmp_path}/out/*/*.parquet', hive_partitioning=true)")
    assert rows.fetchall() == [(100, sum(range(100)))]
    assert pq.read_table(tmp_path / "out").num_rows == 100


@pytest.mark.server
def test_spark_reads_what_was_written_and_writes_what_is_read(hdfs: Store, tmp_path: Path) -> None:
    """Straight from the name node and to it, while a write that is not finished lies beside."""
    sql = pytest.importorskip("pyspark.sql")
    sink: Any = open_sink(hdfs.url("out"), partition_by="k", rows_per_file=20)
    sink.prepare()
    writer = sink.writer(0)
    writer.write(table(0, 100, k=[i % 2 for i in range(100)]))
    sink.publish(writer.close())
    other: Any = open_sink(hdfs.url("out"), mode="append")
    other.prepare()
    writer = other.writer(0)
    writer.write(table(1000, 10, k=[0] * 10))
    writer.store()
    builder = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.sql.warehouse.dir", str(tmp_path / "warehouse")).getOrCreate()
    try:
        seen = spark.read.parquet(f"hdfs://{hdfs.authority}{hdfs.path('out')}")
        assert sorted(row["id"] for row in seen.collect()) == list(range(100))
        assert seen.where("k = 1").count() == 50
        seen.write.partitionBy("k").parquet(f"hdfs://{hdfs.authority}{hdfs.path('spark')}")
    finally:
        spark.stop()
        spark.sparkContext._gateway.shutdown()
        spark.sparkContext._gateway.proc.kill()
        spark.sparkContext._gateway.proc.wait()
        other.abort()
    found = read(open_source(hdfs.url("spark")))
    assert sorted(row["id"] for row in found) == list(range(100))
    assert all(row["k"] == row["id"] % 2 for row in found)
