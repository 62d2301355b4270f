"""Metrics of binary and multi-class predictions. All of them are over all rows: gather the scores of every rank first."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def auc(labels: npt.NDArray[Any], scores: Floats) -> float:
    """The probability that a positive row scores above a negative one; ties count one half (Mann-Whitney U).

    NaN when the labels are all of one class: then it is not defined.
    """
    positive = np.asarray(labels) > 0
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        return float("nan")
    _, inverse, counts = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]  # tied scores share the mean of their ranks
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def gauc(groups: npt.NDArray[Any], labels: npt.NDArray[Any], scores: Floats) -> float:
    """AUC within each group (usually a user), averaged with the group's rows as weight (Zhu et al. 2017, eq. 6).

    Groups of one class only have no AUC and do not count. NaN when no group counts.
    """
    order = np.argsort(groups, kind="stable")
    edges = np.flatnonzero(groups[order][1:] != groups[order][:-1]) + 1
    total, weight = 0.0, 0
    for rows in np.split(order, edges):
        value = auc(labels[rows], scores[rows]) if len(rows) else float("nan")
        if not np.isnan(value):
            total, weight = total + value * len(rows), weight + len(rows)
    return total / weight if weight else float("nan")


def logloss(labels: npt.NDArray[Any], probabilities: Floats) -> float:
    """Mean negative log-likelihood in nats. `probabilities` is (rows,) for binary or (rows, classes)."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-15, 1 - 1e-15)
    if p.ndim == 1:
        y = np.asarray(labels, dtype=np.float64)
        return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).mean())
    return float(-np.log(p[np.arange(len(p)), np.asarray(labels, dtype=np.int64)]).mean())


def accuracy(labels: npt.NDArray[Any], probabilities: Floats) -> float:
    """Share of rows whose most probable class is the label's; binary at the threshold 0.5."""
    p = np.asarray(probabilities)
    predicted = p.argmax(1) if p.ndim == 2 else (p >= 0.5).astype(np.int64)
    return float((predicted == np.asarray(labels)).mean())


def rmse(targets: Floats, predictions: Floats) -> float:
    """Root of the mean squared error, in the target's unit."""
    difference = np.asarray(targets, dtype=np.float64) - np.asarray(predictions, dtype=np.float64)
    return float(np.sqrt((difference**2).mean()))
