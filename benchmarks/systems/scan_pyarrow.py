"""pyarrow alone: a dataset's own scan with as many threads as the others have workers."""

import os
import sys
import time

import pyarrow as pa
import pyarrow.dataset as ds
from scan import BATCH, Scan, print_result

scan = Scan.from_arguments()

if __name__ == "__main__":
    pa.set_cpu_count(scan.workers)  # the harness gives libraries one thread
    began, rows = time.monotonic(), 0
    for _ in range(scan.passes):
        dataset = ds.dataset(scan.files(), filesystem=scan.filesystem(), format="parquet")
        rows += sum(batch.num_rows for batch in dataset.to_batches(batch_size=BATCH))
    print_result(rows, time.monotonic() - began, {"pyarrow": pa.__version__})
    sys.stdout.flush()
    os._exit(0)  # pyarrow's threads may still hold the file system's Python objects, and abort at the interpreter's end
