"""ghee: read, a map that does nothing, and a loop that counts; the time of the whole run, its start in it."""

import time
from importlib.metadata import version
from typing import Any

from scan import BATCH, Scan, print_result

import ghee


def same(batch: Any) -> Any:
    """Does nothing."""
    return batch


def count(batches: Any) -> int:
    """The rows of all epochs."""
    return sum(batch.num_rows for batch in batches)


if __name__ == "__main__":
    scan = Scan.from_arguments()
    began = time.monotonic()
    source = ghee.read(scan.url, batch_size=BATCH, epochs=scan.passes)
    run = ghee.run(source.map(same, replicas=scan.workers).loop(count), progress=False)
    seconds = time.monotonic() - began
    print_result(run.result, seconds, {"ghee": version("ghee")}, report=str(run.report))
