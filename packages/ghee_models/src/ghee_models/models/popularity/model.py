"""Popularity as a recommender: score(u, i) = number of interactions of i in training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ghee_models.models.popularity.card import CARD, Config
from ghee_models.recommender import ClosedFormRecommender, Indices, Scores


class Popularity(ClosedFormRecommender[Config]):
    """score(u, i) = count(i): the baseline that every personal model has to beat."""

    card = CARD
    _counts: Scores

    def fit(self) -> None:
        self._counts = self.popularity

    def scores(self, users: Indices) -> Scores:
        return np.broadcast_to(self._counts, (len(users), len(self._counts)))

    def weights(self) -> Mapping[str, torch.Tensor]:
        return {"counts": torch.from_numpy(self._counts)}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._counts = weights["counts"].numpy()
