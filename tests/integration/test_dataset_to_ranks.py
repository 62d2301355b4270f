"""A dataset that cumin built is read by ghee, with its exact files and row counts, by ranks in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import cumin
import ghee


def test_a_built_dataset_goes_through_a_pipeline(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"user": list(range(1000)), "clicks": [n % 7 for n in range(1000)]}), tmp_path / "events.parquet"
    )
    dataset = cumin.build(
        "busy",
        sql="SELECT user, clicks FROM events WHERE clicks >= :least",
        params={"least": 3},
        inputs={"events": cumin.files(str(tmp_path / "events.parquet"))},
        store=str(tmp_path / "store"),
    )

    def total(batches: Any) -> tuple[int, int]:
        rows = clicks = 0
        for batch in batches:
            rows, clicks = rows + batch.num_rows, clicks + sum(batch["clicks"].to_pylist())
        return rows, clicks

    run = ghee.run(ghee.read(dataset, batch_size=100).map(lambda batch: batch).loop(total))
    wanted = [n % 7 for n in range(1000) if n % 7 >= 3]
    assert run.result == (len(wanted), sum(wanted))
    assert run.report.balanced
