"""mpi4py in a user's function sees the world of its own stage."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from pathlib import Path

import cloudpickle
import pytest

import ghee

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module


@pytest.fixture(autouse=True)
def ghee_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GHEE_HOME", str(tmp_path / "ghee"))


class Members:
    """Says with each batch who belongs to the world of the rank."""

    def __init__(self):
        from mpi4py import MPI

        self.said = (ghee.rank(), ghee.size(), MPI.COMM_WORLD.Get_rank(), tuple(MPI.COMM_WORLD.allgather(os.getpid())))

    def __call__(self, batch):
        return {"number": batch["number"], "said": [self.said]}


def sum_numbers(batches):
    from mpi4py import MPI

    said, numbers = [], 0
    for batch in batches:
        said += batch["said"]
        numbers += sum(batch["number"])
    world = MPI.COMM_WORLD
    return (ghee.rank(), ghee.size(), world.Get_rank(), world.Get_size()), world.allreduce(numbers), said


def test_each_stage_and_each_map_replica_is_a_world_of_its_own():
    numbers = [{"number": [n]} for n in range(64)]
    pipeline = ghee.read(numbers).map(Members, replicas=2, ranks=2).loop(sum_numbers, replicas=2)
    handle = ghee.run(pipeline, progress=False)
    loop = handle.results["sum_numbers"]

    assert [place for place, _, _ in loop] == [(0, 2, 0, 2), (1, 2, 1, 2)]
    assert [total for _, total, _ in loop] == [sum(range(64))] * 2

    said = {entry for _, _, said in loop for entry in said}
    worlds = {members for _, _, _, members in said}
    assert len(worlds) == 2, "two replicas are two worlds"
    assert all(len(members) == 2 for members in worlds)
    assert len({pid for members in worlds for pid in members}) == 4, "no process is in both"
    for rank, size, mpi_rank, members in said:
        assert (rank, size) == (mpi_rank, len(members))


def listening_sockets():
    """(address, inode) of the sockets on which this process listens for TCP, the address as the kernel writes it."""
    mine = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            mine.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            pass  # the listing's own
    lines = [line for table in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]]
    fields = [line.split()[:10] for line in lines]
    return {(local, inode) for _, local, _, state, *_, inode in fields if state == "0A" and f"socket:[{inode}]" in mine}


def test_mpi_of_a_local_run_listens_nowhere():
    def talk(batches):
        before = listening_sockets()
        from mpi4py import MPI

        total = MPI.COMM_WORLD.allreduce(len(list(batches)))
        return total, listening_sockets() - before

    handle = ghee.run(ghee.read([1, 2, 3, 4]).loop(talk, replicas=2), progress=False)
    assert handle.results["talk"] == [(4, set()), (4, set())]


def test_what_a_world_that_is_killed_in_mpi_init_has_in_shared_memory_goes(tmp_path: Path):
    """A rank that maps a file of MPICH's name and does not answer stands for one that is killed within MPI_Init."""
    name, there = Path(f"/dev/shm/mpich_shm_{os.getpid():x}_0"), tmp_path / "there"

    def hang(batches):
        with name.open("w+b") as file:
            file.truncate(mmap.PAGESIZE)
            memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        there.touch()
        threading.Event().wait()
        memory.close()

    def fail(number):
        while not there.exists():
            os.sched_yield()
        raise ValueError("this run fails")

    with pytest.raises(ValueError, match="this run fails"):
        ghee.run(ghee.read([1]).map(fail).loop(hang), progress=False)
    assert there.exists()
    assert not name.exists()
