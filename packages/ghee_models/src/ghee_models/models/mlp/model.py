"""The deep network for sparse rows."""

from __future__ import annotations

from torch import nn

from ghee_models.models.mlp.card import CARD, Config
from ghee_models.models.mlp.network import SparseMLP
from ghee_models.sparse import SparseLayout
from ghee_models.sparse_model import SparseModel


class MLP(SparseModel[Config]):
    """y = linear(x) + W_L relu(... relu(W_1 [v_1 x_1, ..., v_F x_F]))
    + H sum_{i<j} v_i x_i * v_j x_j: one output, or one per class.
    """

    card = CARD

    def make_network(self, layout: SparseLayout, outputs: int) -> nn.Module:
        c = self.config
        return SparseMLP(layout, c.dim, c.hidden, c.dropout, outputs, c.embedding, c.buckets)
