"""Ray Data: read_parquet, map_batches on as many CPUs as the others have workers, iter_batches in the driver."""

import functools

import numpy as np
import pyarrow as pa
import ray
from job import BATCH, Job, Trainer, prepare, print_result

job = Job.from_arguments()


def prepare_table(table: pa.Table, weight: int) -> dict[str, np.ndarray]:
    """Ray hands out tables; the shared preprocessing takes record batches."""
    (batch,) = table.combine_chunks().to_batches()
    return prepare(batch, weight)


if __name__ == "__main__":
    ray.init(num_cpus=job.workers, object_store_memory=2 * 2**30, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_parquet(job.files()).map_batches(
        functools.partial(prepare_table, weight=job.weight),
        batch_size=BATCH,
        batch_format="pyarrow",
        zero_copy_batch=True,
    )
    measured = Trainer().train(dataset.iter_batches(batch_size=BATCH, batch_format="numpy", prefetch_batches=4))
    ray.shutdown()
    print_result("ray", {"ray": ray.__version__}, measured)
