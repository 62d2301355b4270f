"""No pipeline: one process reads, prepares and trains in turn. Gives the limit of two cores too."""

import time

import torch
from job import Job, Trainer, prepare, print_result, read

job = Job.from_arguments()
spent = {"read_s": 0.0, "prepare_s": 0.0}


def stream():
    for file in job.files():
        batches, asked = read(file), time.monotonic()
        for batch in batches:
            got = time.monotonic()
            prepared = prepare(batch, job.weight)
            done = time.monotonic()
            spent["read_s"] += got - asked
            spent["prepare_s"] += done - got
            yield prepared
            asked = time.monotonic()


if __name__ == "__main__":
    measured = Trainer().train(stream())
    work = measured["step_s"] + sum(spent.values())
    limit = max(measured["step_s"], work / 2)
    print_result("null", {"torch": torch.__version__}, {**measured, **spent, "two_core_limit_s": limit})
