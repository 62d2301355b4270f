"""Tells why it is slow: the rule on figures that are known, and real runs whose limit is known."""

from __future__ import annotations

import functools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ghee
from ghee.observe.limit import MOST_ADVISED, find_limit
from ghee.observe.report import RankReport, StageReport

SECONDS = 10.0


def stage(name, kind, *worked, replicas=None, room=0.0, seconds=SECONDS, **more):
    """A stage whose ranks worked so many of `seconds`, waited `room` for room, and for batches otherwise."""
    ranks = [RankReport(n, w, seconds - w - room, room, cpu=more.get("cpu", 0), batches=100) for n, w in enumerate(worked)]
    share = sum(worked) / len(worked) / seconds
    more["cpu"] = more.get("cpu", 0) / seconds
    return StageReport(
        name, kind, len(ranks), 1000, 100 * len(ranks), 10**9, worked=share, waited_room=room / seconds,
        waited_input=1 - share - room / seconds, replicas=replicas or len(ranks), by_rank=ranks, **more,
    )  # fmt: skip


def chain(*stages, cores=None):
    return find_limit(stages, [None, *range(len(stages) - 1)], cores)


# ── the rule ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_issues_own_example():
    limit = chain(stage("preprocess", "read", 10, 10, 10, 10), stage("train", "loop", 5.9))
    assert limit.said == "preprocess limits the run: train waited 41 % of its time for it"
    assert limit.advice == "give preprocess 7 replicas instead of 4"


def test_every_map_that_is_too_slow_for_the_loop_gets_what_it_needs():
    limit = chain(stage("parse", "read", 8), stage("augment", "map", 10, 10), stage("train", "loop", 4))
    assert limit.said == "augment limits the run: train waited 60 % of its time for it"
    assert limit.advice == "give augment 5 replicas instead of 2 and parse 2 replicas instead of 1"


def test_no_more_is_advised_than_can_be_known():
    limit = chain(stage("preprocess", "read", 10, 10), stage("train", "loop", 0.1))
    assert limit.advice == f"give preprocess {2 * MOST_ADVISED} replicas instead of 2"


def test_replicas_of_several_ranks_are_counted_as_replicas():
    limit = chain(stage("preprocess", "map", 10, 10, 10, 10, replicas=2), stage("train", "loop", 5))
    assert limit.advice == "give preprocess 4 replicas instead of 2"


def test_a_short_run_is_no_ground_for_advice():
    limit = chain(stage("preprocess", "read", 0.5, seconds=0.5), stage("train", "loop", 0.1, seconds=0.5))
    assert limit == (0, "preprocess limits the run: train waited 80 % of its time for it", "")


def test_the_cores_of_the_machine_are_the_end_of_it():
    busy = chain(stage("preprocess", "read", 10, 10, cpu=9), stage("train", "loop", 5), cores=2)
    assert busy.advice.startswith("this machine's 2 cores are busy, so more replicas do not help here: ")
    some = chain(stage("preprocess", "read", 10, 10, cpu=10), stage("train", "loop", 5), cores=3)
    assert some.advice == "give preprocess 3 replicas instead of 2 (this machine's 3 cores allow no more; 4 would be needed)"
    free = chain(stage("preprocess", "read", 10, 10, cpu=1), stage("train", "loop", 5), cores=2)
    assert free.advice == "give preprocess 4 replicas instead of 2"


def test_a_source_of_few_splits_and_one_in_python():
    few = chain(stage("preprocess", "read", 10, 10, most_replicas=2, reading=0.9), stage("train", "loop", 5))
    assert few.said.endswith("(90 % of its work was reading)")
    assert few.advice.startswith("more replicas of preprocess would have nothing to read: the source has 2 splits")
    some = chain(stage("preprocess", "read", 10, 10, most_replicas=3), stage("train", "loop", 5))
    assert some.advice == "give preprocess 3 replicas instead of 2"
    python = chain(stage("read", "read", 10, most_replicas=1, hosted=True), stage("train", "loop", 5))
    assert (
        python.advice == "read reads in Python in the driver's process, where it has one rank: make it faster, or use files"
    )


def test_a_loop_that_is_the_limit():
    limit = chain(stage("preprocess", "read", 1, 1, 1, 1), stage("train", "loop", 9.8))
    assert limit.said == "train limits the run: it worked 98 % of its time and waited 2 % for batches"
    assert limit.advice == "preprocess would do with 1 replica instead of 4"


def test_one_slow_rank_among_many():
    limit = chain(stage("preprocess", "read", 3), stage("train", "loop", 3, 3, 9.8, 3, 3, 3))
    assert limit.said == "rank 2 of train limits the run: it worked 98 % of the time, the other 5 only 30 %"
    assert limit.advice == "see what slows rank 2 down: it needs 3.3 times as long for a batch"


def test_one_slow_rank_of_a_map():
    slow = stage("preprocess", "map", 10, 10, 10)
    slow.by_rank[1].batches = 20
    limit = chain(slow, stage("train", "loop", 5))
    assert limit.advice.endswith("; rank 1 of preprocess needs 5.0 times as long for a batch")


def test_a_sink_that_is_the_limit():
    limit = chain(stage("parse", "read", 4, room=6), stage("write", "write", 9.8))
    assert limit.said == (
        "write limits the run: it worked 98 % of its time, and parse waited 60 % of its time for it to take more"
    )
    assert limit.advice == "give write 3 replicas instead of 1"


def test_balanced():
    limit = chain(stage("preprocess", "read", 9.9, 9.9), stage("train", "loop", 9.7))
    assert (
        limit.said
        == "preprocess and train are balanced: preprocess worked 99 % of the time, train waited 3 % of it for batches"
    )
    assert limit.advice == ""


def test_a_branch_that_holds_the_others_up():
    stages = [stage("preprocess", "read", 2), stage("small", "loop", 3), stage("large", "loop", 9.9)]
    limit = find_limit(stages, [None, 0, 0])
    assert limit.said.startswith("large limits the run")
    assert limit.advice.startswith("small waited for it: when_slow=")


def test_what_lies_between_two_stages():
    credit = chain(stage("preprocess", "read", 3, room=6), stage("train", "loop", 3))
    assert credit.stage is None
    assert credit.advice == "give train more credit (credit=), or make the batches smaller (batch_size=)"
    small = [stage("preprocess", "read", 3), stage("train", "loop", 2)]
    small[0].bytes_out = 100 * 4096
    assert find_limit(small, [None, 0]).advice == "make the batches larger (batch_size=)"


def test_before_anything_was_measured():
    assert find_limit([], []) == (None, "", "")
    assert find_limit([StageReport("read", "read", 1)], [None]) == (None, "", "")


shares = st.floats(0, 1)


@given(st.lists(st.tuples(shares, shares, st.integers(1, 5)), min_size=2, max_size=5), st.sampled_from([None, 1, 2, 64]))
def test_whatever_was_measured_something_sensible_is_said(figures, cores):
    stages = [
        stage(f"s{n}", kind, *[SECONDS * worked] * ranks, room=SECONDS * (1 - worked) * room, cpu=worked)
        for n, (worked, room, ranks) in enumerate(figures)
        for kind in ["read" if n == 0 else "loop" if n == len(figures) - 1 else "map"]
    ]
    limit = chain(*stages, cores=cores)
    assert limit.said
    most = max(s.worked for s in stages)
    assert limit.stage is None or stages[limit.stage].worked == pytest.approx(most)


@given(st.integers(1, 8), st.floats(1, 9.4))
def test_with_the_replicas_advised_the_loop_waits_no_more(replicas, work_of_the_loop):
    """The advice, put into the model that it comes from: the stage's work shared by so many replicas."""
    limit = chain(stage("preprocess", "read", *[10] * replicas), stage("train", "loop", work_of_the_loop))
    advised = int(limit.advice.split()[2])
    assert advised == min(MOST_ADVISED * replicas, advised)
    if advised < MOST_ADVISED * replicas:
        assert 10 * replicas / advised <= work_of_the_loop + 1e-6
        assert advised == replicas + 1 or 10 * replicas / (advised - 1) > work_of_the_loop


# ── real runs ────────────────────────────────────────────────────────────────────────────────────────────────────────

BATCHES = 120


def batches(seconds: float = 0.0):
    for number in range(BATCHES):
        time.sleep(seconds)
        yield {"n": [number] * 10, "bytes": [b"x" * 20_000] * 10}


def taking(seconds, batch):
    time.sleep(seconds)
    return batch


def training(seconds, stream, slow=None):
    for _ in stream:
        time.sleep(4 * seconds if ghee.rank() == slow else seconds)


def takes(seconds):
    """A function whose every call takes so long."""
    return functools.partial(taking, seconds)


def trains(seconds, slow=None):
    return functools.partial(training, seconds, slow=slow)


SLOW, FAST = 0.02, 0.002
PIPELINES = {
    "source": (
        lambda: ghee.read(batches(SLOW)).map(takes(FAST), name="preprocess").loop(trains(FAST), name="train"),
        "read limits the run: train waited ",
        "read reads in Python in the driver's process",
    ),
    "map": (
        lambda: (
            ghee.read(batches()).map(takes(2 * SLOW), replicas=2, name="preprocess").loop(trains(SLOW / 2), name="train")
        ),
        "preprocess limits the run: train waited ",
        "give preprocess ",
    ),
    "second map": (
        lambda: ghee.read(batches()).map(takes(FAST), name="parse").map(takes(SLOW), name="augment").loop(trains(FAST)),
        "augment limits the run: training waited ",
        "give augment ",
    ),
    "loop": (
        lambda: ghee.read(batches()).map(takes(FAST), replicas=4, name="preprocess").loop(trains(SLOW), name="train"),
        "train limits the run: it worked ",
        "preprocess would do with ",
    ),
    "one slow rank": (
        lambda: ghee.read(batches()).loop(trains(SLOW, slow=2), replicas=4, name="train"),
        "rank 2 of train limits the run: it worked ",
        "see what slows rank 2 down: it needs ",
    ),
    "sink": (
        lambda: ghee.read(batches()).map(takes(FAST), name="parse", credit="1Mi").write(lambda batch: time.sleep(SLOW)),
        "write limits the run: it worked ",
        "",
    ),
    "balanced": (
        lambda: ghee.read(batches()).map(takes(SLOW * 0.8), name="preprocess").loop(trains(SLOW), name="train"),
        "train limits the run: it worked ",
        "",
    ),
}


@pytest.mark.parametrize("limit", PIPELINES)
def test_a_run_whose_limit_is_known(limit):
    make, said, advice = PIPELINES[limit]
    report = ghee.run(make(), on="inline", progress=False).report
    assert report.limited_by.startswith(said), report
    assert report.advice.startswith(advice), report
    assert str(report).endswith("\n".join(filter(None, (report.limited_by, report.advice))))
    if limit == "balanced":
        assert report.advice == "", report  # nothing is to be won
    if limit == "map":
        assert 3 <= int(report.advice.split()[2]) <= 8, report
