"""Streaming distributed processing: the public names of ghee, re-exported; nothing else lives here.

Example:
    import ghee

    ratings = ghee.read("ratings/*.parquet", batch_size=4096, epochs=5)
    ghee.run(ratings.map(preprocess, replicas=4).loop(train))
"""

from ghee import context, errors
from ghee.entry import Run, resume, run
from ghee.launch.kubernetes import Kubernetes
from ghee.pipeline import Pipeline, branches, read
from ghee.ranks.batches import Batches, Epoch
from ghee.ranks.checkpoints import checkpoint, restored
from ghee.resources import auto

__version__ = "0.1.0"

# Bound after the imports: the module `ghee.rank` took the name when it was imported.
rank, size, stage = context.rank, context.size, context.stage

__all__ = [
    "read", "branches", "auto", "Pipeline",
    "run", "resume", "Run", "Kubernetes",
    "checkpoint", "restored",
    "Batches", "Epoch",
    "rank", "size", "stage",
    "errors",
]  # fmt: skip
