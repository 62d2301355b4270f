"""Samplers of negative items for implicit feedback.

uniform      every item alike, the user's own items rejected (Rendle et al. 2009)
popularity   in proportion to count ** alpha (Mikolov et al. 2013 use 0.75), the user's own items rejected
in-batch     another row's positive item of the same batch (popular items are drawn more often)
mixed        a share of the negatives in-batch, the rest uniform (Yang et al. 2020, mixed negative sampling)
"""

from __future__ import annotations

from typing import Protocol

import torch

from ghee_models.settings import SAMPLERS, SamplerConfig

_ROUNDS = 32  # a user who has nearly every item would be sampled for ever


class Known:
    """Which (user, item) pairs are positive: sorted keys, searched; 8 bytes per pair."""

    def __init__(self, users: torch.Tensor, items: torch.Tensor, n_items: int) -> None:
        self.n_items = n_items
        self.keys = torch.unique(users.long() * n_items + items.long())

    def contains(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """A boolean for every (user, item); the two broadcast."""
        wanted = users * self.n_items + items
        at = torch.searchsorted(self.keys, wanted).clamp_(max=len(self.keys) - 1)
        return self.keys[at] == wanted


class Draw(Protocol):
    """Proposes items for `shape` places; `positives` are the batch's."""

    def __call__(self, shape: tuple[int, int], positives: torch.Tensor, generator: torch.Generator) -> torch.Tensor: ...


class Sampler:
    """Draws negatives by proposal and rejection of what the user is known to like.

    `sampler.sample(users, positives, generator)` gives an int64 tensor (rows, negatives). Item indices below
    `first` (the unknown item) are never drawn. After 32 rounds a rejected draw stays: the user has nearly all items.
    """

    def __init__(self, draw: Draw, known: Known, negatives: int) -> None:
        self.draw, self.known, self.negatives = draw, known, negatives

    def sample(self, users: torch.Tensor, positives: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Item indices (rows, negatives), int64, for users and positives (rows,); all randomness is the generator's."""
        shape = (len(users), self.negatives)
        drawn = self.draw(shape, positives, generator)
        owner = users[:, None].expand(shape)
        for _ in range(_ROUNDS):
            rejected = self.known.contains(owner, drawn)
            n = int(rejected.sum())
            if n == 0:
                break
            drawn[rejected] = self.draw((n, 1), positives, generator)[:, 0]
        return drawn


def make_sampler(config: SamplerConfig, known: Known, counts: torch.Tensor, first: int) -> Sampler:
    """The sampler that the config names; `counts` are the items' counts in training.

    Raises ValueError for another name.
    """
    n_items = known.n_items

    def uniform(shape: tuple[int, int], positives: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(first, n_items, shape, generator=generator)

    weights = counts.double().clamp(min=1) ** config.alpha
    weights[:first] = 0
    cumulative = torch.cumsum(weights / weights.sum(), 0)

    def popular(shape: tuple[int, int], positives: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        points = torch.rand(shape, generator=generator, dtype=torch.float64)
        return torch.searchsorted(cumulative, points).clamp_(first, n_items - 1)

    def in_batch(shape: tuple[int, int], positives: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return positives[torch.randint(0, len(positives), shape, generator=generator)]

    def mixed(shape: tuple[int, int], positives: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        inside = torch.rand(shape, generator=generator) < config.mix
        return torch.where(inside, in_batch(shape, positives, generator), uniform(shape, positives, generator))

    draws: dict[str, Draw] = {"uniform": uniform, "popularity": popular, "in-batch": in_batch, "mixed": mixed}
    if config.name not in draws:
        raise ValueError(f"sampler.name is {config.name!r}; allowed: {', '.join(SAMPLERS)}.")
    return Sampler(draws[config.name], known, config.negatives)
