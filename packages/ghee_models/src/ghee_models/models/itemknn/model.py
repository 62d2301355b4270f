"""ItemKNN as a recommender; similarities stay sparse."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp
import torch

from ghee_models.models.itemknn.card import CARD, Config
from ghee_models.recommender import ClosedFormRecommender, Indices, Scores

_BLOCK = 1024  # items whose similarities are computed at once


class ItemKNN(ClosedFormRecommender[Config]):
    """s(i, j) = |U_i and U_j| / (sqrt(|U_i| |U_j|) + shrink), the k largest per item i;
    score(u, i) = sum of s(i, j) over the user's items j.
    """

    card = CARD
    _similar: sp.csr_matrix

    def fit(self) -> None:
        """Computes s by blocks of items as a sparse (items, items) matrix with at most `neighbours` entries a row."""
        matrix = self._interactions().tocsc()
        counts = np.sqrt(np.asarray(matrix.sum(0)).ravel())
        data, rows, columns = [], [], []
        for start in range(0, matrix.shape[1], _BLOCK):
            block = (matrix[:, start : start + _BLOCK].T @ matrix).tocsr()
            for n in range(block.shape[0]):
                item = start + n
                near = block.indices[block.indptr[n] : block.indptr[n + 1]]
                together = block.data[block.indptr[n] : block.indptr[n + 1]]
                other = near != item
                near = near[other]
                value = together[other] / (counts[item] * counts[near] + self.config.shrink)
                best = np.lexsort((near, -value))[: self.config.neighbours]
                data.append(value[best])
                rows.append(np.full(len(best), item))
                columns.append(near[best])
        shape = (matrix.shape[1], matrix.shape[1])
        parts = np.concatenate(data), (np.concatenate(rows), np.concatenate(columns))
        self._similar = sp.csr_matrix(parts, shape=shape, dtype=np.float32)

    def _interactions(self) -> sp.csr_matrix:
        pairs = self.pairs
        ones = np.ones(len(pairs.users), dtype=np.float32)
        return sp.csr_matrix((ones, (pairs.users, pairs.items)), shape=(self.users.size, self.items.size))

    def scores(self, users: Indices) -> Scores:
        """score(u, .) = x_u s', where x_u marks the items of u: (users, items) float32."""
        row, item = self.pairs.of_users(users)
        ones = np.ones(len(row), dtype=np.float32)
        history = sp.csr_matrix((ones, (row, item)), shape=(len(users), self.items.size))
        found: Scores = (history @ self._similar.T).toarray()
        return found

    def weights(self) -> Mapping[str, torch.Tensor]:
        s = self._similar
        return {name: torch.from_numpy(getattr(s, name)) for name in ("data", "indices", "indptr")}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        parts = tuple(weights[name].numpy() for name in ("data", "indices", "indptr"))
        self._similar = sp.csr_matrix(parts, shape=(self.items.size, self.items.size))
