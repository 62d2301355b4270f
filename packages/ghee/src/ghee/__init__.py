"""Streaming distributed processing: the public names of ghee, re-exported; nothing else lives here.

Example:
    import ghee

    ratings = ghee.read("ratings/*.parquet", batch_size=4096, epochs=5)
    ghee.run(ratings.map(preprocess, replicas=4).loop(train))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghee import errors
    from ghee.context import rank, size, stage
    from ghee.entry import Run, resume, run
    from ghee.launch.kubernetes import Kubernetes
    from ghee.pipeline import Pipeline, branches, read
    from ghee.ranks.batches import Batches, Epoch
    from ghee.ranks.checkpoints import checkpoint, restored
    from ghee.resources import auto

__version__ = "0.1.0"

__all__ = [
    "read", "branches", "auto", "Pipeline",
    "run", "resume", "Run", "Kubernetes",
    "checkpoint", "restored",
    "Batches", "Epoch",
    "rank", "size", "stage",
    "errors",
]  # fmt: skip

_PLACES = {
    "ghee.context": ("rank", "size", "stage"),
    "ghee.entry": ("Run", "resume", "run"),
    "ghee.launch.kubernetes": ("Kubernetes",),
    "ghee.pipeline": ("Pipeline", "branches", "read"),
    "ghee.ranks.batches": ("Batches", "Epoch"),
    "ghee.ranks.checkpoints": ("checkpoint", "restored"),
    "ghee.resources": ("auto",),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a rank needs a tenth of what the driver does, and starts often."""
    for module, names in _PLACES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(module), name)
            return value
    if name == "errors":
        return importlib.import_module("ghee.errors")
    raise AttributeError(f"module 'ghee' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
