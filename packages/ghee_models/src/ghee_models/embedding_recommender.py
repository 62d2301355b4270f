"""Recommenders with a vector per user and item, trained on pairs of a taken and a drawn item."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from ghee_models.contract import Epochs
from ghee_models.recommender import Indices, Recommender, Scores
from ghee_models.run import TrainingRun
from ghee_models.samplers import Known, Sampler, make_sampler
from ghee_models.torch_model import TorchModel

C = TypeVar("C")


class EmbeddingRecommender(TorchModel[C], Recommender[C]):
    """score(u, i) = <vector of u, vector of i>. A subclass gives the network and the vectors that follow from it.

    What is stored are the final vectors, not the network: prediction needs neither graph nor optimiser.
    """

    _vectors: tuple[Scores, Scores] | None = None

    @abstractmethod
    def vectors(self, network: nn.Module) -> tuple[Scores, Scores]:
        """(users x dimensions, items x dimensions) of the trained network; called without gradients."""

    @cached_property
    def _known(self) -> Known:
        users, items = (torch.from_numpy(side).long() for side in (self.pairs.users, self.pairs.items))
        return Known(users, items, self.items.size)

    def train(self, batches: Epochs, run: TrainingRun) -> None:
        assert self.state.item_counts is not None, "a scan of interactions always counts items"
        counts = torch.from_numpy(self.state.item_counts)
        self._sampler: Sampler = make_sampler(run.sampler, self._known, counts, first=1)
        super().train(batches, run)

    def prepare(self, batch: dict[str, torch.Tensor], run: TrainingRun) -> dict[str, torch.Tensor]:
        negatives = self._sampler.sample(batch["user"], batch["item"], run.generator)
        return {**batch, "negatives": negatives}

    def loss(self, network: nn.Module, batch: dict[str, torch.Tensor], run: TrainingRun) -> torch.Tensor:
        self._vectors = None  # they follow from the network, which is about to change
        loss: torch.Tensor = network(batch["user"], batch["item"], batch["negatives"])
        return loss

    def _final(self) -> tuple[Scores, Scores]:
        if self._vectors is None:
            assert self.network is not None, "scores before train() or load_weights()"
            with torch.inference_mode():
                users, items = self.vectors(self.network)
            self._vectors = users.copy(), items.copy()
        return self._vectors

    def scores(self, users: Indices) -> Scores:
        of_users, of_items = self._final()
        found: Scores = of_users[users] @ of_items.T
        return found

    def user_vectors(self, users: Indices) -> Scores:
        return self._final()[0][users]

    def item_vectors(self) -> Scores:
        return self._final()[1]

    def weights(self) -> Mapping[str, torch.Tensor]:
        users, items = self._final()
        return {"users": torch.from_numpy(users), "items": torch.from_numpy(items)}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._vectors = np.asarray(weights["users"].numpy()), np.asarray(weights["items"].numpy())
