"""Going on from a checkpoint: what was taken before and what is taken after are together everything, once."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import Plan, Simulation

from ghee.protocol import messages as m
from ghee.protocol.edge import StageRules
from ghee.protocol.messages import BatchId, RankId, Tail
from ghee.protocol.position import Position
from ghee.protocol.spans import Spans

CASES = 40
"""Random cases of each kind; each runs two simulations to their end."""


def make_stages(draw: random.Random, shape: str, ranks: int, ordered: bool, tail: Tail) -> list[StageRules]:
    """read [-> map] -> loop, or read -> two loops."""
    credit = draw.choice([3, 10, 50]) * 10
    readers, world = draw.randint(1, 3), draw.choice([1, 1, 2])
    stages = [StageRules(0, "read", None, readers * world, credit, ordered=ordered, world=world)]
    if shape == "map":
        stages.append(StageRules(1, "map", 0, draw.randint(1, 3), credit, 8, ordered, depth=1))
    parent, depth = len(stages) - 1, len(stages)
    for number in range(2 if shape == "branches" else 1):
        index = parent + 1 + number
        stages.append(StageRules(index, "loop", parent, ranks, credit, ordered=ordered, tail=tail, depth=depth, world=ranks))
    return stages


def names(delivered: list[tuple[BatchId, Tail | None]]) -> list[BatchId]:
    return [name for name, fill in delivered if fill is None]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("shape", ["plain", "map", "branches"])
@pytest.mark.parametrize("crashes", [0, 2])
@pytest.mark.parametrize("endless", [False, True])
def test_before_and_after_a_checkpoint_is_everything_once(shape: str, ordered: bool, crashes: int, endless: bool) -> None:
    checked = sum(
        check_one(random.Random(f"{shape} {ordered} {crashes} {seed}"), seed, shape, ordered, crashes, endless)
        for seed in range(CASES)
    )
    assert checked > CASES // 2, "hardly any case had a checkpoint: the test tests nothing"


def check_one(draw: random.Random, seed: int, shape: str, ordered: bool, crashes: int, endless: bool) -> bool:
    splits = [draw.randint(0, 5) for _ in range(draw.randint(1, 6))]
    epochs = draw.randint(1, 3)
    weights = [draw.choice([[0, 1], [1], [0, 0, 0, 1], [1, 3]]) for _ in range(4)]

    def outputs(stage: int, name: BatchId) -> int:
        return random.Random(f"{seed} {stage} {name}").choice(weights[stage])

    tail = draw.choice([Tail.PAD, Tail.REPEAT] if endless else [Tail.DROP, Tail.PAD, Tail.REPEAT])
    before, after = draw.randint(1, 3), draw.randint(1, 3)
    first = Simulation(
        Plan(make_stages(draw, shape, before, ordered, tail), splits, epochs, outputs=outputs, every=draw.randint(1, 4),
             orders=seed, crashes=crashes, endless=endless),
        seed, retries=100,
    )  # fmt: skip
    assert isinstance(first.run(), m.Finish), first.outcome
    if not first.records:
        return False
    loops = [stage.index for stage in first.plan.stages if stage.kind == "loop"]
    positions: dict[int, Position] = {}
    taken: dict[int, dict[RankId, list[tuple[BatchId, Tail | None]]]] = {stage: {} for stage in loops}
    for stage in loops:  # each loop goes on from a checkpoint of its own, or from the beginning
        mine = [(record, done) for record, done in first.records if record.stage == stage]
        if mine and draw.random() < 0.9:
            record, taken[stage] = draw.choice(mine)
            positions[stage] = Position.from_json(json.loads(json.dumps(record.position.to_json())))
            assert positions[stage] == record.position
    second = Simulation(
        Plan(make_stages(draw, shape, after, ordered, tail), splits, epochs, outputs=outputs, every=draw.choice([0, 2]),
             orders=seed, start=positions, number=50, crashes=crashes,
             endless=endless),
        seed + 1, retries=100,
    )  # fmt: skip
    assert isinstance(second.run(), m.Finish), second.outcome
    whole = Simulation(Plan(make_stages(draw, shape, 1, True, tail), splits, epochs, outputs=outputs, orders=seed), seed)
    assert isinstance(whole.run(), m.Finish)
    everything = names(whole.delivered(whole.plan.stages[-1].index)[0])
    for stage in loops:
        early = [names(delivered) for delivered in taken[stage].values()]
        late = [names(delivered) for delivered in second.delivered(stage)]
        count = Counter(name for of_rank in early + late for name in of_rank)
        assert set(count) <= set(everything)
        assert all(times == 1 for times in count.values()), "a batch was delivered before and after"
        dropped = Counter(name[0] for name in everything if name not in count)
        most = max(before, after) - 1 if tail is Tail.DROP else 0
        assert all(lost <= most for lost in dropped.values()), f"{dropped} batches were never delivered"
        assert len({len(delivered) for delivered in second.delivered(stage)}) == 1, "the share is not even"
        if ordered and before == after == 1:
            assert [name for of_rank in early + late for name in of_rank] == everything
    return True


@given(
    st.integers(0, 5),
    st.frozensets(st.integers(0, 30)),
    st.dictionaries(st.integers(0, 30), st.dictionaries(st.integers(0, 9), st.integers(0, 99), min_size=1), max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_a_position_survives_its_journal(epoch: int, splits: frozenset[int], roots: dict[int, dict[int, int]]) -> None:
    of_roots = {split: Spans(of) for split, of in roots.items()}
    position = Position(epoch, splits, of_roots, frozenset({(epoch, 40, 0, 1), (epoch, 40, 0, 2)}))
    assert Position.from_json(json.loads(json.dumps(position.to_json()))) == position


def test_the_position_does_not_grow_with_the_epoch() -> None:
    sizes = []
    for splits in (20, 200):
        plan = Plan(
            [StageRules(0, "read", None, 1, 100), StageRules(1, "loop", 0, 1, 100, depth=1)], [5] * splits, 1, every=5
        )  # fmt: skip
        simulation = Simulation(plan, 1)
        simulation.run()
        sizes.append(max(len(json.dumps(record.position.to_json())) for record, _ in simulation.records))
    assert sizes[1] < 2 * sizes[0], sizes


def test_a_rank_that_passes_a_checkpoint_of_another_is_an_error() -> None:
    plan = Plan([StageRules(0, "read", None, 1, 100), StageRules(1, "loop", 0, 2, 100, depth=1, world=2)], [6], 1, every=2)
    simulation = Simulation(plan, 3)
    simulation.ranks[RankId(1, 1)].ask = lambda epoch: None  # type: ignore[attr-defined]
    outcome = simulation.run()
    assert isinstance(outcome, m.Fail)
    assert outcome.cause is m.Cause.CHECKPOINT
    assert "all ranks" in outcome.message
