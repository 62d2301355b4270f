"""Metrics of ranking and classification. Pure: arrays in, numbers out; sums that merge exactly live in `ranking`."""

from ghee_models.metrics.classification import accuracy, auc, gauc, logloss, rmse
from ghee_models.metrics.ranking import RankingTotals, gini, top_k

__all__ = ["RankingTotals", "accuracy", "auc", "gauc", "gini", "logloss", "rmse", "top_k"]
