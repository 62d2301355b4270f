"""ghee: a map rank yields the batches, a loop rank takes them."""

import functools
import os
import sys

from hop import measure_sizes, receive, send, sizes_from
from job import print_result

import ghee


def make(count: int, size: int):
    yield from send(size, count)


def take(batches, size: int, count: int, root: int):
    return receive(batches, size, count, root)


def one(size: int, count: int) -> dict[str, float]:
    sent = ghee.read([count]).map(functools.partial(make, size=size))
    return ghee.run(sent.loop(functools.partial(take, size=size, count=count, root=os.getpid())), progress=False).result


if __name__ == "__main__":
    print_result("ghee", {"ghee": "0.1.0"}, measure_sizes(sizes_from(sys.argv[1:]), one))
