"""Worlds that join late and leave, under random orders of events and crashes: nothing lost, nothing twice, nothing stuck."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import SIZE, Plan, Simulation
from test_coordinator import made_at, outputs, seeds, splits, tails

from ghee.protocol import messages as m
from ghee.protocol.edge import StageRules
from ghee.protocol.messages import Tail


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


@settings(max_examples=400, deadline=None)
@given(
    splits, st.integers(1, 4), st.integers(0, 4), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), tails,
    st.booleans(), st.integers(0, 4), st.integers(1, 12), seeds,
)  # fmt: skip
def test_worlds_join_late_and_leave_and_nothing_is_lost_or_twice(
    splits: list[int], readers: int, mappers: int, world: int, loops: int, epochs: int, tail: Tail,
    ordered: bool, crashes: int, changes: int, seed: int,
) -> None:  # fmt: skip
    stages = [StageRules(0, "read", None, readers, begin=1)]
    if mappers:
        stages.append(StageRules(1, "map", 0, mappers * world, 2 * SIZE, 8, ordered, depth=1, world=world, begin=1))
    parent, depth = len(stages) - 1, len(stages)
    stages.append(
        StageRules(parent + 1, "loop", parent, loops, 2 * SIZE, ordered=ordered, tail=tail, depth=depth)
    )  # fmt: skip
    plan = Plan(stages, splits, epochs, outputs(seed), crashes=crashes, changes=changes)
    sim = Simulation(plan, seed, retries=10)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    check(sim, parent + 1, list(range(parent + 1)))
