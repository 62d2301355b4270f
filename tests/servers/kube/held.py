"""One cluster for one or more processes that run tests, and whose turn it is in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from servers.kube import images
from servers.kube.cluster import Cluster

VARIABLE = "GHEE_TEST_CLUSTER"
IMAGE = "localhost/try:1"
# What is large, and no test or example imports in a Pod. torch is mounted where it is needed: it has gigabytes.
_LEFT_OUT = (
    "IPython", "_pytest", "aio", "grimp", "hypothesis", "mypy", "mypyc", "nvidia", "pandas", "pip", "pygments", "rich",
    "ruff", "setuptools", "torch", "triton",
)  # fmt: skip


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """The cluster that $GHEE_TEST_CLUSTER names, else one of this process; it holds the image ``IMAGE``, which is the
    environment that this runs in, so that ``sys.executable`` is its Python. The image's archive is STATE/python.tar.
    """
    if named := os.environ.get(VARIABLE):
        yield Cluster.join(Path(named))
        return
    images.check_place(images.environment())
    with Cluster() as kube:
        mounted = Path(sysconfig.get_path("purelib")).glob("torch/lib/*.so*")
        archive = images.python_image(kube.state / "python.tar", IMAGE, leave_out=_LEFT_OUT, needed_by=mounted)
        kube.import_image(archive)
        yield kube


@contextlib.contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Waits until no other process of the shared cluster has it alone, or, for ``alone``, until no other uses it."""
    if VARIABLE not in os.environ:
        yield
        return
    folder = Path(os.environ[VARIABLE])
    with open(folder / "gate", "w") as gate, open(folder / "floor", "w") as floor:
        fcntl.flock(gate, fcntl.LOCK_EX)  # who waits to be alone stands in it: nobody else gets past
        fcntl.flock(floor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def namespace() -> str:
    """A namespace's name that no other process of this machine takes."""
    return f"restricted-{os.getpid()}"
