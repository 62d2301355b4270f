"""What MPICH needs in /dev/shm: what a world takes where there is plenty, and from which size on it starts.

    python benchmarks/shared_memory.py [--ranks 1 2 3]   (all but the first column needs root, for a /dev/shm of its own)

By default UCX, under MPICH, takes some for itself as well. Where there is little it does without; in between it may take
what MPICH then misses, and a rank dies of SIGBUS: so the smallest size that starts is not one to rely on, and the figure
to rely on is the one from which every larger size starts too. ghee tells UCX to leave shared memory to MPICH.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ghee.launch.local import MPI_SETTINGS

MIB = 1 << 20
WORLDS = (1, 2, 3, 4, 6, 8)

RANK = """
import os, shutil
from mpi4py import MPI
world = MPI.COMM_WORLD
world.Bcast(bytearray(1 << 20))
assert len(world.alltoall([bytes(100_000)] * world.size)) == world.size
world.Barrier()
if world.rank == 0:
    print("used", shutil.disk_usage("/dev/shm").used)
world.Barrier()
"""


def start_world(size: int, settings: dict[str, str], shared: int | None = None) -> int | None:
    """Bytes that a world of `size` ranks takes; in a /dev/shm of `shared` bytes; None if it does not start."""
    command = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(size), sys.executable, "-c", RANK]
    if shared is not None:
        inside = f'mount -t tmpfs -o size={shared} tmpfs /dev/shm && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", inside, "sh", *command]
    before = 0 if shared is not None else shutil.disk_usage("/dev/shm").used
    environment = {**os.environ, **settings}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    said = [line for line in done.stdout.splitlines() if line.startswith("used ")]
    return int(said[0].split()[1]) - before if done.returncode == 0 and said else None


def find_sizes(size: int, settings: dict[str, str]) -> tuple[int, int]:
    """The smallest /dev/shm in MiB in which a world starts, and the one from which on it starts in every larger one."""
    sizes = range(size, 9 * size + 2)
    works = {mib: start_world(size, settings, mib * MIB) is not None for mib in sizes}
    last_failing = max((mib for mib in sizes if not works[mib]), default=0)
    return min(mib for mib in sizes if works[mib]), min(mib for mib in sizes if mib > last_failing)


def main() -> None:
    """Print a table for MPICH as it comes, and one with ghee's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(WORLDS), help="sizes of the worlds")
    worlds = parser.parse_args().ranks
    for settings in ({}, MPI_SETTINGS):
        print(f"settings {settings}; MiB, and MiB for each rank")
        print(
            "ranks | taken where there is plenty | smallest that starts | starts in this and every larger one up to 9 a rank"
        )
        for size in worlds:
            full = start_world(size, settings)
            assert full is not None
            figures: list[float] = [full / MIB]
            if os.geteuid() == 0:
                figures += find_sizes(size, settings)
            print(f"{size:5} | " + " | ".join(f"{mib:.1f} ({mib / size:.2f})" for mib in figures), flush=True)


if __name__ == "__main__":
    main()
