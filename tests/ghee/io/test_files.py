"""Files as sources: real files of every format, whole and broken, read in the way ranks read them."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghee.errors import PipelineError, SchemaError, SourceCorruptError, SourceError, SourceNotFoundError
from ghee.io.contract import Source
from ghee.io.opening import open_source

FORMATS = ["parquet", "csv", "tsv", "jsonl", "arrow"]


def write(table: Any, path: Path, *, rows_per_unit: int = 100) -> Path:
    """A file as other programs make it: nothing of ghee takes part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:]
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows_per_unit)
    elif kind in ("csv", "tsv"):
        pacsv.write_csv(table, path, pacsv.WriteOptions(delimiter="," if kind == "csv" else "\t"))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows_per_unit)
    return path


def numbered(rows: int, start: int = 0) -> Any:
    ids = list(range(start, start + rows))
    return pa.table({"id": pa.array(ids, pa.int64()), "name": pa.array([f"n\n{i}," for i in ids], pa.string())})


def batches(source: Source, epoch: int = 0) -> Iterator[Any]:
    """As a run does it: splits in the driver, the source pickled, every split read by another rank."""
    splits = source.splits()
    for split in source.order(splits, epoch):
        there: Source = pickle.loads(pickle.dumps(source))
        yield from there.read(pickle.loads(pickle.dumps(split)), epoch=epoch)


def ids(source: Source, epoch: int = 0, column: str = "id") -> list[Any]:
    return [value for batch in batches(source, epoch) for value in batch[column].to_pylist()]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_read_whole_in_order_and_in_full_batches(folder: Path, kind: str) -> None:
    path = write(numbered(1000), folder / f"data.{kind}")
    source = open_source(path, batch_size=64)
    assert ids(source) == list(range(1000))
    for split in source.splits():
        sizes = [batch.num_rows for batch in source.read(split, epoch=0)]
        assert all(size == 64 for size in sizes[:-1])
        assert split.rows in (None, sum(sizes))


@settings(max_examples=40)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.integers(0, 300), min_size=1, max_size=4),
    st.integers(1, 120),
    st.integers(1, 200),
    st.none() | st.integers(1, 150),
    st.none() | st.integers(1, 700),
    st.none() | st.integers(0, 3),
    st.booleans(),
)
def test_every_row_exactly_once(
    kind: str,
    files: list[int],
    per_unit: int,
    batch_size: int,
    split_rows: int | None,
    limit: int | None,
    seed: int | None,
    filtered: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = 0
        for n, rows in enumerate(files):
            write(numbered(rows, start), Path(folder) / f"{n}.{kind}", rows_per_unit=per_unit)
            start += rows
        if kind == "jsonl" and start == 0:
            return  # files without a line have no columns
        options: dict[str, Any] = {"batch_size": batch_size, "split_rows": split_rows, "limit": limit, "shuffle": seed}
        if filtered:
            options["filter"] = pc.field("id").cast(pa.int64()) >= 37
        source = open_source(folder, **options)
        wanted = [i for i in range(start) if not filtered or i >= 37][:limit]
        found = ids(source)
        assert sorted(found) == wanted
        assert found == ids(source)
        assert all(batch.num_rows <= batch_size for batch in batches(source))
        if seed is None:
            assert found == wanted


@pytest.mark.parametrize("kind", FORMATS)
def test_large_files_of_every_format_are_shared_by_splits(tmp_path: Path, kind: str) -> None:
    path = write(numbered(40_000), tmp_path / f"data.{kind}", rows_per_unit=1000)
    source = open_source(path)
    splits = source.splits()
    assert len(splits) >= 8
    assert ids(source) == list(range(40_000))
    assert len(pickle.dumps(splits[0])) < 600
    assert len(pickle.dumps(source)) < 5000


def test_columns_come_in_the_order_asked_for_and_others_are_not_compared(tmp_path: Path) -> None:
    write(pa.table({"a": [1], "b": ["x"], "c": [1.5]}), tmp_path / "1.parquet")
    write(pa.table({"b": ["y"], "a": [2], "c": ["text"]}), tmp_path / "2.parquet")
    source = open_source(tmp_path, columns=["b", "a"])
    assert [batch.to_pydict() for batch in batches(source)] == [{"b": ["x", "y"], "a": [1, 2]}]
    with pytest.raises(SchemaError, match=r"2\.parquet: the column 'c' is string; in .*1\.parquet it is double"):
        open_source(tmp_path).splits()
    with pytest.raises(SchemaError, match="has no column 'z'; it has 'a', 'b', 'c'"):
        open_source(tmp_path / "1.parquet", columns=["z"]).splits()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_of_the_path_alone_can_be_read(tmp_path: Path, kind: str) -> None:
    for day in (1, 2):
        write(numbered(5), tmp_path / f"day={day}" / f"x.{kind}")
    assert ids(open_source(tmp_path, columns=["day"]), column="day") == [1] * 5 + [2] * 5


@pytest.mark.parametrize("kind", FORMATS)
def test_hive_partitions_are_columns(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "table=x" / "root"  # above what was named: no partition
    for n, (day, city) in enumerate([("1", "Zürich"), ("2", "a%2Fb"), ("10", "__HIVE_DEFAULT_PARTITION__")]):
        write(numbered(3, n * 3), root / f"day={day}" / f"city={city}" / f"part.{kind}")
    (row,) = [b.slice(b.num_rows - 1).to_pylist()[0] for b in batches(open_source(root))]
    assert row == {"id": 5, "name": "n\n5,", "day": 2, "city": "a/b"}  # folders sort as text: 1, 10, 2
    source = open_source(root, filter=[("day", ">", 1), ("city", "==", "a/b")])
    assert ids(source) == [3, 4, 5]
    if kind == "parquet":
        assert {piece.file.path.split("/")[-3] for split in source.splits() for piece in split.pieces} == {"day=2"}
    assert ids(open_source(str(root / "day=1*" / "*" / "*"))) == [0, 1, 2, 6, 7, 8]
    assert sorted(ids(open_source(str(root / "**" / f"*.{kind}")))) == list(range(9))
    assert "day" in next(batches(open_source(str(root / "day=*")))).schema.names


def test_partitions_with_leading_zeros_stay_text_and_mixed_keys_are_an_error(tmp_path: Path) -> None:
    write(numbered(1), tmp_path / "a" / "zip=08001" / "x.parquet")
    write(numbered(1), tmp_path / "a" / "zip=9" / "x.parquet")
    assert ids(open_source(tmp_path / "a"), column="zip") == ["08001", "9"]
    write(numbered(1), tmp_path / "a" / "country=ch" / "x.parquet")
    with pytest.raises(SchemaError, match="hive partitions"):
        open_source(tmp_path / "a").splits()


def test_row_groups_that_statistics_exclude_are_not_read(tmp_path: Path) -> None:
    path = write(numbered(1000), tmp_path / "x.parquet", rows_per_unit=100)
    source = open_source(path, filter=pc.field("id") >= 750)
    assert [(p.start, p.stop) for split in source.splits() for p in split.pieces] == [(7, 10)]
    assert ids(source) == list(range(750, 1000))
    assert ids(open_source(path, filter=[("id", ">", 5000)])) == []


def test_a_filter_may_use_columns_that_are_not_returned(tmp_path: Path) -> None:
    for kind in FORMATS:
        path = write(numbered(100), tmp_path / f"x.{kind}")
        source = open_source(path, columns=["name"], filter=[("id", "<", 3)])
        assert [batch.to_pydict() for batch in batches(source)] == [{"name": ["n\n0,", "n\n1,", "n\n2,"]}]


def test_a_filter_that_does_not_fit_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    path = write(numbered(10), tmp_path / "x.parquet")
    for filter in ([("nope", "==", 1)], pc.field("id") == "text"):
        with pytest.raises(SchemaError, match=r"does not fit the columns [\s\S]*They are id: int64, name: string"):
            open_source(path, filter=filter).splits()


def test_shuffles_differ_by_epoch_and_seed_and_are_the_same_again(tmp_path: Path) -> None:
    for n in range(4):
        write(numbered(500, n * 500), tmp_path / f"{n}.parquet")
    source = open_source(tmp_path, shuffle=1, batch_size=32)
    first, second = ids(source, 0), ids(source, 1)
    assert sorted(first) == sorted(second) == list(range(2000))
    assert first != second
    assert first == ids(open_source(tmp_path, shuffle=1, batch_size=32), 0)
    assert first != ids(open_source(tmp_path, shuffle=2, batch_size=32), 0)


def test_safe_promotions_between_files(tmp_path: Path) -> None:
    write(pa.table({"x": pa.array([1], pa.int8()), "y": pa.array([None], pa.null())}), tmp_path / "1.parquet")
    write(pa.table({"x": pa.array([2**40], pa.int64()), "y": ["text"]}), tmp_path / "2.parquet")
    for options in ({}, {"filter": [("x", ">", 0)]}):
        source = open_source(tmp_path, **options)  # type: ignore[arg-type]
        assert [b.to_pylist() for b in batches(source)] == [[{"x": 1, "y": None}, {"x": 2**40, "y": "text"}]]


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    write(numbered(10), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no parquet at all PAR1")
    (tmp_path / "d.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(SourceCorruptError) as caught:
        open_source(tmp_path).splits()
    assert [name in str(caught.value) for name in ("a.parquet", "b.parquet", "c.parquet", "d.parquet")] == [
        False, True, True, True
    ]  # fmt: skip
    with pytest.raises(SourceNotFoundError) as missing:
        open_source([str(tmp_path / "no.parquet"), str(tmp_path / "*.csv"), str(tmp_path / "a.parquet")]).splits()
    assert "no.parquet: does not exist" in str(missing.value)
    assert "*.csv: the pattern matches no file" in str(missing.value)
    assert "a.parquet" not in str(missing.value)


def _damaged(path: Path, kind: str) -> str:
    """Breaks the body of a file so that its outline still reads; returns what the error must name."""
    data = bytearray(path.read_bytes())
    if kind == "parquet":
        group = pq.read_metadata(path).row_group(3).column(0)
        at = group.data_page_offset + group.total_compressed_size // 2
        data[at] ^= 0x10  # in the middle of plain numbers: only the page's checksum tells
        where = "row group 3"
    elif kind == "arrow":
        first = data.index(b"n\n500,")  # the offsets of the strings lie before the strings
        at = data.rindex(struct.pack("<3i", 0, 6, 12), 0, first)
        data[at + 8 : at + 12] = b"\xff\xff\xff\x7f"
        where = "record batch"
    else:
        at = data.index(b"500")
        data[at : at + 3] = b'"5"' if kind == "jsonl" else b"5x0"
        where = "bytes"
    path.write_bytes(data)
    return where


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "jsonl"])
def test_damage_inside_a_file_is_found_while_reading_and_named(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    path = tmp_path / f"x.{kind}"
    table = numbered(1000)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=100, write_page_checksum=True, compression="none", use_dictionary=False)
    else:
        write(table, path)
    where = _damaged(path, kind)
    source = open_source(path, schema=table.schema if kind in ("csv", "jsonl") else None)
    monkeypatch.setattr("ghee.io.files.SAMPLE_MOST", 1000)  # of text the driver reads the beginning only
    with pytest.raises(SourceCorruptError) as caught:
        ids(source)
    assert str(path) in str(caught.value)
    assert where in str(caught.value)
    if kind == "parquet":
        with pytest.raises(SourceCorruptError, match=r"x\.parquet, row group 3, cannot be read"):
            ids(open_source(path, filter=[("id", ">=", 0)]))


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "arrow"])
@pytest.mark.parametrize("change", ["rows", "time", "truncated", "gone"])
def test_a_file_that_changes_after_it_was_listed_fails_the_read(tmp_path: Path, kind: str, change: str) -> None:
    path = write(numbered(1000), tmp_path / f"x.{kind}")
    source = open_source(path)
    splits = source.splits()
    if change == "rows":
        write(numbered(2000), path)
    elif change == "time":
        os.utime(path, (1, 1))
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.unlink()
    with pytest.raises(SourceError, match=r"is gone|changed after it was listed") as caught:
        list(source.read(splits[0], epoch=0))
    assert str(path) in str(caught.value)


def test_a_file_that_changes_while_it_is_read_fails_the_read(tmp_path: Path) -> None:
    path = write(numbered(1000), tmp_path / "x.jsonl")
    source = open_source(path, batch_size=10)
    (split,) = source.splits()
    reading = source.read(split, epoch=0)
    next(reading)
    os.utime(path, (1, 1))
    with pytest.raises(SourceError, match="changed after it was listed"):
        list(reading)


def test_hidden_files_are_left_out_and_unknown_names_are_an_error(tmp_path: Path) -> None:
    write(numbered(10), tmp_path / "x.parquet")
    for name in ("_SUCCESS", ".x.crc", "_ghee.json", "_staging-1/data/y.parquet", ".tmp/y.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}" if name == "_ghee.json" else b"no parquet")
    os.rename(tmp_path / "_ghee.json", tmp_path / "_other.json")
    assert ids(open_source(tmp_path)) == list(range(10))
    (tmp_path / "README").write_text("hello")
    with pytest.raises(PipelineError, match=r"No format is known[\s\S]*README"):
        open_source(tmp_path).splits()
    with pytest.raises(SourceCorruptError, match="README"):
        open_source(tmp_path, format="parquet").splits()
    (tmp_path / "README").unlink()
    write(numbered(10), tmp_path / "x.csv")
    with pytest.raises(PipelineError, match="several formats"):
        open_source(tmp_path).splits()
    assert ids(open_source(str(tmp_path / "*.csv"))) == list(range(10))


def test_files_without_rows(tmp_path: Path) -> None:
    for kind in FORMATS:
        write(numbered(0), tmp_path / kind / f"1.{kind}")
        write(numbered(3), tmp_path / kind / f"2.{kind}")
        assert ids(open_source(tmp_path / kind)) == [0, 1, 2]
        if kind != "jsonl":
            assert ids(open_source(tmp_path / kind / f"1.{kind}")) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFoundError, match="holds no file"):
        open_source(tmp_path / "empty").splits()
    (tmp_path / "x.csv").write_bytes(b"")
    with pytest.raises(SourceCorruptError, match="begins with a line of column names"):
        open_source(tmp_path / "x.csv").splits()
    (tmp_path / "blank.jsonl").write_bytes(b"\n\n\n")
    assert list(batches(open_source(tmp_path / "blank.jsonl"))) == []


def test_json_lines_may_lack_keys_and_may_not_have_unknown_ones(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2, "y": "t"}')
    (tmp_path / "b.jsonl").write_text('{"y": "u", "x": 1.5}\r\n{"x": NaN}\n')
    rows = [row for batch in batches(open_source(tmp_path)) for row in batch.to_pylist()]
    assert [row["y"] for row in rows] == [None, "t", "u", None]
    assert [row["x"] for row in rows[:3]] == [1.0, 2.0, 1.5]
    schema = pa.schema([("x", pa.float64())])
    with pytest.raises(SchemaError, match="'zz'"):
        ids(open_source(tmp_path, schema=schema, columns=["zz"]))


def test_text_that_betrays_its_first_rows_is_named_and_a_schema_helps(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ghee.io.files.SAMPLE_MOST", 1000)
    lines = ["id"] + [str(i) for i in range(1000)] + ["x9"]
    path = tmp_path / "x.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(SourceCorruptError, match=r"x\.csv, bytes .*x9"):
        ids(open_source(path))
    assert ids(open_source(path, schema=pa.schema([("id", pa.string())])))[-1] == "x9"
    late = tmp_path / "x.jsonl"
    late.write_text('{"id": 1}\n' * 1000 + '{"id": 1, "late": 2}\n')
    with pytest.raises(SourceCorruptError, match="unexpected field"):
        ids(open_source(late))
    assert len(ids(open_source(late, columns=["id"]))) == 1001


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_compressed_text_and_a_gzip_that_is_cut_short(tmp_path: Path, kind: str) -> None:
    plain = write(numbered(5000), tmp_path / "plain" / f"x.{kind}").read_bytes()
    path = tmp_path / f"x.{kind}.gz"
    path.write_bytes(gzip.compress(plain))
    assert ids(open_source(path)) == list(range(5000))
    assert ids(open_source(path, limit=7)) == list(range(7))
    path.write_bytes(gzip.compress(plain)[:-500])
    with pytest.raises(SourceCorruptError, match=rf"x\.{kind}\.gz"):
        ids(open_source(path))


def test_csv_as_others_write_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffid,text\r\n1,"a ""quoted"" word"\r\n\r\n2,"two\r\nlines"\r\n3,\r\n4,""\r\n5,NULL'.encode())
    rows = [row for batch in batches(open_source(path)) for row in batch.to_pylist()]
    assert [row["id"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["text"] for row in rows] == ['a "quoted" word', "two\r\nlines", None, "", None]
    path.write_text("a\n1\n\n3\n")  # with one column an empty line is a null
    assert ids(open_source(path), column="a") == [1, None, 3]
    path.write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(SourceCorruptError, match="Expected 2 columns, got 3"):
        ids(open_source(path), column="a")
    path.write_text("a,a\n1,2\n")
    with pytest.raises(SchemaError, match="'a' is there twice"):
        open_source(path).splits()


class Dataset:
    """Stands for a built dataset of another library, which ghee knows by one method only."""

    def __init__(self, **said: Any) -> None:
        self.said = said

    def __ghee_source__(self) -> dict[str, Any]:
        return self.said


@pytest.mark.parametrize("kind", FORMATS)
def test_a_dataset_is_exactly_its_files_and_its_rows_are_checked(tmp_path: Path, kind: str) -> None:
    paths = [str(write(numbered(10, n * 10), tmp_path / f"dt=2024-01-0{n + 1}" / f"x.{kind}")) for n in range(3)]
    said = {"paths": paths[:2], "format": kind, "partitioning": "hive", "digest": "blake3:1"}
    source = open_source(Dataset(**said, rows=20))
    assert ids(source) == list(range(20))
    assert ids(source, column="dt") == ["2024-01-01"] * 10 + ["2024-01-02"] * 10
    assert source.digest == "blake3:1"  # type: ignore[attr-defined]
    with pytest.raises(SourceCorruptError, match="21 rows expected, 20 found"):
        open_source(Dataset(**said, rows=21)).splits()
    with pytest.raises(SourceCorruptError, match="11 rows expected, 10 found"):
        open_source(Dataset(**said, rows={paths[0]: 11, paths[1]: 10})).splits()
    with pytest.raises(SourceNotFoundError):
        open_source(Dataset(paths=[*paths, str(tmp_path / "gone.parquet")], rows=30)).splits()


def test_what_two_globs_both_match_is_read_once(tmp_path: Path) -> None:
    write(numbered(10), tmp_path / "x.parquet")
    assert ids(open_source([str(tmp_path), str(tmp_path / "*.parquet")])) == list(range(10))


def test_urls_and_filesystems(folder: Path) -> None:
    import fsspec

    write(numbered(10), folder / "x.parquet")
    assert ids(open_source(folder.as_uri())) == list(range(10))
    assert ids(open_source(str(folder / "x.parquet"), filesystem=pafs.LocalFileSystem())) == list(range(10))
    assert ids(open_source(str(folder), filesystem=fsspec.filesystem("file"))) == list(range(10))
    below = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
    assert ids(open_source("x.parquet", filesystem=below, filter=[("id", "<", 4)])) == [0, 1, 2, 3]


def test_fsspec_urls(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    with memory.open("/ghee-io-test/x.parquet", "wb") as file:
        pq.write_table(numbered(10), file)
    try:
        assert ids(open_source("memory://ghee-io-test/*.parquet")) == list(range(10))
    finally:
        memory.rm("/ghee-io-test", recursive=True)
    with pytest.raises(PipelineError, match="nothing-like-this"):
        open_source("nothing-like-this://x")


_AS_NOBODY = """
import os, sys
from ghee.errors import SourceError
from ghee.io.opening import open_source
os.setgid(65534); os.setuid(65534)  # after the imports: they may lie where nobody may read
for path in sys.argv[1:]:
    try:
        open_source(path).splits()
    except SourceError as error:
        print(type(error).__name__, error)
"""


def test_a_folder_or_file_that_may_not_be_read(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody who may not read")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        closed = Path(folder) / "closed"
        write(numbered(10), closed / "x.parquet")
        write(numbered(10), Path(folder) / "open" / "y.parquet").chmod(0)
        closed.chmod(0)
        paths = [str(closed), str(Path(folder) / "open")]
        done = subprocess.run([sys.executable, "-c", _AS_NOBODY, *paths], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert "closed" in lines[0], done.stderr
    assert "ermission denied" in lines[0]
    assert "y.parquet may not be read" in done.stdout


def test_wrong_arguments_are_reported_together() -> None:
    with pytest.raises(PipelineError) as caught:
        open_source("x", batch_size=0, limit=-1, shuffle=True, columns="id", format="xml", filter=[("a", "~", 1)])
    for word in ("batch_size=0", "limit=-1", "shuffle=True", "columns='id'", "format='xml'", "filter="):
        assert word in str(caught.value)
    with pytest.raises(PipelineError, match="empty"):
        open_source("")
