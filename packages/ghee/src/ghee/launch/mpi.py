"""MPICH's shared memory without a name, so that `kill -9` of everything leaves nothing in /dev/shm.

MPICH keeps the files of a world (`/dev/shm/mpich_shm_*`) until MPI_Finalize, which a killed rank never calls. Nobody
needs the names once MPI_Init has returned, for every rank of the host has mapped them by then: they go at that moment,
and the memory goes with the last process that has it mapped. Who kills a world that may still be in MPI_Init takes its
names away.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
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
    unlink(mapped("self"))


def kill_below(pid: int) -> set[str]:
    """Kill the descendants of a process; returns the names of MPICH's files that they had mapped."""
    named = set()
    for child in _children(pid):
        try:
            os.kill(child, signal.SIGSTOP)  # what it has mapped and started is not to change any more
            named |= mapped(str(child)) | kill_below(child)
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return named


def unlink(paths: Iterable[str]) -> None:
    """Take names away."""
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:  # another rank was faster, or it has no name any more ("... (deleted)")
            pass


def parent_of(pid: int) -> int:
    """The parent of a process, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _children(pid: int) -> list[int]:
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has ended
        return []
    return [int(child) for listed in lists for child in listed.split()]


def mapped(process: str) -> set[str]:
    """The names of MPICH's files that a process has mapped."""
    try:
        with open(f"/proc/{process}/maps") as maps:
            return {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if _FILES in line}
    except OSError:  # it has ended, or is another user's
        return set()
