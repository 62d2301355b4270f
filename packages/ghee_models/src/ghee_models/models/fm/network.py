"""The factorization machine as a torch module."""

from __future__ import annotations

import torch
from torch import nn

from ghee_models.sparse import FieldEmbedding, Linear, SparseLayout, pairwise


class FMNetwork(nn.Module):
    """y = bias + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j over fields (Rendle 2010, eq. 1)."""

    def __init__(self, layout: SparseLayout, dim: int, embedding: str, buckets: int) -> None:
        super().__init__()
        self.linear = Linear(layout)
        self.factors = FieldEmbedding(layout, dim, kind=embedding, buckets=buckets)

    def forward(self, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.linear(ids, values) + pairwise(self.factors(ids, values))
