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
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from ghee import context
from ghee.errors import GheeError
from ghee.install import how_to_install

try:
    import torch
    import torch.distributed
    from torch.utils.data import IterableDataset, get_worker_info
except ModuleNotFoundError as missing:
    if missing.name != "torch":  # torch itself is there, and what it needs is not: that is what is to be said
        raise
    raise ModuleNotFoundError(f"ghee.torch needs PyTorch: {how_to_install('torch')}", name="torch") from missing

_INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915


def init_process_group(*, timeout: datetime.timedelta | None = None) -> torch.device:
    """Set up `torch.distributed` for the ranks of this stage's world; every one of them has to call it.

    The backend is nccl if the stage asked for gpus and each rank of the world can have one of its own, otherwise gloo.
    Returns the device that the rank is to use. The ranks meet through a file in the run's private folder, on a cluster at
    rank 0's Pod. gloo listens on the loopback interface only, on a cluster on the Pod's, unless GLOO_SOCKET_IFNAME says
    otherwise. `timeout` is of a collective; by default torch's. The process group is destroyed by ghee when every rank of
    the run has returned.

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
    number, here = _ranks_of_machine(place)
    nccl = _has_gpu_for_each(place, here)
    device = torch.device("cuda", number) if nccl else torch.device("cpu")
    if nccl:
        torch.cuda.set_device(device)
    store = _meet_on_cluster(place) if place.address else _meet_here(place)
    set_here = _INTERFACE not in os.environ
    os.environ.setdefault(_INTERFACE, _interface(place.address) if place.address else "lo")
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


def _meet_here(place: context.Place) -> Any:
    return torch.distributed.FileStore(os.path.join(place.folder, f"torch-{place.world}"), place.size)


def _meet_on_cluster(place: context.Place) -> Any:
    """Ranks on several Pods share no folder: rank 0 listens at its Pod's address and tells the others by MPI where."""
    from mpi4py import MPI

    store = None
    if place.rank == 0:
        store = torch.distributed.TCPStore(place.address, 0, place.size, is_master=True, wait_for_workers=False)
    where = MPI.COMM_WORLD.bcast((place.address, store.port) if store is not None else None)
    return store or torch.distributed.TCPStore(*where, place.size, is_master=False)


def _interface(address: str) -> str:
    """The network interface that has the Pod's address: gloo listens there and nowhere else."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            try:
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # this interface has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    raise GheeError(f"no network interface has the Pod's address {address}: set {_INTERFACE} to the one that gloo is to use")


def _ranks_of_machine(place: context.Place) -> tuple[int, int]:
    """This rank's number among the world's ranks on the same machine or Pod, and how many these are."""
    if not place.address:
        return place.rank, place.size
    from mpi4py import MPI

    machine = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    return machine.Get_rank(), machine.Get_size()


def _has_gpu_for_each(place: context.Place, ranks: int) -> bool:
    """NCCL refuses two ranks on one GPU."""
    return place.gpus > 0 and torch.distributed.is_nccl_available() and torch.cuda.device_count() >= ranks


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
