"""LightGCN as a recommender."""

from __future__ import annotations

import torch
from torch import nn

from ghee_models.embedding_recommender import EmbeddingRecommender
from ghee_models.models.lightgcn.card import CARD, Config
from ghee_models.models.lightgcn.network import LightGCNNetwork, normalized_adjacency
from ghee_models.recommender import Scores


class LightGCN(EmbeddingRecommender[Config]):
    """e_u(k+1) = sum over i in N_u of e_i(k) / sqrt(|N_u| |N_i|), likewise e_i; e = mean over k of e(k);
    score(u, i) = <e_u, e_i> (He et al. 2020, eq. 3, 4, 6). BPR loss, L2 on e(0) only.

    The stream gives the positives of each step; the graph is the sparse set of distinct training interactions.
    """

    card = CARD

    def build(self) -> nn.Module:
        """The layer-0 vectors as drawn, and the graph of the state's distinct pairs."""
        c = self.config
        network = LightGCNNetwork(self.users.size, self.items.size, c.dim, c.layers, c.l2)
        users, items = (torch.from_numpy(side).long() for side in (self.pairs.users, self.pairs.items))
        network.adjacency = normalized_adjacency(users, items, self.users.size, self.items.size)
        return network

    def vectors(self, network: nn.Module) -> tuple[Scores, Scores]:
        both = network.vectors().cpu().numpy()  # type: ignore[operator]
        return both[: self.users.size], both[self.users.size :]
