"""A source without an end: epochs that are cut while the run goes on, under random orders of events and crashes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import Plan, Simulation

from ghee.protocol import messages as m
from ghee.protocol.edge import StageRules
from ghee.protocol.messages import BatchId, Tail

splits = st.lists(st.integers(0, 4), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    splits, st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(0, 4), st.booleans(), st.integers(0, 2),
    st.integers(0, 2**32),
)  # fmt: skip
def test_every_batch_of_every_cut_is_delivered_once(
    splits: list[int], readers: int, mappers: int, loops: int, epochs: int, ordered: bool, crashes: int, seed: int
) -> None:
    stages = [
        StageRules(0, "read", None, readers),
        StageRules(1, "map", 0, mappers, 200, 8, ordered, depth=1),
        StageRules(2, "loop", 1, loops, 200, ordered=ordered, tail=Tail.PAD, depth=2),
        StageRules(3, "write", 1, 1, 200, depth=2),
    ]
    sim = Simulation(Plan(stages, splits, epochs, crashes=crashes, endless=True), seed, retries=9)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    made = Counter[BatchId](
        (epoch, place, seq, 0, 0)
        for epoch in range(epochs)
        for place, split in enumerate(sim.coordinator.source.order(epoch))
        for seq in range(splits[split])
    )
    for stage in (2, 3):
        assert Counter(name for rank in sim.delivered(stage) for name, fill in rank if fill is None) == made
    assert Counter((b.stage, b.epoch) for b in sim.balanced) == Counter((s, e) for s in range(4) for e in range(epochs))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_kept_does_not_grow_with_the_epochs(seed: int) -> None:
    stages = [StageRules(0, "read", None, 2), StageRules(1, "loop", 0, 2, 200, depth=1, tail=Tail.REPEAT)]
    sim = Simulation(Plan(stages, [2, 1], 40, endless=True), seed)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    coordinator = sim.coordinator
    kept = [coordinator.source.cuts, coordinator.splits.done, coordinator.lineage.finished, coordinator.lineage.roots]
    kept += [edge.given for edge in coordinator.edges]
    assert [len(one or ()) for one in kept] == [0] * len(kept)
    assert len(coordinator.ledger.entries) <= 2 * len(stages)
    assert coordinator.ledger.at(1, -1).rows_in >= 40 * 3 * 10
