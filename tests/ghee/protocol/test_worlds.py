"""Worlds that join late and leave, under random orders of events and crashes: nothing lost, nothing twice, nothing stuck."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulation import ROWS, SIZE, Plan, Simulation
from test_coordinator import made_at, outputs, seeds, tails

from ghee.protocol import messages as m
from ghee.protocol.coordinator import Coordinator
from ghee.protocol.edge import SourceRules, StageRules
from ghee.protocol.messages import RankId, Tail


def check(sim: Simulation, loop: int, made_by: list[int]) -> None:
    """Every batch is delivered once or dropped by the tail, every rank has as many, and the ledger balances."""
    made = made_at(sim, made_by)
    by_rank = sim.delivered(loop)
    real = Counter(name for rank in by_rank for name, fill in rank if fill is None)
    assert sim.tail + real.total() == made.total()
    assert all(made[name] == 1 and count == 1 for name, count in real.items())
    for epoch in range(sim.plan.epochs):
        assert len({sum(name[0] == epoch for name, _ in rank) for rank in by_rank}) == 1
    stages = range(len(sim.plan.stages))
    assert {(b.stage, b.epoch) for b in sim.balanced} == {(s, e) for s in stages for e in range(sim.plan.epochs)}
    if sim.plan.stages[loop].ordered:
        for epoch in range(sim.plan.epochs):
            order = sorted(name for name in made if name[0] == epoch)
            for index, rank in enumerate(by_rank):
                mine = [name for name, fill in rank if name[0] == epoch and fill is None]
                assert mine == order[index :: len(by_rank)][: len(mine)]


@example(
    splits=[4, 9], readers=4, mappers=0, world=2, loops=3, epochs=2, tail=Tail.PAD, ordered=False, crashes=1, changes=5,
    room=10, seed=4218,
)  # a world that dies on its way out, when all others have returned  # fmt: skip
@settings(max_examples=250, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=7), st.integers(1, 4), st.integers(0, 4), st.integers(1, 2), st.integers(1, 3),
    st.integers(1, 3), tails, st.booleans(), st.integers(0, 5), st.integers(1, 20), st.sampled_from([1, 3, 10]), seeds,
)  # fmt: skip
def test_worlds_join_late_and_leave_and_nothing_is_lost_or_twice(
    splits: list[int], readers: int, mappers: int, world: int, loops: int, epochs: int, tail: Tail,
    ordered: bool, crashes: int, changes: int, room: int, seed: int,
) -> None:  # fmt: skip
    stages = [StageRules(0, "read", None, readers * world, world=world, begin=1)]
    if mappers:
        stages.append(StageRules(1, "map", 0, mappers * world, 2 * SIZE, 8, ordered, depth=1, world=world, begin=1))
    loop, depth = len(stages), len(stages)
    stages.append(StageRules(loop, "loop", loop - 1, loops, 2 * SIZE, ordered=ordered, tail=tail, depth=depth))
    plan = Plan(stages, splits, epochs, outputs(seed), crashes=crashes, changes=changes, room=room * SIZE)
    sim = Simulation(plan, seed, retries=10)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    check(sim, loop, list(range(loop)))


class Counting(Simulation):
    """Counts what must happen often enough for the tests above to mean something."""

    seen: Counter[str]

    def carry_out(self, actions: list[m.Action]) -> None:
        """Count, and go on."""
        for action in actions:
            self.seen["given back"] += isinstance(action, m.GiveBack)
            self.seen["read at once"] += isinstance(action, m.Read) and action.now
            if isinstance(action, m.Left):
                self.seen["died on the way out"] += any(rank in self.dead for rank in action.ranks)
        super().carry_out(actions)


def test_the_simulation_reaches_what_it_is_for() -> None:
    """Worlds that are started late, that leave with a split half read, and that die on their way out."""
    seen: Counter[str] = Counter()
    for seed in range(30):
        stages = [
            StageRules(0, "read", None, 4, begin=1),
            StageRules(1, "map", 0, 4, 2 * SIZE, 8, depth=1, begin=2),
            StageRules(2, "loop", 1, 2, 2 * SIZE, depth=2),
        ]
        sim = Counting(Plan(stages, [9] * 6, 2, crashes=8, changes=20), seed, retries=10)
        sim.seen = seen
        assert isinstance(sim.run(), m.Finish)
        check(sim, 2, [0, 1])
        seen["joined late"] += len(sim.joined_late)
        seen["left"] += len(sim.left)
    reached = ("given back", "read at once", "died on the way out", "joined late", "left")
    assert min(seen[what] for what in reached) >= 5, seen


def test_a_death_on_the_way_out_is_no_retry_and_starts_nothing_again() -> None:
    stages = [StageRules(0, "read", None, 2, begin=2), StageRules(1, "loop", 0, 1, depth=1)]
    coordinator = Coordinator(stages, SourceRules(1, lambda epoch: range(4), [ROWS] * 4), retries=0)
    one, other = RankId(0, 0), RankId(0, 1)
    coordinator.on(m.Joined(one, "", 1), m.Joined(other, "", 2), m.Joined(RankId(1, 0), "", 3))
    reads = coordinator.on(m.Idle(one), m.Idle(other))
    assert [(read.rank, read.split) for read in reads if isinstance(read, m.Read)] == [(one, 0), (other, 1)]
    assert coordinator.scale(0, 1) == [m.GiveBack(other, 0, 1)]
    assert coordinator.on(m.Died(other, "killed")) == [m.Left((other,))]
    coordinator.on(m.Made(one, (0, 0, 0, 0), ROWS, SIZE), m.Finished(one, (0, 0, 0), ROWS, ROWS, 1))
    done = coordinator.on(m.SplitDone(one, 0, 0, 1, ROWS), m.Idle(one))
    assert [(read.rank, read.split, read.redo) for read in done if isinstance(read, m.Read)] == [(one, 1, True)]
    assert coordinator.scale(0, 2) == [m.Start((other._replace(life=1),))]
    assert isinstance(coordinator.on(m.Died(one, "killed"))[0], m.Fail), "a rank that was not to leave counts"


def test_a_world_that_is_to_leave_stays_when_it_is_needed_again() -> None:
    stages = [StageRules(0, "read", None, 2, begin=2), StageRules(1, "loop", 0, 1, depth=1)]
    coordinator = Coordinator(stages, SourceRules(1, lambda epoch: range(4), [ROWS] * 4))
    one, other = RankId(0, 0), RankId(0, 1)
    coordinator.on(m.Joined(one, "", 1), m.Joined(other, "", 2), m.Idle(one), m.Idle(other))
    assert coordinator.scale(0, 1) == [m.GiveBack(other, 0, 1)]
    assert coordinator.scale(0, 2) == [], "nobody new is started"
    again = coordinator.on(m.GaveBack(other, 0, 1), m.Idle(other))
    assert [(a.rank, a.split, a.redo) for a in again if isinstance(a, m.Read)] == [(other, 1, True)]


def test_nothing_is_started_once_the_stream_has_ended() -> None:
    stages = [StageRules(0, "read", None, 3, begin=1), StageRules(1, "loop", 0, 1, depth=1)]
    coordinator = Coordinator(stages, SourceRules(1, lambda epoch: (), []))
    loop = RankId(1, 0)
    coordinator.start()
    coordinator.on(m.Joined(RankId(0, 0), "", 1), m.Joined(loop, "", 2))
    coordinator.on(m.EpochDone(loop, 0, 0, 0, 0, 0, 0, 0, 0))
    assert coordinator.scale(0, 3) == []


def test_a_loops_world_that_dies_is_missed_until_all_of_its_ranks_have_returned() -> None:
    """Its first rank may have returned long before the others: the launcher names it all the same."""
    stages = [StageRules(0, "read", None, 1), StageRules(1, "loop", 0, 2, depth=1, world=2)]
    first, second = RankId(1, 0), RankId(1, 1)
    for returned, outcome in (((), m.Fail), ((first,), m.Fail), ((first, second), None)):
        coordinator = Coordinator(stages, SourceRules(1, lambda epoch: range(2), [ROWS] * 2))
        coordinator.on(m.Joined(RankId(0, 0), "", 1), m.Joined(first, "", 2), m.Joined(second, "", 3))
        coordinator.on(*[m.Returned(rank, b"") for rank in returned])
        fails = [action for action in coordinator.on(m.Died(first, "killed")) if isinstance(action, m.Fail)]
        assert [type(fail) for fail in fails] == ([outcome] if outcome else []), returned
