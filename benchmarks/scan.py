"""The scan that every system is measured on: Parquet files on a store, through a map that does nothing, counted.

What is shared stands here: the files, where they lie, and what an adapter prints.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

BATCH = 1 << 15  # rows
GROUP = 1 << 17  # rows of a row group
COLUMNS = 16  # of float32, beside two of int64


@dataclass(frozen=True)
class Scan:
    """One measurement's settings. `folder` is the path on the store; `web` is HDFS over HTTP."""

    store: str  # "hdfs", "s3" or "local"
    address: str
    web: str
    folder: str
    passes: int
    workers: int

    @classmethod
    def from_arguments(cls) -> Scan:
        """As the command line of an adapter gives it."""
        return cls(**json.loads(sys.argv[1]))

    @property
    def argument(self) -> str:
        """For `from_arguments`."""
        return json.dumps(asdict(self))

    @property
    def url(self) -> str:
        """As ghee reads it."""
        return {"hdfs": f"hdfs://{self.address}", "s3": "s3://", "local": ""}[self.store] + self.folder

    def filesystem(self) -> Any:
        """pyarrow's, made without ghee; endpoint and keys come from the environment."""
        if self.store == "local":
            return pafs.LocalFileSystem()
        if self.store == "s3":
            return pafs.S3FileSystem(endpoint_override=self.address)
        from hdfs_native.fsspec import HdfsFileSystem

        host, _, port = self.address.partition(":")
        return pafs.PyFileSystem(pafs.FSSpecHandler(HdfsFileSystem(host, int(port))))

    def files(self) -> list[str]:
        """The paths of the input on the store."""
        infos = self.filesystem().get_file_info(pafs.FileSelector(self.folder))
        return sorted(info.path for info in infos if info.path.endswith(".parquet"))


def make_input(filesystem: Any, folder: str, megabytes: int, files: int) -> tuple[int, int]:
    """Writes files of about `megabytes` in all, as pyarrow writes them by default; returns (rows, bytes)."""
    groups = max(1, round(megabytes * 2**20 / files / (GROUP * (COLUMNS * 4 + 16))))
    filesystem.create_dir(folder, recursive=True)
    rows = 0
    for number in range(files):
        rng = np.random.default_rng(number)
        with filesystem.open_output_stream(f"{folder}/part-{number:03}.parquet") as stream:
            writer = None
            for _ in range(groups):
                table = _table(rng, rows)
                rows += table.num_rows
                writer = writer or pq.ParquetWriter(stream, table.schema)
                writer.write_table(table, row_group_size=GROUP)
            assert writer is not None
            writer.close()
    return rows, sum(info.size for info in filesystem.get_file_info(pafs.FileSelector(folder)))


def _table(rng: Any, first: int) -> pa.Table:
    columns = {f"x{i}": rng.standard_normal(GROUP, dtype=np.float32) for i in range(COLUMNS)}
    return pa.table({"id": np.arange(first, first + GROUP), "user": rng.integers(0, 10**7, GROUP), **columns})


def print_result(rows: int, seconds: float, versions: dict[str, str], **more: Any) -> None:
    """What the harness reads."""
    print("RESULT " + json.dumps({"rows": rows, "seconds": seconds, "versions": versions, **more}), flush=True)
