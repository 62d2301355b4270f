"""Batches of exactly so many rows, under random orders of events: every row once, every batch exact, whoever dies."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import SIZE, Consumer, Plan, Simulation

from ghee.protocol import messages as m
from ghee.protocol.edge import StageRules
from ghee.protocol.joining import Joining
from ghee.protocol.messages import BatchId, RankId, Tail, WhenSlow
from ghee.protocol.position import Position
from ghee.protocol.recut import count, without

Row = tuple[BatchId, int]
Cut = tuple[list[BatchId], Tail | None]

CASES = 30
"""Random cases of each kind."""


class Case:
    """A pipeline of random shape: read, perhaps a map, then one or two loops or a sink that get exact batches."""

    def __init__(self, seed: object) -> None:
        draw = self.draw = random.Random(f"{seed}")
        self.seed = draw.randrange(1 << 30)
        self.splits = [draw.randint(0, 5) for _ in range(draw.randint(1, 5))]
        self.epochs = draw.randint(1, 3)
        self.largest = draw.choice([1, 9, 40])
        self.weights = draw.choice([[0, 1], [1], [0, 0, 0, 1], [1, 3]])
        self.has_map = draw.random() < 0.5
        self.ends = draw.choice([["loop"], ["loop"], ["loop", "loop"], ["write"], ["loop", "write"]])
        self.rows = [draw.choice([1, 7, 16, 100]) for _ in self.ends]
        self.plain = draw.random() < 0.3
        self.most = 0
        self.tails = [draw.choice([Tail.DROP, Tail.PAD, Tail.REPEAT]) for _ in self.ends]

    def sizes(self, name: BatchId) -> int:
        """Rows of what a function makes, the same for the same name."""
        return random.Random(f"{self.seed} rows {name}").randint(0, self.largest)

    def outputs(self, stage: int, name: BatchId) -> int:
        return random.Random(f"{self.seed} {stage} {name}").choice(self.weights)

    def stages(self, ordered: bool, drop_last: bool = False) -> list[StageRules]:
        """With other numbers of ranks each time."""
        draw = self.draw
        credit, world = draw.choice([SIZE // 2, SIZE, 5 * SIZE]), draw.choice([1, 1, 2])
        stages = [StageRules(0, "read", None, draw.randint(1, 3) * world, credit, ordered=ordered, world=world)]
        if self.has_map:
            stages.append(StageRules(1, "map", 0, draw.randint(1, 3), credit, 8, ordered, depth=1))
        parent = len(stages) - 1
        for kind, rows, tail in zip(self.ends, self.rows, self.tails, strict=True):
            ranks = draw.randint(1, 4)
            self.most = max(self.most, ranks)
            stages.append(
                StageRules(len(stages), kind, parent, ranks, credit, ordered=ordered, tail=tail, depth=parent + 1,
                           world=ranks if kind == "loop" else 1, rebatch=rows, drop_last=drop_last, stores=kind == "write")
            )  # fmt: skip
        if self.plain:  # a branch that takes the same batches as they are
            stages.append(StageRules(len(stages), "loop", parent, 2, credit, ordered=ordered, depth=parent + 1, world=2))
        return stages

    def simulation(self, stages: list[StageRules], **more: object) -> Simulation:
        plan = Plan(stages, self.splits, self.epochs, self.outputs, sizes=self.sizes, orders=self.seed, **more)  # type: ignore[arg-type]
        return Simulation(plan, self.draw.randrange(1 << 30), retries=100)

    def everything(self, sim: Simulation) -> list[Row]:
        """Every row that comes to the ends, in the source's order."""
        names: list[BatchId] = []
        for epoch in range(self.epochs):
            for place, split in enumerate(sim.coordinator.source.order(epoch)):
                names += [(epoch, place, seq) for seq in range(self.splits[split])]
        for stage in range(1 + self.has_map):
            names = [(*name, out) for name in names for out in range(self.outputs(stage, name))]
        return [(name, row) for name in names for row in range(self.sizes(name))]


def rows_of(cut: Cut, sim: Simulation, rules: StageRules) -> list[Row]:
    """The rows of a batch that was delivered."""
    rows: list[Row] = []
    for name in cut[0]:
        is_part = len(name) > 3 + rules.depth
        first, number = name[-2:] if is_part else (0, sim.rows(name))
        rows += [(name[:-2] if is_part else name, row) for row in range(first, first + number)]
    return rows


def check(case: Case, sim: Simulation, before: dict[int, list[list[Cut]]], ordered: bool) -> None:
    """`before`: by stage and rank what was delivered before a checkpoint from which this run went on."""
    everything = case.everything(sim)
    in_epoch = Counter(name[0] for name, _ in everything)
    for rules in sim.plan.stages:
        if rules.rebatch is None:
            continue
        drop_last = rules.drop_last
        here = [r.cut for r in sim.ranks.values() if r.rank.stage == rules.index and isinstance(r, Consumer)]
        early = [rows_of(cut, sim, rules) for of in before.get(rules.index, []) for cut in of if cut[1] is None]
        late = [rows_of(cut, sim, rules) for of in here for cut in of if cut[1] is None]
        found = Counter(row for rows in early + late for row in rows)
        assert set(found) <= set(everything)
        assert all(times == 1 for times in found.values()), "a row was delivered twice"
        if rules.kind == "loop" and rules.ranks > 1:
            assert len({len(of) for of in here}) == 1, "the share is not even"
        for epoch in range(case.epochs):
            sizes = [len(rows) for rows in late if rows and rows[0][0][0] == epoch]
            assert sum(size != rules.rebatch for size in sizes) <= (0 if drop_last else 1), sizes
            assert all(0 < size <= rules.rebatch for size in sizes)
            gone = in_epoch[epoch] - sum(times for (name, _), times in found.items() if name[0] == epoch)
            dropped = rules.rebatch - 1 if drop_last else 0
            if rules.kind == "loop" and (rules.tail is Tail.DROP or drop_last):
                dropped += (case.most - 1) * rules.rebatch
            assert gone <= dropped, f"{gone} rows of epoch {epoch} were never delivered"
        if ordered and rules.ranks == 1:
            flat = [row for rows in late for row in rows]
            assert flat == sorted(flat)
        if ordered:
            for of in here:
                mine = [rows_of(cut, sim, rules) for cut in of if cut[1] is None]
                assert all(first[-1] < second[0] for first, second in pairwise(mine))
                assert all(rows == sorted(rows) for rows in mine)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("crashes", [0, 3])
def test_every_row_is_delivered_once_in_exact_batches(crashes: int, ordered: bool, drop_last: bool) -> None:
    for seed in range(CASES):
        case = Case(f"{crashes} {ordered} {drop_last} {seed}")
        sim = case.simulation(case.stages(ordered, drop_last), crashes=crashes, collective=seed % 2 == 0)
        assert isinstance(sim.run(), m.Finish), sim.outcome
        check(case, sim, {}, ordered)
        assert {(b.stage, b.epoch) for b in sim.balanced} == {
            (stage.index, epoch) for stage in sim.plan.stages for epoch in range(case.epochs)
        }
        assert not sim.coordinator.lineage.roots


@pytest.mark.parametrize("beside", ["worlds that come and go", "skip", "reread", "no end"])
def test_exact_batches_beside_what_else_there_is(beside: str) -> None:
    """Elastic maps, a slow branch that batches go past, epochs that are cut while it runs."""
    done, seed = 0, 0
    while done < CASES:
        seed += 1
        case = Case(f"{beside} {seed}")
        stages, more = case.stages(ordered=False), {}
        if beside == "worlds that come and go":
            if not case.has_map:
                continue
            stages[1], more = replace(stages[1], begin=1, ranks=3), {"changes": 4}
        elif beside == "no end":
            more = {"endless": True}
        elif case.plain:
            stages[-1] = replace(stages[-1], when_slow=WhenSlow(beside), ranks=1, world=1)
            more = {"slow": (len(stages) - 1,)}
        else:
            continue
        sim = case.simulation(stages, crashes=seed % 3, **more)
        assert isinstance(sim.run(), m.Finish), sim.outcome
        check(case, sim, {}, ordered=False)
        assert not sim.coordinator.lineage.roots
        done += 1


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("crashes", [0, 2])
def test_before_and_after_a_checkpoint_is_every_row_once(crashes: int, ordered: bool) -> None:
    """Three runs, each with other ranks, the second and third going on from a checkpoint of the one before."""
    checked = 0
    for seed in range(CASES):
        case = Case(f"resume {crashes} {ordered} {seed}")
        case.ends = [*["loop"] * len(case.ends)]
        before: dict[int, list[list[Cut]]] = {}
        start: dict[int, Position] = {}
        for number in range(3):
            stages = case.stages(ordered)
            sim = case.simulation(
                stages, crashes=crashes, every=case.draw.randint(1, 3), start=dict(start), number=50 * number
            )
            assert isinstance(sim.run(), m.Finish), sim.outcome
            check(case, sim, before, ordered)
            for rules in stages:
                records = [(r, cuts) for r, cuts in sim.records_cut if r.stage == rules.index]
                if rules.rebatch is not None and records:
                    record, cuts = case.draw.choice(records)
                    before.setdefault(rules.index, []).extend(cuts)
                    start[rules.index] = Position.from_json(json.loads(json.dumps(record.position.to_json())))
                    assert start[rules.index] == record.position
                    checked += number == 1
                elif records:
                    start[rules.index] = records[-1][0].position
    assert checked > CASES // 4, "hardly any case had a second checkpoint: the test tests nothing"


def test_what_a_sink_has_stored_is_not_given_to_it_again() -> None:
    stored = 0
    for seed in range(CASES):
        case = Case(f"sink {seed}")
        case.ends, case.rows, case.tails, case.plain = ["write"], case.rows[:1], case.tails[:1], False
        first = case.simulation(case.stages(False), every=case.draw.randint(1, 4), crashes=1)
        assert isinstance(first.run(), m.Finish), first.outcome
        if not first.kept:
            continue
        kept = first.kept[: case.draw.randint(1, len(first.kept))]
        position = kept[-1].position
        assert position is not None
        stored += 1
        stage = kept[-1].stage
        second = case.simulation(case.stages(False), start={stage: position}, every=2)
        assert isinstance(second.run(), m.Finish), second.outcome
        before = {stage: [[([name for keep in kept for name in keep.parts], None)]]}
        check(case, second, before, False)
    assert stored > CASES // 2


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=4), st.integers(2, 3), st.integers(0, 2), st.integers(0, 4), st.booleans(),
    st.integers(0, 2**32),
)  # fmt: skip
def test_a_rank_that_leaves_early_does_not_stop_the_others(
    splits: list[int], loops: int, leaving: int, after: int, ordered: bool, seed: int
) -> None:
    """Also not by batches that were on their way to it, for which the others would wait."""
    sizes = random.Random(seed).choices(range(12), k=97)
    for rebatch in (None, 8):
        stages = [
            StageRules(0, "read", None, 2, ordered=ordered),
            StageRules(1, "loop", 0, loops, SIZE, ordered=ordered, depth=1, world=loops, rebatch=rebatch),
        ]
        leaves = {RankId(1, min(leaving, loops - 1)): after}
        plan = Plan(stages, splits, 2, leaves=leaves, sizes=lambda name: sizes[hash(name) % 97])
        sim = Simulation(plan, seed)
        assert isinstance(sim.run(), m.Finish), sim.outcome


def test_what_is_made_again_with_other_rows_begins_the_run_again() -> None:
    """A function that gives other rows the second time: what was given away does not fit the rest."""
    outcomes: Counter[bool] = Counter()
    for seed in range(60):
        made: Counter[BatchId] = Counter()

        def sizes(name: BatchId, made: Counter[BatchId] = made) -> int:
            return 5 + made[name] if len(name) == 5 else 10

        stages = [
            StageRules(0, "read", None, 1, 2 * SIZE),
            StageRules(1, "map", 0, 2, 2 * SIZE, 8, depth=1),
            StageRules(2, "loop", 1, 1, 2 * SIZE, depth=2, rebatch=7),
        ]
        sim = Simulation(Plan(stages, [6, 6], 1, crashes=2, sizes=sizes), seed, retries=100)
        add = sim.add

        def add_other(rank: RankId, add: object = add, made: Counter[BatchId] = made) -> None:
            add(rank)  # type: ignore[operator]
            if rank.stage == 1 and rank.life:  # from now on
                made.update({(0, split, seq, 0, 0): 1 for split in range(2) for seq in range(6)})

        sim.add = add_other  # type: ignore[method-assign]
        outcome = sim.run()
        failed = isinstance(outcome, m.Fail)
        outcomes[failed] += 1
        if failed:
            assert outcome.again
            assert outcome.cause is m.Cause.KILLED
            assert "must give the same for the same batch" in outcome.message
    assert outcomes[True] > 3


@given(st.integers(0, 50), st.sets(st.integers(0, 49)))
def test_what_is_left_of_a_batch(rows: int, taken: set[int]) -> None:
    taken = {row for row in taken if row < rows}
    left = without(rows, [(row, 1) for row in taken])
    assert {row for first, number in left for row in range(first, first + number)} == set(range(rows)) - taken
    assert count(left) == rows - len(taken)
    assert all(first + number < second for (first, number), (second, _) in pairwise(left))


def test_a_part_that_comes_twice_is_not_taken() -> None:
    delivery: Joining[list[str]] = Joining(
        False, False, 0, rows=4, drop_last=False, join=lambda parts: [*parts[0], *parts[1]]
    )
    assert delivery.part_arrived(0, 0, 1, 2, ["b"], fill=False)
    assert not delivery.part_arrived(0, 0, 1, 2, ["b"], fill=False)
    assert delivery.next() is None
    assert delivery.part_arrived(0, 0, 0, 2, ["a"], fill=False)
    assert not delivery.part_arrived(0, 0, 0, 2, ["a"], fill=False)
    step = delivery.next()
    assert step is not None
    assert step.item == ["a", "b"]  # type: ignore[union-attr]
