"""Logistic regression on sparse rows."""

from __future__ import annotations

from torch import nn

from ghee_models.models.logreg.card import CARD, Config
from ghee_models.sparse import Linear, SparseLayout
from ghee_models.sparse_model import SparseModel


class LogisticRegression(SparseModel[Config]):
    """p = sigmoid(b + sum_i w_i x_i); with several classes a softmax; with a rating the plain sum."""

    card = CARD

    def make_network(self, layout: SparseLayout, outputs: int) -> nn.Module:
        return Linear(layout, outputs, self.config.pooling)
