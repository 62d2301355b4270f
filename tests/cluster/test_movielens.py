"""The main job on Pods: a Factorization Machine on MovieLens, its preprocessing and its training on Pods of their own."""

from __future__ import annotations

from typing import Any

import data
import demo
import on_pods
import plain
import pytest

import ghee


@pytest.mark.timeout(1500)
def test_two_map_pods_and_a_loop_of_two_pods_reach_the_plain_loops_rmse(place: Any) -> None:
    """The pipeline is the one that runs on this machine; only `on=` says where."""
    folder = data.prepare()
    volumes = [place.packages(), place.claim("movielens", folder, read_only=True)]
    run = ghee.run(on_pods.training_pipeline(folder), on=place.on(cpus="300m", memory="2Gi", volumes=volumes))
    assert run.report.balanced
    assert run.report.rows_read == 90_000 * on_pods.EPOCHS
    assert [len(run.report.stage(name).by_rank) for name in ("preprocess", "train")] == [2, 2]
    first, second = (on_pods.test_rmse(folder, model) for model in run.results["train"])
    assert first == second  # the ranks share one model
    expected = plain.rmse(plain.train(plain.rows_of(folder / "train")), plain.rows_of(folder / "test"))
    assert abs(first - expected) <= demo.NOISE
