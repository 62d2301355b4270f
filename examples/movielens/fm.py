"""The Factorization Machine of second order (S. Rendle, "Factorization Machines", ICDM 2010) in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FactorizationMachine(nn.Module):
    r"""Rendle's model over sparse input: rows of (index, value) pairs.

    Equation (1) of the paper, with n features, a bias :math:`w_0`, weights :math:`w_i` and factors
    :math:`v_i \in R^k`:

    .. math:: \hat y(x) = w_0 + \sum_{i=1}^n w_i x_i + \sum_{i=1}^n \sum_{j=i+1}^n <v_i, v_j> x_i x_j

    The double sum is computed in linear time (Lemma 3.1):

    .. math:: \frac12 \sum_{f=1}^k \Big[\Big(\sum_i v_{i,f} x_i\Big)^2 - \sum_i v_{i,f}^2 x_i^2\Big]

    Args:
        size: number of features n.
        factors: number of factors k.
        bias: first value of w_0; for ratings, their mean.
    """

    def __init__(self, size: int, factors: int, *, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))
        self.weight = nn.Embedding(size, 1)
        self.factors = nn.Embedding(size, factors)
        nn.init.zeros_(self.weight.weight)
        nn.init.normal_(self.factors.weight, std=0.01)

    def forward(self, index: Tensor, value: Tensor) -> Tensor:
        """The prediction of each row, from `index` (rows x slots, integers) and `value` (rows x slots)."""
        return self.combine(*self.terms(index, value))

    def terms(self, index: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`w_i x_i` (rows x slots) and `v_i x_i` (rows x slots x factors): also what regularisation looks at."""
        return self.weight(index).squeeze(-1) * value, self.factors(index) * value.unsqueeze(-1)

    def combine(self, weights: Tensor, factors: Tensor) -> Tensor:
        """The prediction of each row from its `terms`."""
        pairs = 0.5 * (factors.sum(1).square() - factors.square().sum(1)).sum(1)
        return self.bias + weights.sum(1) + pairs
