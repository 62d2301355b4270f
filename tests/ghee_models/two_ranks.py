"""Trains models for ten steps on one rank, or as one of two with half of every batch; writes their weights.

python two_ranks.py '{"fm": {"dim": 4}}' OUT RANK SIZE STORE
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ghee_models import embedding_recommender, registry
from ghee_models.run import TrainingRun, World
from ghee_models.settings import SamplerConfig, TrainerConfig
from ghee_models.state import scan
from ghee_models.testing import Replay, label_kind_of, sample

torch.set_num_threads(1)
given, out, rank, size, store = sys.argv[1:]
world = World(int(rank), int(size))


class Fixed:
    """Negatives that depend on the pair alone: ranks draw by themselves, so drawn ones could not be compared."""

    def sample(self, users: torch.Tensor, items: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (1 + (users * 7 + items * 13) % 29)[:, None]


def train(id: str, values: dict[str, Any]) -> dict[str, Any]:
    cls = registry.load_class(id)
    described, rows = sample(cls.card.data, label_kind_of(cls))
    schema = cls.make_schema(described)
    model = cls(registry.card(id).config(**values), schema, scan(schema, [rows]), described)
    batches = []
    for number in range(10):
        batch = model.train_preprocess(rows.slice(number * 60, 60))
        assert batch is not None
        cut = 60 if number == 4 else 30  # of one step the second rank gets nothing
        own = slice(0, 60) if world.size == 1 else slice(0, cut) if world.rank == 0 else slice(cut, 60)
        batches.append({name: array[own] for name, array in batch.items()})
    model.train(Replay(batches, 1), TrainingRun(TrainerConfig(), SamplerConfig(), world))
    return {f"{id}.{name}": tensor.numpy() for name, tensor in model.weights().items()}


embedding_recommender.make_sampler = lambda *_, **__: Fixed()  # type: ignore[assignment,return-value]
if world.size > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=world.rank, world_size=world.size)
found: dict[str, Any] = {}
for id, values in json.loads(given).items():
    found |= train(id, values)
np.savez(out, **found)
if world.size > 1:
    dist.destroy_process_group()
