"""Branches of one stream in real runs: what is preprocessed once, and what becomes of a branch that is slow or fails."""

from __future__ import annotations

import sys

import cloudpickle
import numpy as np
import pytest

import ghee

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

BATCHES = 40


@pytest.fixture(autouse=True)
def ghee_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GHEE_HOME", str(tmp_path / "ghee"))


def source():
    return [{"n": np.full(10, number)} for number in range(BATCHES)]


def counting(folder):
    """A map that leaves a byte for each call in a file."""

    def preprocess(batch):
        with open(folder / "calls", "ab") as calls:
            calls.write(b"x")
        return batch

    return preprocess


def total(batches):
    return int(sum(batch["n"].sum() for batch in batches))


def fails_after_three(batches):
    for number, _ in enumerate(batches):
        if number == 3:
            raise ValueError("the learning rate is too high")


EXPECTED = 10 * sum(range(BATCHES))


@pytest.mark.parametrize("on", ["inline", "local"])
@pytest.mark.parametrize("trials", [1, 4])
def test_preprocessing_is_done_once_whatever_the_number_of_trials(trials, on, tmp_path):
    ready = ghee.read(source()).map(counting(tmp_path))
    run = ghee.run(ghee.branches(*(ready.loop(total, name=f"trial {n}") for n in range(trials))), on=on)
    assert all(results == [EXPECTED] for results in run.results.values())
    assert len(run.results) == trials
    assert (tmp_path / "calls").stat().st_size == BATCHES


@pytest.mark.parametrize("on", ["inline", "local"])
def test_a_trial_that_fails_does_not_stop_the_others(on):
    ready = ghee.read(source()).map(lambda batch: batch)
    run = ghee.run(ghee.branches(ready.loop(fails_after_three, name="bad"), ready.loop(total, name="good")), on=on)
    assert run.result["good"] == EXPECTED
    assert isinstance(run.result["bad"], ValueError)
    assert "failed: bad: ValueError: the learning rate is too high" in str(run.report)
    assert run.report.balanced


def test_a_trial_that_fails_stops_the_others_where_asked_for():
    ready = ghee.read(source())
    trials = ready.loop(fails_after_three, name="bad"), ready.loop(total, name="good")
    with pytest.raises(ValueError, match="learning rate"):
        ghee.run(ghee.branches(*trials, stop_on_failure=True), on="inline")


def test_slow_needs_another_branch():
    with pytest.raises(ghee.errors.PipelineError, match="needs another branch"):
        ghee.run(ghee.read(source()).loop(total, when_slow="skip"), on="inline")
