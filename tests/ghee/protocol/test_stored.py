"""A sink that goes on after what it has stored: recorded parts and what is written after them are everything, once."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from simulation import Plan, Simulation

from ghee.protocol import messages as m
from ghee.protocol.edge import StageRules
from ghee.protocol.messages import BatchId
from ghee.protocol.position import Position

CASES = 25
"""Random cases of each shape; each runs a chain of simulations."""


def make_stages(draw: random.Random, shape: str, ordered: bool) -> list[StageRules]:
    """read [-> map] -> sink, read -> two sinks, read -> loop and sink, or read -> sink and map -> sink."""
    credit = draw.choice([3, 10, 50]) * 10
    stages = [StageRules(0, "read", None, draw.randint(1, 3), credit, ordered=ordered)]
    if shape == "map":
        stages.append(StageRules(1, "map", 0, draw.randint(1, 3), credit, 8, ordered, depth=1))
    if shape == "branch":  # one branch may be an epoch ahead of the other, its map with it
        first, second = draw.randint(1, 3), draw.randint(1, 3)
        stages.append(StageRules(1, "write", 0, first, credit, ordered=ordered, depth=1, stores=True))
        stages.append(StageRules(2, "map", 0, draw.randint(1, 3), credit, 8, ordered, depth=1))
        stages.append(StageRules(3, "write", 2, second, credit, ordered=ordered, depth=2, stores=True))
        return stages
    parent, depth = len(stages) - 1, len(stages)
    for number in range(1 if shape in ("plain", "map") else 2):
        ranks, index = draw.randint(1, 3), parent + 1 + number
        if shape == "loop" and number == 0:
            stages.append(StageRules(index, "loop", parent, ranks, credit, ordered=ordered, depth=depth, world=ranks,
                                     tail=m.Tail.PAD))  # fmt: skip
        else:
            stages.append(StageRules(index, "write", parent, ranks, credit, ordered=ordered, depth=depth, stores=True))
    return stages


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("shape", ["plain", "map", "sinks", "loop", "branch"])
def test_recorded_parts_hold_every_batch_once_however_often_the_run_begins_again(shape: str, ordered: bool) -> None:
    went_on = sum(check_one(random.Random(f"{shape} {ordered} {seed}"), seed, shape, ordered) for seed in range(CASES))
    assert went_on > CASES // 2, "hardly any case went on after a part: the test tests nothing"


def check_one(draw: random.Random, seed: int, shape: str, ordered: bool) -> bool:
    splits = [draw.randint(0, 5) for _ in range(draw.randint(1, 6))]
    epochs = draw.randint(1, 3)
    weights = [draw.choice([[0, 1], [1], [0, 0, 0, 1], [1, 3]]) for _ in range(4)]

    def outputs(stage: int, name: BatchId) -> int:
        return random.Random(f"{seed} {stage} {name}").choice(weights[stage])

    def simulate(start: dict[int, Position], number: int, every: int, crashes: int) -> Simulation:
        plan = Plan(make_stages(draw, shape, ordered), splits, epochs, outputs=outputs, every=every, orders=seed,
                    start=start, crashes=crashes)  # fmt: skip
        simulation = Simulation(plan, 1000 * seed + number, retries=100)
        assert isinstance(simulation.run(), m.Finish), simulation.outcome
        assert simulation.coordinator.stores
        return simulation

    sinks = [stage.index for stage in make_stages(draw, shape, ordered) if stage.kind == "write"]
    stored: dict[int, list[BatchId]] = {stage: [] for stage in sinks}
    start: dict[int, Position] = {}
    lives, went_on = draw.randint(1, 3), False
    for life in range(lives):  # what a dead run has recorded of each sink, up to some record, is what the next goes on from
        kept = simulate(start, life, draw.randint(1, 4), draw.choice([0, 2])).kept
        for stage in sinks:
            mine = [keep for keep in kept if keep.stage == stage]
            upto = len(mine) if life == lives - 1 else draw.randint(0, len(mine))
            for keep in mine[:upto]:
                stored[stage] += keep.parts
                assert keep.position is not None
                start[stage] = Position.from_json(json.loads(json.dumps(keep.position.to_json())))
                went_on |= life < lives - 1 and bool(keep.parts)
    whole = simulate({}, lives, 2, 0)
    for stage in sinks:
        everything = Counter(name for keep in whole.kept if keep.stage == stage for name in keep.parts)
        assert Counter(stored[stage]) == everything
    return went_on or lives == 1


def test_what_a_fast_rank_has_stored_of_a_later_epoch_waits_for_the_others() -> None:
    stages = [StageRules(0, "read", None, 1, 100), StageRules(1, "write", 0, 3, 100, depth=1, stores=True)]
    waited = 0
    for seed in range(30):
        simulation = Simulation(Plan(stages, [4, 4], 3, every=1, slow=(0,)), seed)
        simulation.run()
        for keep in simulation.kept:
            assert keep.position is not None
            assert {name[0] for name in keep.parts} <= {keep.position.epoch}
            waited += len(keep.parts) > 1
        last = simulation.kept[-1].position
        assert last is not None
        assert (last.epoch, last.splits, last.batches) == (3, frozenset(), frozenset())
    assert waited, "no rank was ever ahead: the test tests nothing"


def test_the_position_does_not_grow_with_the_epoch() -> None:
    sizes = []
    for splits in (20, 200):
        stages = [StageRules(0, "read", None, 2, 100), StageRules(1, "write", 0, 2, 100, depth=1, stores=True)]
        simulation = Simulation(Plan(stages, [5] * splits, 1, every=5), 1)
        simulation.run()
        sizes.append(max(len(json.dumps(keep.position.to_json())) for keep in simulation.kept if keep.position))
    assert sizes[1] < 2 * sizes[0], sizes
