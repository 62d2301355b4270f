"""The Factorization Machine of second order (S. Rendle, "Factorization Machines", ICDM 2010) in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag


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
        # Column 0 holds w, the others v: one look-up for both.
        self.table = nn.Parameter(torch.cat([torch.zeros(size, 1), 0.01 * torch.randn(size, factors)], dim=1))

    def forward(self, index: Tensor, value: Tensor) -> Tensor:
        """The prediction of each row, from `index` (rows x slots, integers) and `value` (rows x slots)."""
        return self.combine(*self.sums(index, value))

    def sums(self, index: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """For each row and column of the table, the sum of the terms and the sum of their squares.

        The second is also what regularisation looks at.
        """
        terms = embedding_bag(index, self.table, per_sample_weights=value, mode="sum")
        squares = embedding_bag(index, self.table.square(), per_sample_weights=value.square(), mode="sum")
        return terms, squares

    def combine(self, terms: Tensor, squares: Tensor) -> Tensor:
        """The prediction of each row from its `sums`."""
        pairs = 0.5 * (terms[:, 1:].square() - squares[:, 1:]).sum(1)
        return self.bias + terms[:, 0] + pairs
