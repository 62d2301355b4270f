"""EASE as a recommender."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import torch

from ghee_models.errors import TrainingError
from ghee_models.models.ease.card import CARD, Config
from ghee_models.recommender import ClosedFormRecommender, Indices, Scores


class EASE(ClosedFormRecommender[Config]):
    """B = I - P diag(P)^-1 with P = (X'X + lambda I)^-1, so diag(B) = 0; score(u, .) = x_u B (Steck 2019, eq. 8).

    Linear in the items only for the interactions; B is dense: the items are limited by `max_items`.
    """

    card = CARD
    _b: Scores

    def fit(self) -> None:
        """Computes B, (items, items) float32, in O(items^3) time. Raises TrainingError above `max_items` items."""
        n = self.items.size
        if n > self.config.max_items:
            raise TrainingError(
                f"EASE would hold {n} x {n} numbers ({n * n * 16 / 2**30:.0f} GiB while it inverts); model.max_items is "
                f"{self.config.max_items}. Raise it if the memory is there, drop rare items (data.min_count), or use "
                "itemknn or lightgcn."
            )
        pairs = self.pairs
        ones = np.ones(len(pairs.users))
        x = sp.csr_matrix((ones, (pairs.users, pairs.items)), shape=(self.users.size, n))
        gram = (x.T @ x).toarray()
        gram[np.diag_indices(n)] += self.config.l2
        p = scipy.linalg.inv(gram, overwrite_a=True)
        b = p / -np.diag(p)
        np.fill_diagonal(b, 0.0)
        self._b = b.astype(np.float32)

    def scores(self, users: Indices) -> Scores:
        row, item = self.pairs.of_users(users)
        history = sp.csr_matrix((np.ones(len(row), np.float32), (row, item)), shape=(len(users), self.items.size))
        found: Scores = history @ self._b
        return found

    def weights(self) -> Mapping[str, torch.Tensor]:
        return {"b": torch.from_numpy(self._b)}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._b = weights["b"].numpy()
