"""Dask: one worker, one task per batch, eight in flight, results straight from the worker."""

import os
import sys
from itertools import islice

import distributed
import numpy as np
from dask.distributed import Client, LocalCluster, as_completed
from hop import POOL, measure_sizes, pool, receive, sizes_from
from job import print_result

IN_FLIGHT = 8
held: dict[int, list[np.ndarray]] = {}


def make(size: int, number: int) -> np.ndarray:
    if size not in held:
        held[size] = pool(size)
    return held[size][number % POOL]


def stream(client: Client, size: int, count: int):
    numbers = iter(range(count))
    first = [client.submit(make, size, number, pure=False) for number in islice(numbers, IN_FLIGHT)]
    completed = as_completed(first, with_results=True)
    for _, array in completed:
        for number in islice(numbers, 1):
            completed.add(client.submit(make, size, number, pure=False))
        yield array


def main() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="4GiB", dashboard_address=None) as cluster,
        Client(cluster, direct_to_workers=True) as client,
    ):
        measured = measure_sizes(
            sizes_from(sys.argv[1:]),
            lambda size, count: receive(stream(client, size, count), size, count, os.getpid()),
        )
    print_result("dask", {"distributed": distributed.__version__}, measured)


if __name__ == "__main__":
    main()
