"""PyTorch DataLoader: one worker, batch_size=None, tensors in shared memory."""

import os
import sys
from collections.abc import Iterator

import torch
from hop import measure_sizes, receive, send, sizes_from
from job import print_result
from torch.utils.data import DataLoader, IterableDataset


class Arrays(IterableDataset[torch.Tensor]):
    def __init__(self, size: int, count: int) -> None:
        self.size, self.count = size, count

    def __iter__(self) -> Iterator[torch.Tensor]:
        # A new tensor around the same bytes each time: the loader copies it into shared memory, as it does any batch.
        return map(torch.from_numpy, send(self.size, self.count))


def one(size: int, count: int) -> dict[str, float]:
    loader = DataLoader(Arrays(size, count), batch_size=None, num_workers=1, prefetch_factor=8)
    return receive(loader, size, count, os.getpid())


if __name__ == "__main__":
    print_result("dataloader", {"torch": torch.__version__}, measure_sizes(sizes_from(sys.argv[1:]), one))
