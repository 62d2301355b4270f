"""What the driver's rules keep does not grow with batches, splits or epochs that are over. Entries are counted."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator, Mapping, Set
from itertools import chain

import pytest
from simulation import SIZE, Plan, Simulation

from ghee.protocol import messages as m
from ghee.protocol.edge import SourceRules, StageRules
from ghee.protocol.messages import BatchId, RankId, Tail
from ghee.protocol.position import Position
from ghee.protocol.spans import Spans

LEAF = (str, bytes, int, float, type(None), enum.Enum, type, types.FunctionType, types.MethodType, SourceRules)


def entries(root: object) -> int:
    """How many entries all containers hold that an object reaches; a set of ranges has as many as it has ranges."""
    seen: set[int] = set()
    todo, found = [root], 0
    while todo:
        thing = todo.pop()
        if isinstance(thing, LEAF) or id(thing) in seen:
            continue
        seen.add(id(thing))
        inner = list(inside(thing))
        found += len(inner)
        todo += inner
    return found


def inside(thing: object) -> Iterator[object]:
    if isinstance(thing, Spans):
        yield from thing.spans
    elif isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, list | tuple | Set) or type(thing).__name__ in ("deque", "odict_values"):
        yield from thing  # type: ignore[misc]
    else:
        slots = chain.from_iterable(getattr(kind, "__slots__", ()) for kind in type(thing).__mro__)
        names = [name for name in slots if not name.startswith("__")]
        yield from (getattr(thing, name) for name in names if hasattr(thing, name))
        yield from getattr(thing, "__dict__", {}).values()


def most_kept(plan: Plan, seed: int) -> int:
    """The most entries that the rules keep at any time of a run (looked at now and then)."""
    sim = Simulation(plan, seed, retries=100)
    on, most, calls = sim.coordinator.on, 0, 0

    def looked_at(*events: m.Event) -> list[m.Action]:
        nonlocal most, calls
        actions, calls = on(*events), calls + 1
        if calls % 97 == 0:
            most = max(most, entries(sim.coordinator))
        return actions

    sim.coordinator.on = looked_at  # type: ignore[method-assign]
    assert isinstance(sim.run(), m.Finish), sim.outcome
    assert calls > 97
    return most


def chain_of(ordered: bool) -> list[StageRules]:
    return [
        StageRules(0, "read", None, 2, 3 * SIZE, ordered=ordered),
        StageRules(1, "map", 0, 2, 3 * SIZE, 8, ordered, depth=1),
        StageRules(2, "loop", 1, 2, 3 * SIZE, ordered=ordered, depth=2, tail=Tail.PAD, world=2),
        StageRules(3, "write", 1, 2, 3 * SIZE, depth=2, stores=True),
    ]


LONGER = {  # batches by split, and epochs: a run, and one that is many times as long
    "batches of a split": (([60], 1), ([300], 1)),
    "splits of an epoch": (([3] * 20, 1), ([3] * 100, 1)),
    "epochs": (([2, 1, 2], 4), ([2, 1, 2], 40)),
}


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("crashes", [0, 2])
@pytest.mark.parametrize("what", LONGER)
def test_what_is_kept_does_not_grow(what: str, crashes: int, ordered: bool) -> None:
    short, long = (
        max(most_kept(Plan(chain_of(ordered), *size, every=4, crashes=crashes), seed) for seed in range(3))
        for size in LONGER[what]
    )
    assert long < 1.5 * short, f"{short} entries, and {long} with many times as many {what}"


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("what", LONGER)
@pytest.mark.parametrize("leaver", ["a branch", "a rank"])
def test_what_is_kept_does_not_grow_once_a_rank_has_returned(leaver: str, what: str, ordered: bool) -> None:
    stages = [
        StageRules(0, "read", None, 1, 3 * SIZE, ordered=ordered),
        StageRules(1, "loop", 0, 2, 3 * SIZE, ordered=ordered, depth=1, tail=Tail.PAD, world=2),
        StageRules(2, "loop", 0, 1, 3 * SIZE, ordered=ordered, depth=1),
    ]
    leaves = {RankId(1, 0): 2} if leaver == "a rank" else {RankId(1, 0): 2, RankId(1, 1): 2}
    short, long = (max(most_kept(Plan(stages, *size, leaves=leaves), seed) for seed in range(3)) for size in LONGER[what])
    assert long < 1.5 * short, f"{short} entries, and {long} with many times as many {what}"


def test_a_rank_that_is_started_again_hears_of_the_epochs_only_that_are_not_over() -> None:
    sim = Simulation(Plan(chain_of(False), [3, 3], 30), 5, retries=100)
    told: list[m.EpochEnd] = []
    carry_out = sim.carry_out

    def looked_at(actions: list[m.Action]) -> None:
        if len(sim.balanced) == 4 * 20:  # four stages, twenty epochs
            sim.crashes = 3
        told.extend(action for action in actions if isinstance(action, m.EpochEnd) and action.rank.life)
        carry_out(actions)

    sim.carry_out = looked_at  # type: ignore[method-assign]
    assert isinstance(sim.run(), m.Finish)
    restarted = {end.rank for end in told}
    firsts = [min(end.epoch for end in told if end.rank == rank) for rank in restarted]
    assert firsts, "no rank was started again late: the test tests nothing"
    assert min(firsts) >= 20


def batch_names(epochs: int, splits: list[int]) -> set[BatchId]:
    return {(epoch, place, seq) for epoch in range(epochs) for place in range(len(splits)) for seq in range(splits[place])}


@pytest.mark.parametrize("seed", range(40))
def test_a_branch_that_fails_behind_a_slow_map_leaves_a_ledger_that_balances(seed: int) -> None:
    """Its map may still be at work on an epoch that is over in the other branch."""
    stages = [
        StageRules(0, "read", None, 1, 3 * SIZE),
        StageRules(1, "map", 0, 1, 30 * SIZE, depth=1),
        StageRules(2, "loop", 1, 1, 3 * SIZE, depth=2, may_fail=True),
        StageRules(3, "loop", 0, 1, 3 * SIZE, depth=1, may_fail=True),
    ]
    plan = Plan(stages, [3, 3], 3, leaves={RankId(2, 0): 1}, fails=True, slow=(RankId(1, 0),))
    sim = Simulation(plan, seed)
    assert isinstance(sim.run(), m.Finish), sim.outcome
    assert {name[:3] for name, _ in sim.delivered(3)[0]} == batch_names(3, [3, 3])
    assert {b.epoch for b in sim.balanced if b.stage == 3} == {0, 1, 2}


def test_a_position_begins_where_the_spans_of_two_agree() -> None:
    def at(*spans: tuple[int, int, int]) -> Position:
        return Position(0, frozenset(), {0: Spans.of(spans)})

    assert at((0, 9, 100)).common(at((0, 4, 50))) == at((0, 4, 50))
    assert at((0, 9, 100)).common(at((0, 2, 30), (5, 7, 30))) == at((0, 2, 30), (5, 7, 30))
    assert at((0, 5, 60), (8, 9, 20)).common(at((3, 7, 50), (8, 9, 20))).roots == {0: Spans.of([(3, 9, 70)]).common(
        Spans.of([(8, 9, 20)]))}  # fmt: skip
    assert at((0, 5, 60)).common(at((3, 7, 50))).roots == {}, "the rows of batches 3 to 5 are not known: they are read again"
    assert Position(0, frozenset({0})).common(at((0, 5, 60))) == at((0, 5, 60))
