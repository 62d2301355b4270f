"""A run without processes: ranks as small reactive objects, messages delivered in an order that a random source picks.

The coordinator under test is the real one, and the loops use the real `Delivery`. Only moving bytes is left out.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ghee.protocol import messages as m
from ghee.protocol.coordinator import Coordinator, SourceRules, StageRules
from ghee.protocol.delivery import Deliver, Delivery, End, StreamEnded
from ghee.protocol.messages import BatchId, RankId, Tail

ROWS = 10
SIZE = 100


@dataclass
class Plan:
    """What is simulated: batches by split, outputs of each function, and how many batches a loop takes before it returns."""

    stages: list[StageRules]
    splits: list[int]
    epochs: int
    outputs: Callable[[int, BatchId], int] = lambda stage, name: 1
    room: int = 3 * SIZE
    leaves: dict[RankId, int] = field(default_factory=dict)


class SimRank:
    """What every rank has: a queue of work and an outbox."""

    def __init__(self, sim: Simulation, rank: RankId, rules: StageRules) -> None:
        self.sim, self.rank, self.rules = sim, rank, rules
        self.outbox: dict[BatchId, int] = {}
        self.ended: dict[int, int] = {}
        self.seen: Counter[int] = Counter()
        self.rows: Counter[int] = Counter()
        self.finished = False

    def tell(self, event: m.Event) -> None:
        self.sim.to_driver[self.rank].append(event)

    def on(self, action: m.Action) -> None:
        match action:
            case m.Send():
                self.send(action)
            case m.Discard():
                del self.outbox[action.id]
            case m.EpochEnd():
                self.ended[action.epoch] = action.batches
            case m.StreamEnd():
                self.finished = True
            case _:
                self.other(action)

    def send(self, action: m.Send) -> None:
        self.sim.between[self.rank, action.to].append((action, ROWS))
        if action.last:
            del self.outbox[action.id]

    def other(self, action: m.Action) -> None:
        raise AssertionError(action)

    def held(self, epoch: int) -> int:
        return sum(SIZE for name in self.outbox if name[0] <= epoch)

    def make(self, parent: BatchId) -> int:
        outputs = self.sim.plan.outputs(self.rank.stage, parent)
        for out in range(outputs):
            name = (*parent, out)
            self.outbox[name] = ROWS
            self.tell(m.Made(self.rank, name, ROWS, SIZE))
        self.tell(m.Finished(self.rank, parent, ROWS, outputs * ROWS, outputs))
        return outputs

    def acknowledge_ends(self) -> bool:
        for epoch, total in sorted(self.ended.items()):
            if self.seen[epoch] == total:
                del self.ended[epoch]
                self.tell(m.EpochDone(self.rank, epoch, total, self.rows[epoch], 0, 0, 0, 0, 0))
                return True
        if self.finished and not self.ended:
            self.finished = False
            self.tell(m.Returned(self.rank, b""))
            return True
        return False


class Reader(SimRank):
    """A rank of the first stage."""

    def __init__(self, sim: Simulation, rank: RankId, rules: StageRules) -> None:
        super().__init__(sim, rank, rules)
        self.reading: deque[tuple[int, int, int]] = deque()
        self.tell(m.Idle(rank))

    def other(self, action: m.Action) -> None:
        assert isinstance(action, m.Read)
        self.reading.append((action.epoch, action.split, 0))

    def step(self) -> bool:
        if self.reading:
            epoch, split, seq = self.reading[0]
            if self.held(epoch) >= self.sim.plan.room:
                return False
            self.reading.popleft()
            batches = self.sim.plan.splits[self.sim.coordinator.split_at(epoch, split)]
            if seq < batches:
                self.make((epoch, split, seq))
                self.seen[epoch] += 1
                self.rows[epoch] += ROWS
                self.reading.append((epoch, split, seq + 1))
            else:
                self.tell(m.SplitDone(self.rank, epoch, split, batches, batches * ROWS))
                self.tell(m.Idle(self.rank))
            return True
        return self.acknowledge_ends()


class Mapper(SimRank):
    """A rank of a map stage."""

    def __init__(self, sim: Simulation, rank: RankId, rules: StageRules) -> None:
        super().__init__(sim, rank, rules)
        self.delivery: Delivery[BatchId] = Delivery(False, rules.ordered)

    def on(self, action: m.Action) -> None:
        if isinstance(action, m.EpochEnd):
            self.delivery.ended(action.epoch, action.batches, action.sent)
        elif isinstance(action, m.StreamEnd):
            self.delivery.stream_ended(action.epochs)
        else:
            super().on(action)

    def arrived(self, action: m.Send) -> None:
        self.delivery.arrived(action.id[0], action.place, action.id)
        self.tell(m.Accepted(self.rank, action.id))

    def step(self) -> bool:
        if self.finished or self.held(self.delivery.epoch) >= self.sim.plan.room:
            return False
        match self.delivery.next():
            case Deliver(name):
                self.make(name)
                self.rows[name[0]] += ROWS
            case End(epoch, left):
                assert not left
                self.tell(m.EpochDone(self.rank, epoch, 0, self.rows[epoch], 0, 0, 0, 0, 0))
            case StreamEnded():
                self.finished = True
                self.tell(m.Returned(self.rank, b""))
            case None:
                return False
        return True


class Consumer(SimRank):
    """A rank of a loop or of a sink."""

    def __init__(self, sim: Simulation, rank: RankId, rules: StageRules) -> None:
        super().__init__(sim, rank, rules)
        gated = rules.kind == "loop" and rules.ranks > 1
        self.delivery: Delivery[tuple[m.Send, int]] = Delivery(gated, rules.ordered)
        self.delivered: list[tuple[BatchId, Tail | None]] = []
        self.inbox: dict[BatchId, m.Send] = {}
        self.forward: list[m.Send] = []
        self.counts: dict[str, int] = Counter()
        self.returned = False
        self.per_epoch: Counter[int] = Counter()

    def on(self, action: m.Action) -> None:
        if isinstance(action, m.EpochEnd):
            self.delivery.ended(action.epoch, action.batches, action.sent)
        elif isinstance(action, m.StreamEnd):
            self.delivery.stream_ended(action.epochs)
        else:
            super().on(action)

    def other(self, action: m.Action) -> None:
        assert isinstance(action, m.Release)
        self.delivery.released(action.epoch, action.rounds)

    def send(self, action: m.Send) -> None:
        self.forward.append(action)
        self.pass_on()

    def pass_on(self) -> None:
        for action in [a for a in self.forward if a.id in self.inbox]:
            self.forward.remove(action)
            self.sim.between[self.rank, action.to].append((action, ROWS))

    def arrived(self, action: m.Send) -> None:
        assert action.id not in self.inbox, "a batch arrived twice"
        if action.fill is None:
            self.inbox[action.id] = action
        self.delivery.arrived(action.id[0], action.place, (action, ROWS))
        self.tell(m.Accepted(self.rank, action.id)) if action.fill is None else None
        self.pass_on()

    def step(self) -> bool:
        if self.returned:
            return False
        if self.sim.plan.leaves.get(self.rank, 1 << 30) <= len(self.delivered):
            return self.leave()
        match self.delivery.next():
            case Deliver((action, rows)):
                self.delivered.append((action.id, action.fill))
                self.per_epoch[action.id[0]] += 1
                epoch = action.id[0]
                if action.fill is Tail.PAD:
                    self.counts[f"padded {epoch}"] += 1
                else:
                    self.rows[epoch] += rows
                    if action.fill is Tail.REPEAT:
                        self.counts[f"repeated {epoch}"] += rows
                    else:
                        self.tell(m.Consumed(self.rank, action.id))
                return True
            case End(epoch, left):
                repeated = self.counts[f"repeated {epoch}"]
                self.sim.tail += len(left)
                self.tell(
                    m.EpochDone(self.rank, epoch, self.per_epoch[epoch], self.rows[epoch], 0, len(left) * ROWS,
                                self.counts[f"padded {epoch}"], repeated // ROWS, repeated)
                )  # fmt: skip
                return True
            case StreamEnded():
                return self.leave()
        return False

    def leave(self) -> bool:
        self.returned = True
        self.tell(m.Returned(self.rank, b""))
        return True


class Simulation:
    """Runs a plan to its end under one random order of events, and keeps what happened."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan, self.random = plan, random.Random(seed)
        self.to_driver: dict[RankId, deque[m.Event]] = {}
        self.to_rank: dict[RankId, deque[m.Action]] = {}
        self.between: dict[tuple[RankId, RankId], deque[tuple[m.Send, int]]] = {}
        self.ranks: dict[RankId, SimRank] = {}
        self.tail = 0
        self.balanced: list[m.EpochBalanced] = []
        self.outcome: m.Action | None = None
        orders = [
            random.Random(f"{seed} {epoch}").sample(range(len(plan.splits)), len(plan.splits))
            for epoch in range(plan.epochs)
        ]
        rows = [batches * ROWS for batches in plan.splits]
        self.coordinator = Coordinator(plan.stages, SourceRules(plan.epochs, orders.__getitem__, rows))
        ids = [RankId(s.index, i) for s in plan.stages for i in range(s.ranks)]
        for rank in ids:
            self.to_driver[rank], self.to_rank[rank] = deque(), deque()
            self.between.update({(rank, to): deque() for to in ids})
        kinds = {"read": Reader, "map": Mapper, "loop": Consumer, "write": Consumer}
        for rank in ids:
            self.ranks[rank] = kinds[plan.stages[rank.stage].kind](self, rank, plan.stages[rank.stage])
        self.most_held = 0

    def carry_out(self, actions: list[m.Action]) -> None:
        for action in actions:
            if isinstance(action, m.Finish | m.Fail):
                self.outcome = action
            elif isinstance(action, m.EpochBalanced):
                self.balanced.append(action)
            else:
                self.to_rank[action.rank].append(action)

    def moves(self) -> list[Callable[[], bool]]:
        moves: list[Callable[[], bool]] = []
        for rank, queue in self.to_driver.items():
            if queue:
                moves.append(lambda rank=rank: self.carry_out(self.coordinator.on(self.to_driver[rank].popleft())) or True)
        for rank, actions in self.to_rank.items():
            if actions:
                moves.append(lambda rank=rank: self.ranks[rank].on(self.to_rank[rank].popleft()) or True)
        for pair, parcels in self.between.items():
            if parcels:
                moves.append(lambda pair=pair: self.ranks[pair[1]].arrived(self.between[pair].popleft()[0]) or True)
        return moves

    def run(self) -> m.Action:
        self.carry_out(self.coordinator.start())
        while self.outcome is None:
            moves = self.moves() + [rank.step for rank in self.ranks.values()]
            self.random.shuffle(moves)
            assert any(move() for move in moves), "the run is stuck: nothing can move"
            used = max(max(edge.credit.used.values()) for edge in self.coordinator.edges)
            self.most_held = max(self.most_held, used)
        return self.outcome

    def delivered(self, stage: int) -> list[list[tuple[BatchId, Tail | None]]]:
        return [r.delivered for r in self.ranks.values() if r.rank.stage == stage and isinstance(r, Consumer)]
