"""Ray: an actor whose method returns the batch, eight calls in flight, taken with ray.get."""

import os
import sys
from collections import deque

import ray
from hop import POOL, measure_sizes, pool, receive, sizes_from
from job import print_result

IN_FLIGHT = 8


@ray.remote
class Sender:
    def __init__(self, size: int) -> None:
        self.arrays = pool(size)

    def make(self, number: int):
        return self.arrays[number % POOL]


def stream(size: int, count: int):
    sender, waiting = Sender.remote(size), deque()
    for number in range(count):
        waiting.append(sender.make.remote(number))
        if len(waiting) == IN_FLIGHT:
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


if __name__ == "__main__":
    ray.init(num_cpus=2, object_store_memory=2 * 2**30, include_dashboard=False, log_to_driver=False)
    measured = measure_sizes(
        sizes_from(sys.argv[1:]), lambda size, count: receive(stream(size, count), size, count, os.getpid())
    )
    ray.shutdown()
    print_result("ray", {"ray": ray.__version__}, measured)
