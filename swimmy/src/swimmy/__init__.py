"""Runs Python functions and MPI programs on Kubernetes Pods, with no YAML and no sshd.

The names below are all there is. They are imported when first used: an agent in a Pod must not wait for the Kubernetes
client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swimmy import errors
    from swimmy.api import ahead, attach, cancel, run, runs, submit, submit_each
    from swimmy.handle import Event, Handle, LogLine, PodView
    from swimmy.inside import rank, size
    from swimmy.kubernetes import Cluster
    from swimmy.manifests import Owner
    from swimmy.record import Ahead
    from swimmy.spec import Mpi, Pods, Volume, claim, config_map, empty_dir, host_path, mpi, secret

__version__ = "0.1.0"

_HOMES = {
    "swimmy.api": ("ahead", "attach", "cancel", "run", "runs", "submit", "submit_each"),
    "swimmy.handle": ("Event", "Handle", "LogLine", "PodView"),
    "swimmy.inside": ("rank", "size"),
    "swimmy.kubernetes": ("Cluster",),
    "swimmy.manifests": ("Owner",),
    "swimmy.record": ("Ahead",),
    "swimmy.spec": ("Mpi", "Pods", "Volume", "claim", "config_map", "empty_dir", "host_path", "mpi", "secret"),
}

__all__ = [
    "run", "submit", "submit_each", "ahead", "attach", "cancel", "runs",
    "Pods", "Mpi", "mpi", "Cluster", "Owner", "Ahead",
    "Volume", "claim", "config_map", "empty_dir", "host_path", "secret",
    "Handle", "Event", "LogLine", "PodView",
    "rank", "size", "errors",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("swimmy.errors")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'swimmy' has no attribute {name!r}")
