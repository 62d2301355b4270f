"""What DuckDB reads through a file system in Python: same rows, columns and filters, and never a standstill."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs as pafs

from cumin.engines.scanning import released


class Slow(LocalFileSystem):  # type: ignore[misc]
    """Opens files as a store far away does: the thread that opens lets others go first."""

    def open(self, *arguments: Any, **named: Any) -> Any:
        threading.Event().wait(0.001)
        return super().open(*arguments, **named)


def _dataset(folder: Path, system: Any) -> pads.Dataset:
    fragments = []
    kind = pads.ParquetFileFormat()
    for day in range(20):
        pq.write_table(pa.table({"k": range(100), "v": [float(day)] * 100}), folder / f"{day}.parquet")
        name = str(folder / f"{day}.parquet")
        fragments.append(kind.make_fragment(name, filesystem=system, partition_expression=pads.field("dt") == day))
    schema = pa.schema([("k", pa.int64()), ("v", pa.float64()), ("dt", pa.int32())])
    return pads.FileSystemDataset(fragments, schema, kind, filesystem=system)


def test_columns_filters_and_partitions_go_to_the_scanner(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, pafs.PyFileSystem(pafs.FSSpecHandler(Slow())))
    asked = []

    class Seen(type(released(dataset))):  # type: ignore[misc]
        def scanner(self, *arguments: Any, **named: Any) -> Any:
            asked.append(named)
            return super().scanner(*arguments, **named)

    seen = Seen(list(dataset.get_fragments()), dataset.schema, dataset.format, dataset.filesystem)
    with duckdb.connect() as connection:
        connection.register("t", seen)
        rows = connection.sql(
            "SELECT dt, sum(v), count(*) FROM t WHERE dt >= 18 AND k < 10 GROUP BY dt ORDER BY dt"
        ).fetchall()
    assert rows == [(18, 180.0, 10), (19, 190.0, 10)]
    assert sorted(asked[-1]["columns"]) == ["dt", "k", "v"] or sorted(asked[-1]["columns"]) == ["dt", "v"]
    assert "dt" in str(asked[-1]["filter"])


def test_many_files_are_read_again_and_again(tmp_path: Path) -> None:
    """Such a scan has stood still, with a lock of Arrow's and that of Python held crosswise."""
    dataset = released(_dataset(tmp_path, pafs.PyFileSystem(pafs.FSSpecHandler(Slow()))))
    for _ in range(40):
        with duckdb.connect() as connection:
            connection.register("t", dataset)
            assert connection.sql("SELECT count(*), sum(k) FROM t").fetchall() == [(2000, 99000)]


def test_a_file_system_of_arrows_own_is_left_as_it_is(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, pafs.LocalFileSystem())
    assert released(dataset) is dataset
