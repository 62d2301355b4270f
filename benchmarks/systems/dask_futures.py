"""Dask: futures in a bounded window, taken as they complete, results straight from the workers to the client.

One task is one file of eight batches: Dask's documentation advises tasks of 100 ms and more.
"""

from collections.abc import Iterator
from itertools import islice

import distributed
import numpy as np
from dask.distributed import Client, LocalCluster, as_completed
from job import Job, Trainer, prepare, print_result, read


def load(file: str, weight: int) -> list[dict[str, np.ndarray]]:
    return [prepare(batch, weight) for batch in read(file)]


def stream(client: Client, job: Job) -> Iterator[dict[str, np.ndarray]]:
    files = iter(job.files())
    first = [client.submit(load, file, job.weight, pure=False) for file in islice(files, 2 * job.workers)]
    completed = as_completed(first, with_results=True)
    for _, batches in completed:
        for file in islice(files, 1):
            completed.add(client.submit(load, file, job.weight, pure=False))
        yield from batches


def main() -> None:
    job = Job.from_arguments()
    with (
        LocalCluster(n_workers=job.workers, threads_per_worker=1, memory_limit="4GiB", dashboard_address=None) as cluster,
        Client(cluster, direct_to_workers=True) as client,
    ):
        measured = Trainer().train(stream(client, job))
    print_result("dask", {"distributed": distributed.__version__}, measured)


if __name__ == "__main__":
    main()
