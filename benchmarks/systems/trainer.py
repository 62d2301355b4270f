"""The trainer alone: every batch is prepared and in memory before the clock starts."""

import torch
from job import Job, Trainer, prepare, print_result, read

job = Job.from_arguments()

if __name__ == "__main__":
    ready = [prepare(batch, job.weight) for file in job.files() for batch in read(file)]
    print_result("trainer", {"torch": torch.__version__}, Trainer().train(ready))
