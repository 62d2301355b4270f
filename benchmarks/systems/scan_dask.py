"""Dask: read_parquet through pyarrow's file system, map_partitions that does nothing, counted; without its start."""

import time
from typing import Any

import dask
import dask.dataframe as dd
from distributed import Client, LocalCluster
from scan import Scan, print_result

scan = Scan.from_arguments()


def same(frame: Any) -> Any:
    """Does nothing."""
    return frame


if __name__ == "__main__":
    with (
        LocalCluster(n_workers=scan.workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        began, rows = time.monotonic(), 0
        for _ in range(scan.passes):
            frame = dd.read_parquet(scan.files(), filesystem=scan.filesystem(), split_row_groups=1)
            rows += int(frame.map_partitions(same).map_partitions(len).compute().sum())
        seconds = time.monotonic() - began
    print_result(rows, seconds, {"dask": dask.__version__})
