"""The factorization machine on sparse rows."""

from __future__ import annotations

from torch import nn

from ghee_models.models.fm.card import CARD, Config
from ghee_models.models.fm.network import FMNetwork
from ghee_models.sparse import SparseLayout
from ghee_models.sparse_model import SparseModel, single_output


class FM(SparseModel[Config]):
    """y = b + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j (Rendle 2010, eq. 1); p = sigmoid(y) for a binary label."""

    card = CARD

    def make_network(self, layout: SparseLayout, outputs: int) -> nn.Module:
        single_output(self.card.id, outputs)
        c = self.config
        return FMNetwork(layout, c.dim, c.embedding, c.buckets)
