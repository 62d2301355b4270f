"""How well a shuffle mixes, and what it holds in memory, on real files."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ghee.io.contract import Source
from ghee.io.opening import open_source

CLASSES, ROWS = 10, 20_000


def batches(source: Source, epoch: int = 0) -> Iterator[Any]:
    splits = source.splits()
    for split in source.order(splits, epoch):
        there: Source = pickle.loads(pickle.dumps(source))
        yield from there.read(pickle.loads(pickle.dumps(split)), epoch=epoch)


def write_sorted(folder: Path, kind: str, row_group_size: int) -> None:
    """Files sorted by class, as data lakes are: one class in each."""
    for number in range(CLASSES):
        table = pa.table({"y": np.full(ROWS, number), "id": np.arange(ROWS) + number * ROWS})
        if kind == "parquet":
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=row_group_size)
        elif kind == "arrow":
            with pa.OSFile(str(folder / f"{number}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=row_group_size)
        else:
            pa.csv.write_csv(table, folder / f"{number}.csv")


@pytest.mark.parametrize(
    ("kind", "group", "options", "least"),
    [
        ("parquet", ROWS, {"shuffle_buffer": 200_000}, 9.9),
        ("parquet", ROWS, {}, 8),
        ("parquet", 1000, {"shuffle_buffer": 16_000}, 6),
        ("parquet", ROWS, {"filter": pc.field("id") >= 0}, 8),
        ("arrow", 1000, {"shuffle_buffer": 200_000}, 9.9),
        ("csv", ROWS, {}, 8),
    ],
)
def test_a_batch_has_rows_of_many_files(
    tmp_path: Path, kind: str, group: int, options: dict[str, Any], least: float
) -> None:
    write_sorted(tmp_path, kind, group)
    source = open_source(tmp_path, batch_size=1000, shuffle=1, **options)
    found = list(batches(source))
    ids = [i for batch in found for i in batch["id"].to_pylist()]
    assert sorted(ids) == list(range(CLASSES * ROWS))
    assert np.mean([len(np.unique(batch["y"])) for batch in found]) >= least
    again = open_source(tmp_path, batch_size=1000, shuffle=1, **options)
    assert ids == [i for batch in batches(again) for i in batch["id"].to_pylist()]
    assert ids != [i for batch in batches(source, epoch=1) for i in batch["id"].to_pylist()]


@pytest.mark.parametrize("filtered", [False, True])
def test_a_shuffle_holds_its_buffer_and_no_more(tmp_path: Path, filtered: bool) -> None:
    """Of 64 MiB in row groups of 4 MiB each rank holds a buffer of 1 MiB, twice while it permutes it, and what it reads."""
    rows = (4 << 20) // 8
    for number in range(16):
        values = np.random.default_rng(number).random(rows)
        pq.write_table(pa.table({"x": values}), tmp_path / f"{number}.parquet", row_group_size=rows, use_dictionary=False)
    filter = pc.field("x") >= 0 if filtered else None
    source = open_source(tmp_path, batch_size=4096, shuffle=1, shuffle_buffer=(1 << 20) // 8, filter=filter)
    splits = source.order(source.splits(), 0)
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        read = sum(batch.num_rows for split in splits for batch in source.read(split, epoch=0))
    finally:
        pa.set_memory_pool(before)
    assert read == 16 * rows
    assert 1 << 20 <= pool.max_memory() < 24 << 20
