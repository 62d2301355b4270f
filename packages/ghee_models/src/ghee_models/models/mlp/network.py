"""A deep network for sparse rows, of one or several outputs."""

from __future__ import annotations

import torch
from torch import nn

from ghee_models.sparse import FieldEmbedding, Linear, SparseLayout, perceptron


class SparseMLP(nn.Module):
    """y = linear(x) + MLP([v_1 x_1, ..., v_F x_F]): wide and deep parts over the same fields (Cheng et al. 2016)."""

    def __init__(
        self,
        layout: SparseLayout,
        dim: int,
        hidden: list[int],
        dropout: float,
        outputs: int,
        embedding: str,
        buckets: int,
    ) -> None:
        super().__init__()
        self.linear = Linear(layout, outputs)
        self.factors = FieldEmbedding(layout, dim, kind=embedding, buckets=buckets)
        self.deep = perceptron(len(layout.slots) * dim, hidden, outputs, dropout)

    def forward(self, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.linear(ids, values) + self.deep(self.factors(ids, values).flatten(1))
