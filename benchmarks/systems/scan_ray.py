"""Ray Data: read_parquet, map_batches that does nothing, iter_batches in the driver; without the start of Ray."""

import time
from typing import Any

import ray
from scan import BATCH, Scan, print_result

scan = Scan.from_arguments()


def same(table: Any) -> Any:
    """Does nothing."""
    return table


if __name__ == "__main__":
    ray.init(num_cpus=scan.workers, object_store_memory=2 * 2**30, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    began = time.monotonic()
    dataset = ray.data.read_parquet(scan.files() * scan.passes, filesystem=scan.filesystem())
    dataset = dataset.map_batches(same, batch_size=BATCH, batch_format="pyarrow", zero_copy_batch=True)
    rows = sum(batch.num_rows for batch in dataset.iter_batches(batch_size=BATCH, batch_format="pyarrow"))
    seconds = time.monotonic() - began
    ray.shutdown()
    print_result(rows, seconds, {"ray": ray.__version__})
