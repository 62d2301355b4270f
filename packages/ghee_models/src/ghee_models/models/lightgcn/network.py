"""LightGCN's propagation: a symmetric sparse adjacency that is its own backward."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from ghee_models.embeddings import Table


def normalized_adjacency(users: torch.Tensor, items: torch.Tensor, n_users: int, n_items: int) -> torch.Tensor:
    """A = D^-1/2 [[0, R], [R', 0]] D^-1/2 of distinct (user, item) pairs, as sparse CSR: 2 entries per pair."""
    n = n_users + n_items
    row = torch.cat([users, items + n_users])
    column = torch.cat([items + n_users, users])
    degree = torch.bincount(row, minlength=n).clamp(min=1).float()
    values = (degree[row] * degree[column]).rsqrt()
    order = torch.argsort(row * n + column)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(row, minlength=n).cumsum(0)])
    with warnings.catch_warnings():
        # torch calls its sparse CSR support beta: nothing that a user of ours could act on
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, column[order], values[order], (n, n), check_invariants=True)


class SymmetricProduct(torch.autograd.Function):
    """A @ x for a symmetric A. The gradient is A' @ g = A @ g: no transpose is built, as torch's own backward would."""

    @staticmethod
    def forward(ctx: Any, adjacency: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.adjacency = adjacency
        return adjacency @ x

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, ctx.adjacency @ gradients[0]


class LightGCNNetwork(nn.Module):
    """E(k+1) = A E(k); a node's vector is the mean of E(0)..E(K) (He et al. 2020, eq. 7, 8).

    Called with (users, positives, negatives) it gives the BPR loss plus `l2` times half the mean squared norm of the
    layer-0 vectors (eq. 15): the loss is computed inside `forward` so that DistributedDataParallel sees one call.
    """

    def __init__(self, n_users: int, n_items: int, dim: int, layers: int, l2: float) -> None:
        super().__init__()
        self.n_users, self.layers, self.l2 = n_users, layers, l2
        self.table = Table(n_users + n_items, dim)
        nn.init.normal_(self.table.weight, std=0.1)
        self.adjacency: torch.Tensor | None = None  # neither parameter nor buffer: rebuilt from the interactions

    def vectors(self) -> torch.Tensor:
        """The propagated vectors of all users, then of all items."""
        layer = self.table.weight
        if self.adjacency is not None and self.adjacency.device != layer.device:
            self.adjacency = self.adjacency.to(layer.device)
        total = layer
        for _ in range(self.layers):
            layer = SymmetricProduct.apply(self.adjacency, layer)
            total = total + layer
        return total / (self.layers + 1)

    def forward(self, users: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """The mean loss of indices: users and positives (rows,), negatives (rows, n), each of which counts 1/n."""
        vectors = self.vectors()
        rows = torch.cat([users, positives + self.n_users, (negatives + self.n_users).reshape(-1)])
        found = vectors.index_select(0, rows)
        u, p, n = self._parts(found, negatives)
        margin = (u * p).sum(-1, keepdim=True) - (u[:, None] * n).sum(-1)
        loss = nn.functional.softplus(-margin).mean()
        own = self._parts(self.table(rows), negatives)
        squares = own[0].square().sum() + own[1].square().sum() + own[2].square().sum() / negatives.shape[1]
        return loss + self.l2 * squares / (2 * len(users))

    @staticmethod
    def _parts(found: torch.Tensor, negatives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The rows of users, positives and negatives again."""
        rows, number = negatives.shape
        return found[:rows], found[rows : 2 * rows], found[2 * rows :].view(rows, number, -1)
