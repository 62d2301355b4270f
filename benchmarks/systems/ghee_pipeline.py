"""ghee: read and prepare on the workers' ranks, train on one rank; measured inside the trainer's loop as for the others."""

import functools

from job import BATCH, Job, Trainer, prepare, print_result

import ghee


def train(batches):
    return Trainer().train(batches)


if __name__ == "__main__":
    job = Job.from_arguments()
    batches = ghee.read(job.folder / "*.parquet", batch_size=BATCH)
    pipeline = batches.map(functools.partial(prepare, weight=job.weight), replicas=job.workers).loop(train)
    run = ghee.run(pipeline, progress=False)
    print(run.report)
    print_result("ghee", {"ghee": "0.1.0"}, run.result)
