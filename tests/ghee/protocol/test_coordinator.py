"""The rules under thousands of random orders of events: nothing lost, nothing twice, even, ended by word, bounded."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import ROWS, SIZE, Plan, Simulation

from ghee.protocol import messages as m
from ghee.protocol.edge import StageRules
from ghee.protocol.messages import BatchId, RankId, Tail

splits = st.lists(st.integers(0, 5), max_size=5)
seeds = st.integers(0, 2**32)
tails = st.sampled_from([Tail.DROP, Tail.PAD, Tail.REPEAT])


def outputs(seed: int) -> object:
    """A function that drops some batches and makes several of others, the same for the same input."""
    return lambda stage, name: (hash((seed, stage, name)) % 7) % 4 if seed % 2 else 1


def made_at(sim: Simulation, stages: list[int]) -> Counter[BatchId]:
    """The batches that the stages in this path make, computed without the coordinator."""
    plan = sim.plan
    names: list[BatchId] = []
    for epoch in range(plan.epochs):
        for place, split in enumerate(sim.coordinator.source.order(epoch)):
            names += [(epoch, place, seq) for seq in range(plan.splits[split])]
    for stage in stages:
        names = [(*name, out) for name in names for out in range(plan.outputs(stage, name))]
    return Counter(names)


@settings(max_examples=200, deadline=None)
@given(splits, st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), tails, st.booleans(), seeds)
def test_every_batch_is_delivered_once_and_evenly(
    splits: list[int], readers: int, mappers: int, loops: int, epochs: int, tail: Tail, ordered: bool, seed: int
) -> None:
    stages = [
        StageRules(0, "read", None, readers),
        StageRules(1, "map", 0, mappers, 2 * SIZE, 8, ordered, depth=1),
        StageRules(2, "loop", 1, loops, 2 * SIZE, ordered=ordered, tail=tail, depth=2),
    ]
    sim = Simulation(Plan(stages, splits, epochs, outputs(seed)), seed)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    made = made_at(sim, [0, 1])
    by_rank = sim.delivered(2)
    real = Counter(name for rank in by_rank for name, fill in rank if fill is None)
    assert sim.tail + real.total() == made.total()
    assert all(made[name] == 1 and count == 1 for name, count in real.items())
    for epoch in range(epochs):
        counts = {sum(name[0] == epoch for name, _ in rank) for rank in by_rank}
        assert len(counts) == 1, f"epoch {epoch} was shared unevenly: {counts}"
        total = sum(name[0] == epoch for name in made)
        assert counts == {total // loops if tail is Tail.DROP else -(-total // loops)}
    assert {(b.stage, b.epoch) for b in sim.balanced} == {(s, e) for s in range(3) for e in range(epochs)}
    assert sim.most_held <= 2 * SIZE
    if ordered:
        for epoch in range(epochs):
            order = sorted(name for name in made if name[0] == epoch)
            for index, rank in enumerate(by_rank):
                mine = [name for name, fill in rank if name[0] == epoch and fill is None]
                assert mine == order[index::loops][: len(mine)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=5), st.sets(st.integers(0, 4)), st.integers(0, 2), st.integers(1, 3), st.booleans(),
    st.booleans(), seeds,
)  # fmt: skip
def test_a_collective_at_every_step_never_hangs(
    splits: list[int], kept: set[int], crashes: int, epochs: int, ordered: bool, slow: bool, seed: int
) -> None:
    """Loops of one to four ranks with every tail. Of the splits that are not `kept` a filter leaves next to nothing."""
    tails = [Tail.DROP, Tail.PAD, Tail.REPEAT]
    stages = [
        StageRules(0, "read", None, 2),
        StageRules(1, "map", 0, 2, 2 * SIZE, 8, ordered, depth=1),
        *(
            StageRules(2 + n, "loop", 1, n % 4 + 1, 2 * SIZE, ordered=ordered, tail=tails[(n + seed) % 3], depth=2)
            for n in range(4)
        ),
    ]

    def outputs(stage: int, name: BatchId) -> int:
        return int(stage == 0 or name[1] in kept or hash((seed, name)) % 8 == 0)

    slow_ranks = tuple(RankId(stage.index, 0) for stage in stages[2:]) if slow else ()
    plan = Plan(stages, splits, epochs, outputs, slow=slow_ranks, collective=True, crashes=crashes)
    sim = Simulation(plan, seed, retries=100)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    made = made_at(sim, [0, 1])
    for rules in stages[2:]:
        by_rank = sim.delivered(rules.index)
        for epoch in range(epochs):
            total = sum(name[0] == epoch for name in made)
            steps = total // rules.ranks if rules.tail is Tail.DROP else -(-total // rules.ranks)
            assert [sum(name[0] == epoch for name, _ in rank) for rank in by_rank] == [steps] * rules.ranks
            left = total - total // rules.ranks * rules.ranks if rules.tail is Tail.DROP else 0
            real = Counter(name for rank in by_rank for name, fill in rank if fill is None and name[0] == epoch)
            assert real.total() == total - left
            assert set(real.values()) <= {1}


@settings(max_examples=100, deadline=None)
@given(splits, st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.booleans(), seeds)
def test_branches_each_see_every_batch(
    splits: list[int], readers: int, loops: int, epochs: int, leaves: bool, seed: int
) -> None:
    stages = [
        StageRules(0, "read", None, readers),
        StageRules(1, "loop", 0, 1, SIZE, depth=1),
        StageRules(2, "loop", 0, loops, 3 * SIZE, depth=1, tail=Tail.PAD),
        StageRules(3, "write", 0, 2, 2 * SIZE, depth=1),
    ]
    plan = Plan(stages, splits, epochs, outputs(seed), leaves={RankId(1, 0): 2} if leaves else {})
    sim = Simulation(plan, seed)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    made = made_at(sim, [0])
    for stage in (2, 3) if leaves else (1, 2, 3):
        real = Counter(name for rank in sim.delivered(stage) for name, fill in rank if fill is None)
        assert real == made


@settings(max_examples=100, deadline=None)
@given(splits, st.integers(2, 3), st.integers(0, 4), seeds)
def test_a_rank_that_leaves_early_does_not_stop_the_others(splits: list[int], loops: int, after: int, seed: int) -> None:
    stages = [StageRules(0, "read", None, 2), StageRules(1, "loop", 0, loops, 2 * SIZE, depth=1)]
    sim = Simulation(Plan(stages, splits, 2, leaves={RankId(1, 0): after}), seed)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    counts = {len(rank) for rank in sim.delivered(1)[1:]}
    assert counts == {2 * (sum(splits) // loops)}


@settings(max_examples=400, deadline=None)
@given(
    splits,
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    tails,
    st.booleans(),
    st.integers(1, 6),
    seeds,
)
def test_crashes_of_readers_and_mappers_lose_and_repeat_nothing(
    splits: list[int],
    readers: int,
    mappers: int,
    loops: int,
    epochs: int,
    tail: Tail,
    ordered: bool,
    crashes: int,
    seed: int,
) -> None:
    stages = [StageRules(0, "read", None, readers)]
    if mappers:
        stages.append(StageRules(1, "map", 0, mappers, 2 * SIZE, 8, ordered, depth=1))
    made_by = list(range(len(stages)))
    parent, depth = len(stages) - 1, len(stages)
    stages += [
        StageRules(parent + 1, "loop", parent, loops, 2 * SIZE, ordered=ordered, tail=tail, depth=depth),
        StageRules(parent + 2, "write", parent, 2, 2 * SIZE, depth=depth),
    ]
    sim = Simulation(Plan(stages, splits, epochs, outputs(seed), crashes=crashes), seed, retries=10)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    made = made_at(sim, made_by)
    by_rank = sim.delivered(parent + 1)
    real = Counter(name for rank in by_rank for name, fill in rank if fill is None)
    assert sim.tail + real.total() == made.total()
    assert all(made[name] == 1 and count == 1 for name, count in real.items())
    written = Counter(name for rank in sim.delivered(parent + 2) for name, _ in rank)
    assert written == made
    for epoch in range(epochs):
        assert len({sum(name[0] == epoch for name, _ in rank) for rank in by_rank}) == 1
    assert {(b.stage, b.epoch) for b in sim.balanced} == {(s, e) for s in range(len(stages)) for e in range(epochs)}
    if ordered:
        for epoch in range(epochs):
            order = sorted(name for name in made if name[0] == epoch)
            for index, rank in enumerate(by_rank):
                mine = [name for name, fill in rank if name[0] == epoch and fill is None]
                assert mine == order[index::loops][: len(mine)]


def test_a_world_that_keeps_dying_fails_the_run_with_the_reason() -> None:
    stages = [StageRules(0, "read", None, 1), StageRules(1, "loop", 0, 1, depth=1)]
    sim = Simulation(Plan(stages, [3] * 50, 1, crashes=50), 0, retries=2)
    outcome = sim.run()
    assert isinstance(outcome, m.Fail)
    assert "killed (started again 2 times before)" in outcome.message


def test_a_tail_that_does_not_divide_is_an_error_where_asked_for() -> None:
    stages = [StageRules(0, "read", None, 1), StageRules(1, "loop", 0, 2, depth=1, tail=Tail.ERROR)]
    outcome = Simulation(Plan(stages, [3], 1), 0).run()
    assert isinstance(outcome, m.Fail)
    assert "3 batches for 2 ranks" in outcome.message


def test_a_row_that_is_not_accounted_for_fails_the_run() -> None:
    stages = [StageRules(0, "read", None, 1), StageRules(1, "loop", 0, 1, depth=1)]
    sim = Simulation(Plan(stages, [3], 1), 0)
    loop = sim.ranks[RankId(1, 0)]
    tell = loop.tell
    loop.tell = lambda e: tell(e._replace(rows=e.rows - 1) if isinstance(e, m.EpochDone) else e)  # type: ignore[method-assign]
    outcome = sim.run()
    assert isinstance(outcome, m.Fail)
    assert outcome.cause is m.Cause.LEDGER


@pytest.mark.parametrize("ranks", [1, 64])
def test_the_cost_of_a_batch_does_not_grow_with_the_ranks(ranks: int) -> None:
    """Counted in looks at a receiver's room, not in seconds."""
    looks = 0
    stages = [StageRules(0, "read", None, ranks), StageRules(1, "loop", 0, ranks, 2 * SIZE, depth=1)]
    sim = Simulation(Plan(stages, [4] * 64, 1), 1)
    credit = sim.coordinator.edges[1].credit
    has_room = credit.has_room

    def counted(*args: object) -> bool:
        nonlocal looks
        looks += 1
        return has_room(*args)  # type: ignore[arg-type]

    credit.has_room = counted  # type: ignore[method-assign]
    sim.run()
    assert looks < 4 * 256


@settings(max_examples=300, deadline=None)
@given(
    splits, st.integers(1, 2), st.integers(0, 2), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from(m.WhenSlow), st.integers(0, 3), seeds,
)  # fmt: skip
def test_a_slow_branch_is_waited_for_or_skips_or_has_what_it_missed_made_again(
    splits: list[int], readers: int, mappers: int, loops: int, epochs: int, slow: m.WhenSlow, crashes: int, seed: int
) -> None:
    stages = [StageRules(0, "read", None, readers)]
    if mappers:
        stages.append(StageRules(1, "map", 0, mappers, 2 * SIZE, 8, depth=1))
    path = list(range(len(stages)))
    parent, depth = len(stages) - 1, len(stages)
    stages += [
        StageRules(parent + 1, "loop", parent, loops, SIZE, depth=depth, when_slow=slow),
        StageRules(parent + 2, "loop", parent, 2, 2 * SIZE, depth=depth, tail=Tail.PAD),
    ]
    sim = Simulation(Plan(stages, splits, epochs, outputs(seed), crashes=crashes, slow=(parent + 1,)), seed, retries=10)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    made = made_at(sim, path)
    fast = Counter(name for rank in sim.delivered(parent + 2) for name, fill in rank if fill is None)
    assert fast == made
    by_rank = sim.delivered(parent + 1)
    mine = Counter(name for rank in by_rank for name, _ in rank)
    entries = sim.coordinator.ledger.entries.items()
    skipped = sum(entry.skipped for (stage, _), entry in entries if stage == parent + 1) // ROWS
    assert mine <= made
    assert mine.total() + sim.tail + skipped == made.total()
    assert slow is m.WhenSlow.SKIP or not skipped
    for epoch in range(epochs):
        assert len({sum(name[0] == epoch for name, _ in rank) for rank in by_rank}) == 1
    assert {(b.stage, b.epoch) for b in sim.balanced} == {(s, e) for s in range(len(stages)) for e in range(epochs)}


@pytest.mark.parametrize("slow", list(m.WhenSlow))
def test_a_branch_that_takes_nothing_holds_the_other_up_only_where_it_is_waited_for(slow: m.WhenSlow) -> None:
    stages = [
        StageRules(0, "read", None, 1),
        StageRules(1, "loop", 0, 1, SIZE, depth=1, when_slow=slow),
        StageRules(2, "loop", 0, 1, SIZE, depth=1),
    ]
    sim = Simulation(Plan(stages, [9] * 4, 1), 5)
    stuck, fast = sim.ranks[RankId(1, 0)], sim.ranks[RankId(2, 0)]
    step, stuck.step = stuck.step, lambda: False  # type: ignore[attr-defined, method-assign]
    with pytest.raises(AssertionError, match="stuck"):
        sim.run()
    assert (len(fast.delivered) == 36) == (slow is not m.WhenSlow.WAIT)  # type: ignore[attr-defined]
    stuck.step = step  # type: ignore[attr-defined]
    assert isinstance(sim.run(), m.Finish)
    assert len(stuck.delivered) == (1 if slow is m.WhenSlow.SKIP else 36)  # type: ignore[attr-defined]


@settings(max_examples=150, deadline=None)
@given(splits, st.integers(1, 3), st.integers(1, 2), st.integers(0, 9), st.sampled_from(m.WhenSlow), seeds)
def test_a_branch_that_fails_does_not_stop_the_others(
    splits: list[int], loops: int, epochs: int, after: int, slow: m.WhenSlow, seed: int
) -> None:
    stages = [
        StageRules(0, "read", None, 2),
        StageRules(1, "loop", 0, loops, SIZE, depth=1, may_fail=True, when_slow=slow),
        StageRules(2, "loop", 0, 2, 2 * SIZE, depth=1, may_fail=True, tail=Tail.PAD),
        StageRules(3, "loop", 0, 1, 2 * SIZE, depth=1, may_fail=True),
    ]
    fails = {RankId(1, 0): after, RankId(3, 0): after + 3}
    sim = Simulation(Plan(stages, splits, epochs, outputs(seed), leaves=fails, fails=True), seed)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    real = Counter(name for rank in sim.delivered(2) for name, fill in rank if fill is None)
    assert real == made_at(sim, [0])
    assert {(2, epoch) for epoch in range(epochs)} <= {(b.stage, b.epoch) for b in sim.balanced}


def test_when_every_branch_has_failed_the_run_fails_with_the_first() -> None:
    stages = [StageRules(0, "read", None, 1)]
    stages += [StageRules(index, "loop", 0, 1, SIZE, depth=1, may_fail=True) for index in (1, 2)]
    sim = Simulation(Plan(stages, [5], 1, leaves={RankId(1, 0): 3, RankId(2, 0): 0}, fails=True), 3)
    outcome = sim.run()
    assert isinstance(outcome, m.Fail)
    assert sim.gave_up
    assert outcome == sim.gave_up[0].cause
