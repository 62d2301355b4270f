"""MPICH's shared memory without a name, so that `kill -9` of everything leaves nothing in /dev/shm.

MPICH keeps the files of a world (`/dev/shm/mpich_shm_*`) until MPI_Finalize, which a killed rank never calls. Nobody
needs the names once MPI_Init has returned, for every rank of the host has mapped them by then: they go at that moment,
and the memory goes with the last process that has it mapped.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_FILES = "/dev/shm/mpich_shm_"


class UnlinkAfterImport(MetaPathFinder):
    """To be put at the head of `sys.meta_path`: acts once `mpi4py.MPI` was imported, which calls MPI_Init."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the other finders give, with a step added to its execution."""
        del path, target
        if name != "mpi4py.MPI":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = functools.partial(_execute, spec.loader.exec_module)
            spec.loader.exec_module = execute  # type: ignore[method-assign]
        return spec


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    unlink_shared_memory()


def unlink_shared_memory() -> None:
    """Take away the names of MPICH's files that this process has mapped."""
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if _FILES in line}
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:  # another rank was faster, or it has no name any more ("... (deleted)")
            pass
