"""How rows are split into train, validation and test, and the digest that says which rows went where.

`hash` splits while streaming: a row's part depends on nothing but its key and the seed, so nothing is held or written.
`recbole` and `recbole-by-user` are the published protocols of RecBole 1.2 (ratio-based splitting, RS), `folds` is
cross-validation: they need the row count beforehand, so they hold the table in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

PARTS = ("train", "valid", "test")

Indices = npt.NDArray[np.int64]


def recbole_permutation(rows: int, seed: int) -> Indices:
    """The order in which RecBole shuffles `rows` rows: `torch.randperm` after `torch.manual_seed(seed)`."""
    import torch  # here alone: reading and checking data must not wait for it

    generator = torch.Generator().manual_seed(seed)
    order: Indices = torch.randperm(rows, generator=generator).numpy()
    return order


def recbole_ratio(rows: int, ratios: Sequence[float], seed: int) -> dict[str, Indices]:
    """RecBole's ungrouped RS split: the shuffled rows are cut at the ratios, validation and test rounded down."""
    return _cut([recbole_permutation(rows, seed)], ratios)


def recbole_ratio_by_user(users: npt.NDArray[np.generic], ratios: Sequence[float], seed: int) -> dict[str, Indices]:
    """RecBole's RS split grouped by user: each user's shuffled rows are cut at the ratios."""
    order = recbole_permutation(len(users), seed)
    _, inverse = np.unique(users, return_inverse=True)
    grouped = order[np.argsort(inverse[order], kind="stable")]
    edges = np.flatnonzero(np.diff(inverse[grouped])) + 1
    found = _cut(np.split(grouped, edges), ratios)
    place = np.argsort(order)  # back to the shuffled order: a stream of one user after the other would train badly
    return {name: rows[np.argsort(place[rows])] for name, rows in found.items()}


def folds(rows: int, fold: int, of: int, ratios: Sequence[float], seed: int, strata: Any = None) -> dict[str, Indices]:
    """Cross-validation: the shuffled rows are dealt to `of` folds, one of which is the test part.

    The others are cut into train and validation in the proportion of the first two ratios. strata: a value per row; every
    fold gets its share of each.
    """
    order = recbole_permutation(rows, seed)
    if strata is not None:
        order = order[np.argsort(np.unique(strata, return_inverse=True)[1][order], kind="stable")]
    of_row = np.empty(rows, dtype=np.int64)
    of_row[order] = np.arange(rows) % of
    shuffled = recbole_permutation(rows, seed)
    rest = shuffled[of_row[shuffled] != fold]
    in_valid = int(ratios[1] / (ratios[0] + ratios[1]) * len(rest))
    return {
        "train": rest[: len(rest) - in_valid],
        "valid": rest[len(rest) - in_valid :],
        "test": shuffled[of_row[shuffled] == fold],
    }


def _cut(groups: Sequence[Indices], ratios: Sequence[float]) -> dict[str, Indices]:
    total = sum(ratios)
    train, valid, test = [], [], []
    for group in groups:
        n = len(group)
        in_test, in_valid = int(ratios[2] / total * n), int(ratios[1] / total * n)
        train.append(group[: n - in_valid - in_test])
        valid.append(group[n - in_valid - in_test : n - in_test])
        test.append(group[n - in_test :])
    return {"train": np.concatenate(train), "valid": np.concatenate(valid), "test": np.concatenate(test)}


def hash_parts(rows: pa.RecordBatch, keys: Sequence[str], ratios: Sequence[float], seed: int) -> npt.NDArray[np.int8]:
    """For every row 0, 1 or 2 (train, validation, test), decided by the SHA-256 of its key columns' text and the seed.

    The same row falls into the same part in every run, on every machine and in every batching.
    """
    cuts = np.cumsum(np.asarray(ratios, dtype=np.float64)) / float(sum(ratios))
    columns = [rows.column(rows.schema.get_field_index(name)).cast(pa.string()).to_pylist() for name in keys]
    parts = np.empty(rows.num_rows, dtype=np.int8)
    prefix = f"{seed}\x1f"
    for number, values in enumerate(zip(*columns, strict=True)):
        text = prefix + "\x1f".join("" if v is None else v for v in values)
        point = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        parts[number] = int(np.searchsorted(cuts, point, side="right").clip(0, 2))
    return parts


def digest(*keys: npt.NDArray[np.generic]) -> str:
    """The first 16 hex digits of the SHA-256 of the sorted "user item" lines: two equal digests are one split."""
    lines = sorted(" ".join(map(str, values)) for values in zip(*(key.tolist() for key in keys), strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
