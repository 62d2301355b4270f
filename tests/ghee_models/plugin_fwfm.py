"""A click model outside of the package, complete: field-weighted factorization machines (Pan et al. 2018)."""

from dataclasses import dataclass

import torch
from torch import nn

from ghee_models import SparseModel, register
from ghee_models.sparse import FieldEmbedding, Linear


@dataclass
class Config:
    dim: int = 8
    lr: float = 1e-2


class Network(nn.Module):
    def __init__(self, layout, dim):
        super().__init__()
        self.linear, self.factors = Linear(layout), FieldEmbedding(layout, dim)
        self.strength = nn.Parameter(torch.ones(len(layout.slots), len(layout.slots)).triu(1))

    def forward(self, ids, values):
        v = self.factors(ids, values)
        return self.linear(ids, values) + (v @ v.transpose(1, 2) * self.strength).sum((1, 2)).unsqueeze(1)


@register("fwfm", task="ctr", config=Config, paper="Pan et al. 2018, arXiv:1806.03514")
class FwFM(SparseModel[Config]):
    """y = linear + sum_{i<j} r_ij <v_i, v_j>."""

    def make_network(self, layout, outputs):
        return Network(layout, self.config.dim)
