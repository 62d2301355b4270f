"""BPR-MF as a recommender."""

from __future__ import annotations

from torch import nn

from ghee_models.embedding_recommender import EmbeddingRecommender
from ghee_models.models.bpr_mf.card import CARD, Config
from ghee_models.models.bpr_mf.network import BPRNetwork
from ghee_models.recommender import Scores


class BPRMF(EmbeddingRecommender[Config]):
    """score(u, i) = <p_u, q_i>, trained by L = -mean ln sigmoid(s(u, i) - s(u, j)) + l2 / 2 * squared norms.

    i: an item of u; j: a drawn item that u has not had (the sampler's settings).
    """

    card = CARD

    def build(self) -> nn.Module:
        c = self.config
        return BPRNetwork(self.users.size, self.items.size, c.dim, c.l2)

    def vectors(self, network: nn.Module) -> tuple[Scores, Scores]:
        return network.users.weight.cpu().numpy(), network.items.weight.cpu().numpy()  # type: ignore[union-attr,operator]
