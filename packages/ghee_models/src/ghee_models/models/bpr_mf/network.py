"""Two tables and the BPR loss."""

from __future__ import annotations

import torch
from torch import nn

from ghee_models.embeddings import Table


class BPRNetwork(nn.Module):
    """score(u, i) = <p_u, q_i>; loss = -mean log sigmoid(score(u, i) - score(u, j)) (Rendle et al. 2009)."""

    def __init__(self, n_users: int, n_items: int, dim: int, l2: float) -> None:
        super().__init__()
        self.users = Table(n_users, dim)
        self.items = Table(n_items, dim)
        nn.init.xavier_normal_(self.users.weight)
        nn.init.xavier_normal_(self.items.weight)
        self.l2 = l2

    def forward(self, users: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """The mean loss of indices: users and positives (rows,), negatives (rows, n), each of which counts 1/n.

        With `l2` > 0 half the mean squared norm of the vectors of a row is added, times `l2`.
        """
        u, p, n = self.users(users), self.items(positives), self.items(negatives)
        margin = (u * p).sum(-1, keepdim=True) - (u[:, None] * n).sum(-1)
        loss = nn.functional.softplus(-margin).mean()
        if self.l2:
            squares = u.square().sum() + p.square().sum() + n.square().sum() / negatives.shape[1]
            loss = loss + self.l2 * squares / (2 * len(users))
        return loss
