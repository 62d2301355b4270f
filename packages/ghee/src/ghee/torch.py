"""PyTorch in a stage: `torch.distributed` from the stage's world in one call, and the stream as a torch dataset.

import ghee.torch

def train(batches):
    ghee.torch.init_process_group()
    model = DistributedDataParallel(Net())
    for epoch in batches.epochs():
        for batch in DataLoader(ghee.torch.dataset(epoch), batch_size=None):
            ...
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from ghee import context
from ghee.errors import GheeError

_INTERFACE = "GLOO_SOCKET_IFNAME"


def init_process_group(*, timeout: datetime.timedelta | None = None) -> torch.device:
    """Set up `torch.distributed` for the ranks of this stage's world; every one of them has to call it.

    The backend is nccl if the stage asked for gpus and each rank of the world can have one of its own, otherwise gloo.
    Returns the device that the rank is to use. The ranks meet through a file in the run's private folder, and gloo
    listens on the loopback interface only, unless GLOO_SOCKET_IFNAME says otherwise. `timeout` is of a collective;
    by default torch's. The process group is destroyed by ghee when every rank of the run has returned.

    Raises GheeError outside of a run, with `on="inline"` and several ranks, and if it was set up already.
    """
    place = context.current()
    if place is None:
        raise GheeError(
            "ghee.torch.init_process_group() was called outside of a run: call it in the function of a .loop(...) "
            "or .map(...), which runs in the ranks of a stage"
        )
    if place.inline and place.size > 1:
        raise GheeError(
            f'stage {place.stage!r} has {place.size} ranks, which on="inline" are threads of one process, and '
            'torch.distributed has one rank in a process: use on="local", or one rank (replicas=1) for a debugger'
        )
    if torch.distributed.is_initialized():
        raise GheeError(
            f"torch.distributed is set up already in this process (stage {place.stage!r}, rank {place.rank}): call "
            'ghee.torch.init_process_group() once in each rank, and with on="inline" in one stage only'
        )
    nccl = _has_gpu_for_each(place)
    device = torch.device("cuda", place.rank) if nccl else torch.device("cpu")
    if nccl:
        torch.cuda.set_device(device)
    store = torch.distributed.FileStore(os.path.join(place.folder, f"torch-{place.world}"), place.size)
    set_here = _INTERFACE not in os.environ
    os.environ.setdefault(_INTERFACE, "lo")
    torch.distributed.init_process_group(
        "nccl" if nccl else "gloo", store=store, rank=place.rank, world_size=place.size, timeout=timeout
    )

    def destroy() -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if set_here:
            os.environ.pop(_INTERFACE, None)

    place.at_end.append(destroy)
    return device


def _has_gpu_for_each(place: context.Place) -> bool:
    """NCCL refuses two ranks on one GPU."""
    return place.gpus > 0 and torch.distributed.is_nccl_available() and torch.cuda.device_count() >= place.size


def dataset(batches: Iterable[Any]) -> IterableDataset[Any]:
    """The stream of a loop, or one of its epochs, as a torch dataset.

    For `torch.utils.data.DataLoader(ghee.torch.dataset(batches), batch_size=None)`, which makes tensors of arrays and
    pins them if it is told to. The batches are batches already, hence `batch_size=None`; they are read ahead by ghee,
    hence no `num_workers`: iterating raises GheeError in a worker of a DataLoader.
    """
    return _StreamDataset(batches)


class _StreamDataset(IterableDataset):  # type: ignore[misc]  # torch is Any to mypy
    def __init__(self, batches: Iterable[Any]) -> None:
        super().__init__()
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise GheeError(
                "a ghee stream cannot be read in the workers of a DataLoader, which are other processes: leave "
                "num_workers=0, and give the work to a .map(function, replicas=...) before the loop"
            )
        return iter(self._batches)
