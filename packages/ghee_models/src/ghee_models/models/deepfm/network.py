"""DeepFM as a torch module."""

from __future__ import annotations

import torch
from torch import nn

from ghee_models.sparse import FieldEmbedding, Linear, SparseLayout, pairwise, perceptron


class DeepFMNetwork(nn.Module):
    """y = FM(x) + MLP([v_1 x_1, ..., v_F x_F]), one table for both parts (Guo et al. 2017, eq. 1-4)."""

    def __init__(
        self, layout: SparseLayout, dim: int, hidden: list[int], dropout: float, embedding: str, buckets: int
    ) -> None:
        super().__init__()
        self.linear = Linear(layout)
        self.factors = FieldEmbedding(layout, dim, kind=embedding, buckets=buckets)
        self.deep = perceptron(len(layout.slots) * dim, hidden, 1, dropout)

    def forward(self, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        vectors = self.factors(ids, values)
        return self.linear(ids, values) + pairwise(vectors) + self.deep(vectors.flatten(1))
