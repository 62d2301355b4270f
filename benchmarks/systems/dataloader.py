"""PyTorch DataLoader: workers yield whole batches of tensors (batch_size=None), which travel in shared memory."""

from collections.abc import Iterator

import torch
from job import Job, Trainer, prepare, print_result, read
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Files(IterableDataset[dict[str, torch.Tensor]]):
    """Each worker takes every n-th file, as the documentation of IterableDataset shows."""

    def __init__(self, files: list[str], weight: int) -> None:
        self.files, self.weight = files, weight

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        for file in self.files[worker.id :: worker.num_workers]:
            for batch in read(file):
                yield {name: torch.from_numpy(array) for name, array in prepare(batch, self.weight).items()}


if __name__ == "__main__":
    job = Job.from_arguments()
    loader = DataLoader(
        Files(job.files(), job.weight),
        batch_size=None,
        num_workers=job.workers,
        prefetch_factor=4,
        persistent_workers=True,
        in_order=False,
    )
    print_result("dataloader", {"torch": torch.__version__}, Trainer().train(loader))
