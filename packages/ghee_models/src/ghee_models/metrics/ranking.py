"""Top-k ranking and its metrics. Totals of disjoint sets of users merge exactly, so ranks add up to one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


def top_k(scores: Floats, k: int) -> Indices:
    """The k best columns of every row, best first; equal scores: the lower column first.

    A column scored -inf is never given; where fewer than k are left, the row ends with -1.
    """
    rows, columns = scores.shape
    k_given = min(k, columns)
    kth = np.partition(scores, columns - k_given, axis=1)[:, columns - k_given : columns - k_given + 1]
    above, tied = scores > kth, scores == kth
    room = k_given - above.sum(1, keepdims=True)
    chosen = above | (tied & (np.cumsum(tied, axis=1) <= room))
    found = np.nonzero(chosen)[1].reshape(rows, k_given)
    values = np.take_along_axis(scores, found, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    best = np.take_along_axis(found, order, axis=1).astype(np.int64)
    best[np.take_along_axis(values, order, axis=1) == -np.inf] = -1
    if k_given < k:
        best = np.concatenate([best, np.full((rows, k - k_given), -1, dtype=np.int64)], axis=1)
    return best


@dataclass
class RankingTotals:
    """Sums over users from which every ranking metric follows.

    Per user with at least one relevant item, for each k (RecBole 1.2's and the field's usual definitions):
    recall@k = hits / relevant; precision@k = hits / k; hit@k = any hit; mrr@k = 1 / rank of the first hit;
    ndcg@k = sum over hits of 1 / log2(rank + 1), divided by that sum for min(k, relevant) hits in front.
    Over all users: coverage@k = distinct items recommended / items; gini@k = Gini coefficient of how often each item
    is recommended (0 even, 1 one item only); diversity@k = mean over users of the mean of 1 - cosine over the pairs
    of the list.
    """

    items: int
    ks: tuple[int, ...] = (10,)
    users: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    recommended: dict[int, Indices] = field(default_factory=dict)

    def add(
        self, top: Indices, row: Indices, item: Indices, vectors: npt.NDArray[np.float32] | None = None
    ) -> RankingTotals:
        """Counts the lists `top` (users x at least max(ks)); relevant are the pairs (`row` of top, `item`).

        Rows without a relevant item do not count. `vectors` (items x dimensions) adds diversity.
        """
        relevant = np.bincount(row, minlength=len(top)).astype(np.int64)
        keys = np.unique(row * np.int64(self.items) + item)
        wanted = np.arange(len(top))[:, None] * np.int64(self.items) + np.maximum(top, 0)
        hits = np.isin(wanted, keys) & (top >= 0)
        counted = relevant > 0
        top, hits, relevant = top[counted], hits[counted], relevant[counted]
        self.users += len(top)
        for k in self.ks:
            self._add_k(k, hits[:, :k], relevant)
            shown = top[:, :k]
            counts = np.bincount(shown[shown >= 0], minlength=self.items)
            self.recommended[k] = self.recommended.get(k, np.zeros(self.items, dtype=np.int64)) + counts
            if vectors is not None and len(shown):
                self._sum(f"diversity@{k}", _diversity(shown, vectors))
        return self

    def _add_k(self, k: int, hits: npt.NDArray[np.bool_], relevant: Indices) -> None:
        discount = 1 / np.log2(np.arange(2, k + 2))
        ideal = np.cumsum(discount)
        first = hits.argmax(1)
        self._sum(f"recall@{k}", hits.sum(1) / relevant)
        self._sum(f"precision@{k}", hits.sum(1) / k)
        self._sum(f"hit@{k}", hits.max(axis=1))
        self._sum(f"mrr@{k}", np.where(hits.any(1), 1 / (first + 1), 0.0))
        self._sum(f"ndcg@{k}", (hits * discount[: hits.shape[1]]).sum(1) / ideal[np.minimum(relevant, k) - 1])

    def _sum(self, name: str, values: npt.NDArray[Any]) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(np.asarray(values, dtype=np.float64).sum())

    def merge(self, other: RankingTotals) -> RankingTotals:
        """Adds the totals of other users to these."""
        self.users += other.users
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for k, counts in other.recommended.items():
            self.recommended[k] = self.recommended.get(k, np.zeros(self.items, dtype=np.int64)) + counts
        return self

    def result(self) -> dict[str, float]:
        """Every metric by name. Empty when no user counts."""
        if not self.users:
            return {}
        metrics = {name: value / self.users for name, value in self.sums.items()}
        for k, counts in self.recommended.items():
            metrics[f"coverage@{k}"] = float((counts > 0).sum() / self.items)
            metrics[f"gini@{k}"] = gini(counts)
        return metrics


def _diversity(top: Indices, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norms, 1e-12)
    shown = unit[np.maximum(top, 0)] * (top >= 0)[..., None]
    n = (top >= 0).sum(1).astype(np.float64)
    # sum over pairs of u.v = (|sum u|^2 - sum |u|^2) / 2
    together = ((shown.sum(1) ** 2).sum(1) - (shown**2).sum((1, 2))) / 2
    pairs = n * (n - 1) / 2
    diversity: npt.NDArray[np.float64] = np.where(pairs > 0, 1 - together / np.maximum(pairs, 1), 0.0)
    return diversity


def gini(counts: Indices | Sequence[int]) -> float:
    """Gini coefficient of counts: 0 when all are equal, near 1 when one has all. 0 when there is nothing."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))
    n, total = len(ordered), ordered.sum()
    if n == 0 or total == 0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))
