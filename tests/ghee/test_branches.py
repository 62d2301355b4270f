"""Branches of one stream in real runs: what is preprocessed once, and what becomes of a branch that is slow or fails."""

from __future__ import annotations

import os
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


def two_trials(folder, when_slow, on):
    """A loop that stands still after its first batch until the other one has taken all, and what both have seen."""
    gate = str(folder / "gate")
    os.mkfifo(gate)

    def slow(batches):
        seen = []
        for batch in batches:
            seen.append(int(batch["n"][0]))
            if len(seen) == 1:
                open(gate).close()  # returns when the other end is opened
        return seen

    def fast(batches):
        seen = [int(batch["n"][0]) for batch in batches]
        open(gate, "w").close()
        return seen

    ready = ghee.read(source()).map(counting(folder))
    run = ghee.run(ghee.branches(ready.loop(slow, credit="1Ki", when_slow=when_slow), ready.loop(fast)), on=on)
    assert sorted(run.result["fast"]) == list(range(BATCHES))
    assert run.report.balanced
    return run


@pytest.mark.parametrize("on", ["inline", "local"])
def test_batches_go_past_a_slow_trial_that_skips_and_are_counted(on, tmp_path):
    run = two_trials(tmp_path, "skip", on)
    seen = run.result["slow"]
    assert 0 < len(seen) < BATCHES
    assert len(set(seen)) == len(seen)
    told = next(stage for stage in run.report.stages if stage.name == "slow")
    assert 10 * len(seen) + told.skipped == 10 * BATCHES
    assert (tmp_path / "calls").stat().st_size == BATCHES


@pytest.mark.parametrize("on", ["inline", "local"])
def test_a_slow_trial_that_rereads_sees_every_row_once(on, tmp_path):
    run = two_trials(tmp_path, "reread", on)
    assert sorted(run.result["slow"]) == list(range(BATCHES))
    assert BATCHES < (tmp_path / "calls").stat().st_size < 2 * BATCHES
