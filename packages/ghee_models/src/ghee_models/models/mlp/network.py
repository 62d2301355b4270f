"""A deep network for sparse rows, of one or several outputs."""

from __future__ import annotations

import torch
from torch import nn

from ghee_models.sparse import FieldEmbedding, Linear, SparseLayout, perceptron


class SparseMLP(nn.Module):
    """y = linear(x) + H b + MLP([v_1 x_1, ..., v_F x_F]) with b = sum_{i<j} v_i x_i * v_j x_j, element by element.

    Wide and deep parts over the same fields (Cheng et al. 2016); b is the pooling of pairs of He and Chua 2017, eq. 4,
    weighted for each output by H, which starts at ones: products of fields, which ReLU layers hardly learn.
    """

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
        self.pairs = nn.Linear(dim, outputs, bias=False)
        nn.init.ones_(self.pairs.weight)
        self.deep = perceptron(len(layout.slots) * dim, hidden, outputs, dropout)

    def forward(self, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        v = self.factors(ids, values)
        pooled = 0.5 * (v.sum(1).square() - v.square().sum(1))
        return self.linear(ids, values) + self.pairs(pooled) + self.deep(v.flatten(1))
