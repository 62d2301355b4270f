"""DeepFM on sparse rows."""

from __future__ import annotations

from torch import nn

from ghee_models.models.deepfm.card import CARD, Config
from ghee_models.models.deepfm.network import DeepFMNetwork
from ghee_models.sparse import SparseLayout
from ghee_models.sparse_model import SparseModel, single_output


class DeepFM(SparseModel[Config]):
    """y = y_FM + y_DNN (Guo et al. 2017, eq. 1): the factors of all fields also feed ReLU layers with dropout."""

    card = CARD

    def make_network(self, layout: SparseLayout, outputs: int) -> nn.Module:
        single_output(self.card.id, outputs)
        c = self.config
        return DeepFMNetwork(layout, c.dim, c.hidden, c.dropout, c.embedding, c.buckets)
