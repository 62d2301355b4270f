"""Metrics against their definitions, written out; totals of parts add up to the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ghee_models import metrics
from ghee_models.metrics import RankingTotals, gini, top_k

labels_and_scores = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.int64, n, elements=st.integers(0, 1)),
        hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9])),
    )
)


def pairs_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    pairs = [(p, n) for p in scores[labels == 1] for n in scores[labels == 0]]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs) if pairs else math.nan


@given(labels_and_scores)
def test_auc_counts_the_pairs_in_order_ties_for_one_half(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = drawn
    assert metrics.auc(labels, scores) == pytest.approx(pairs_auc(labels, scores), nan_ok=True)


@given(labels_and_scores, st.randoms(use_true_random=False))
def test_gauc_weighs_each_groups_auc_by_its_rows(drawn: tuple[np.ndarray, np.ndarray], random: object) -> None:
    labels, scores = drawn
    groups = np.array([random.randint(0, 3) for _ in labels])  # type: ignore[attr-defined]
    parts = [(pairs_auc(labels[groups == g], scores[groups == g]), (groups == g).sum()) for g in range(4)]
    counted = [(value, n) for value, n in parts if not math.isnan(value)]
    expected = sum(v * n for v, n in counted) / sum(n for _, n in counted) if counted else math.nan
    assert metrics.gauc(groups, labels, scores) == pytest.approx(expected, nan_ok=True)


def test_logloss_is_in_nats_and_finite_at_certainty() -> None:
    assert metrics.logloss(np.array([1, 0]), np.array([0.5, 0.5])) == pytest.approx(math.log(2))
    assert math.isfinite(metrics.logloss(np.array([1]), np.array([0.0])))
    two = metrics.logloss(np.array([0, 1]), np.array([[0.25, 0.75], [0.25, 0.75]]))
    assert two == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2)


def test_rmse_and_accuracy() -> None:
    assert metrics.rmse(np.array([1.0, 3.0]), np.array([2.0, 1.0])) == pytest.approx(math.sqrt(2.5))
    assert metrics.accuracy(np.array([1, 0, 1]), np.array([0.5, 0.4, 0.2])) == pytest.approx(2 / 3)


scores_2d = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=st.sampled_from([-np.inf, 0.0, 1.0, 2.0])
)


@given(scores_2d, st.integers(1, 14))
def test_top_k_is_a_stable_sort_cut_at_k_without_what_is_masked(scores: np.ndarray, k: int) -> None:
    best = top_k(scores, k)
    assert best.shape == (len(scores), k)
    for row, found in zip(scores, best, strict=True):
        order = [c for c in np.argsort(-row, kind="stable") if row[c] > -np.inf][:k]
        assert found.tolist() == order + [-1] * (k - len(order))


def test_ranking_metrics_of_a_worked_example() -> None:
    top = np.array([[3, 1, 2], [0, 4, 1]])
    row, item = np.array([0, 0, 1]), np.array([1, 4, 0])
    found = RankingTotals(items=5, ks=(3,)).add(top, row, item).result()
    discount = 1 / np.log2([2, 3, 4])
    assert found["recall@3"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["precision@3"] == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert found["mrr@3"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["hit@3"] == 1.0
    assert found["ndcg@3"] == pytest.approx((discount[1] / (discount[0] + discount[1]) + 1) / 2)
    assert found["coverage@3"] == 1.0


@settings(max_examples=40)
@given(st.data())
def test_totals_of_disjoint_users_merge_into_the_totals_of_all(data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    users, items = 9, 12
    top = np.stack([random.permutation(items)[:5] for _ in range(users)])
    row, item = random.integers(0, users, 30), random.integers(0, items, 30)
    vectors = random.normal(size=(items, 3)).astype(np.float32)
    whole = RankingTotals(items, (2, 5)).add(top, row, item, vectors).result()
    cut = data.draw(st.integers(0, users))
    first, second = row < cut, row >= cut
    parts = RankingTotals(items, (2, 5)).add(top[:cut], row[first], item[first], vectors)
    parts.merge(RankingTotals(items, (2, 5)).add(top[cut:], row[second] - cut, item[second], vectors))
    assert parts.result() == pytest.approx(whole)


def test_diversity_is_zero_for_equal_items_and_one_for_orthogonal_ones() -> None:
    vectors = np.array([[1, 0], [2, 0], [0, 3]], dtype=np.float32)
    only = np.array([0]), np.array([0])
    assert RankingTotals(3, (2,)).add(np.array([[0, 1]]), *only, vectors).result()["diversity@2"] == pytest.approx(0)
    assert RankingTotals(3, (2,)).add(np.array([[0, 2]]), *only, vectors).result()["diversity@2"] == pytest.approx(1)


def test_gini_goes_from_even_to_one_item_only() -> None:
    assert gini([5, 5, 5, 5]) == pytest.approx(0)
    assert gini([0, 0, 0, 9]) == pytest.approx(0.75)
    assert gini([]) == 0.0
