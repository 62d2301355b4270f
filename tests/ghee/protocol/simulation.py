"""A run without processes: ranks as small reactive objects, messages delivered in an order that a random source picks.

The coordinator under test is the real one, and the loops use the real `Delivery`. Only moving bytes is left out.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ghee.protocol import messages as m
from ghee.protocol.coordinator import Coordinator
from ghee.protocol.delivery import Deliver, Delivery, End, StreamEnded
from ghee.protocol.edge import SourceRules, StageRules
from ghee.protocol.joining import Joining
from ghee.protocol.messages import BatchId, RankId, Tail
from ghee.protocol.position import Position

ROWS = 10
SIZE = 100


Parts = list[tuple[m.Send, int]]
"""Of one batch that is delivered: what was sent, and rows."""


def name_of(action: m.Send) -> BatchId:
    """The name under which a batch, or a part of one, arrives."""
    return action.id if action.take is None else (*action.id, action.skip, action.take)


@dataclass
class Plan:
    """What is simulated: batches by split, outputs of each function, and how many batches a loop takes before it returns.

    `slow`: stages and ranks that seldom get a turn; `fails`: a loop that leaves raises instead of returning; `collective`:
    the ranks of a loop meet after every batch and at the end of every epoch, and none goes on before all are there.
    """

    stages: list[StageRules]
    splits: list[int]
    epochs: int
    outputs: Callable[[int, BatchId], int] = lambda stage, name: 1
    room: int = 3 * SIZE
    leaves: dict[RankId, int] = field(default_factory=dict)
    crashes: int = 0
    every: int = 0
    """Batches between two checkpoints of a loop; 0: none."""
    start: dict[int, Position] = field(default_factory=dict)
    number: int = 0
    orders: int | None = None
    """The seed of the order of the splits; None: that of the simulation."""
    slow: tuple[int | RankId, ...] = ()
    fails: bool = False
    collective: bool = False
    endless: bool = False
    """The epochs are cut one by one while it runs, and its end is told like that of a stream that is stopped."""
    sizes: Callable[[BatchId], int] = lambda name: ROWS
    """Rows of what a function has made."""
    changes: int = 0
    """How often the number of worlds of some elastic stage changes."""


class SimRank:
    """What every rank has: a queue of work and an outbox."""

    def __init__(self, sim: Simulation, rank: RankId, rules: StageRules) -> None:
        self.sim, self.rank, self.rules = sim, rank, rules
        self.outbox: Counter[BatchId] = Counter()
        self.made: dict[BatchId, int] = {}
        """Rows of what it has ever made."""
        self.ended: dict[int, int] = {}
        self.seen: Counter[int] = Counter()
        self.rows: Counter[int] = Counter()
        self.finished = False
        self.refused: set[tuple[BatchId, RankId]] = set()
        self.is_welcome = False
        self.early: Parts = []
        """What other ranks sent before the driver's welcome was here, which says how it is to be taken."""
        self.readiness = sim.random.choice([1.0, 0.2, 0.03])
        """How likely it is at each turn that the function is loaded; till then batches come in, and none is taken."""
        self.is_ready = False

    def welcome(self) -> None:
        self.is_welcome = True
        self.begin()
        for action, rows in self.early:
            self.arrived(action, rows)

    def begin(self) -> None:
        """What is made of the settings."""

    def comes(self, action: m.Send, rows: int) -> None:
        if self.is_welcome:
            self.arrived(action, rows)
        else:
            self.early.append((action, rows))

    def arrived(self, action: m.Send, rows: int) -> None:
        raise AssertionError(action)

    def turn(self) -> bool:
        """Do the next thing of the function, if it is loaded."""
        if not self.is_ready:
            self.is_ready = self.is_welcome and self.sim.random.random() < self.readiness
            if self.is_ready:
                self.loaded()
            self.sim.slowed = self.sim.slowed or self.is_welcome
            return self.is_ready
        return self.step()

    def loaded(self) -> None:
        """What the function does first."""

    def step(self) -> bool:
        raise NotImplementedError

    def tell(self, event: m.Event) -> None:
        self.sim.to_driver[self.rank].append(event)

    def on(self, action: m.Action) -> None:
        match action:
            case m.Send():
                self.send(action)
            case m.Discard():
                self.drop(action.id)
            case m.EpochEnd():
                self.ended[action.epoch] = action.batches
            case m.StreamEnd():
                self.finished = True
            case m.Recall():
                self.refused.add((action.id, action.sender))
                self.tell(m.Recalled(self.rank, action.id))
            case _:
                self.other(action)

    def send(self, action: m.Send) -> None:
        rows = self.made[action.id] if action.take is None else action.take
        self.sim.between[self.rank, action.to].append((action, rows))
        assert 0 <= action.skip <= action.skip + rows <= self.made[action.id]
        assert self.outbox[action.id], "what is not there cannot be sent"
        if action.last:
            self.drop(action.id)

    def drop(self, name: BatchId) -> None:
        assert self.outbox[name], "what is not there cannot be dropped"
        self.outbox[name] -= 1

    def other(self, action: m.Action) -> None:
        raise AssertionError(action)

    def held(self, *upto: int) -> int:
        return sum(SIZE * copies for name, copies in self.outbox.items() if name[: len(upto)] <= upto)

    def take(self, action: m.Send) -> bool:
        """Whether a batch that comes in is accepted; what a dead rank sent may not be readable any more."""
        if (name_of(action), action.rank) in self.refused:
            return False
        return action.rank not in self.sim.dead or self.sim.random.random() < 0.5

    def make(self, parent: BatchId, redo: bool = False) -> int:
        outputs = self.sim.plan.outputs(self.rank.stage, parent)
        names = [(*parent, out) for out in range(outputs)]
        for name in names:
            self.outbox[name] += 1
            self.made[name] = self.sim.rows(name)
            self.tell(m.Made(self.rank, name, self.sim.rows(name), SIZE))
        rows = sum(self.sim.rows(name) for name in names)
        self.tell(m.Finished(self.rank, parent, self.sim.rows(parent), rows, outputs, redo))
        return outputs

    def acknowledge_ends(self) -> bool:
        for epoch in sorted(self.ended):
            del self.ended[epoch]
            self.tell(m.EpochDone(self.rank, epoch, 0, self.rows[epoch], 0, 0, 0, 0, 0))
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
        self.reading: list[tuple[m.Read, int]] = []
        """What it reads, the innermost last."""
        self.reads: deque[m.Read] = deque()
        self.urgent: deque[m.Read] = deque()
        self.given_back: set[tuple[int, int]] = set()

    def loaded(self) -> None:
        self.tell(m.Idle(self.rank))

    def other(self, action: m.Action) -> None:
        if isinstance(action, m.GiveBack):
            self.given_back.add((action.epoch, action.split))
            return
        assert isinstance(action, m.Read)
        (self.urgent if action.only is not None or action.now else self.reads).append(action)

    def step(self) -> bool:
        if not self.reading:
            if not self.urgent and not self.reads:
                return self.acknowledge_ends()
            self.reading.append(((self.urgent or self.reads).popleft(), 0))
            return True
        read, seq = self.reading[-1]
        epoch, split = read.epoch, read.split
        if read.only is None and (epoch, split) in self.given_back:
            self.given_back.remove((epoch, split))
            self.reading.pop()
            self.tell(m.GaveBack(self.rank, epoch, split))
            if not read.now:
                self.tell(m.Idle(self.rank))
            return True
        if read.only is None and self.held(epoch, split) >= self.sim.plan.room:
            if not self.urgent:
                return False
            self.reading.append((self.urgent.popleft(), 0))
            return True
        batches = self.sim.plan.splits[self.sim.coordinator.source.order(epoch)[split]]
        if seq < batches:
            if seq not in read.skip and (read.only is None or seq in read.only):
                self.make((epoch, split, seq), read.redo)
                self.rows[epoch] += 0 if read.redo else ROWS
            self.reading[-1] = (read, seq + 1)
        else:
            self.reading.pop()
            self.tell(m.SplitDone(self.rank, epoch, split, batches, batches * ROWS, read.only is not None))
            if read.only is None and not read.now:
                self.tell(m.Idle(self.rank))
        return True


class Mapper(SimRank):
    """A rank of a map stage."""

    def __init__(self, sim: Simulation, rank: RankId, rules: StageRules) -> None:
        super().__init__(sim, rank, rules)
        self.waiting: m.Send | None = None

    def begin(self) -> None:
        first = self.sim.coordinator.edges[self.rank.stage].begins_with(self.rank)
        self.delivery: Delivery[m.Send] = Delivery(False, self.rules.ordered, first)

    def on(self, action: m.Action) -> None:
        if isinstance(action, m.EpochEnd):
            self.delivery.ended(action.epoch, action.batches, action.sent)
        elif isinstance(action, m.StreamEnd):
            self.delivery.stream_ended(action.epochs)
        else:
            super().on(action)

    def arrived(self, action: m.Send, rows: int) -> None:
        if not self.take(action):
            return
        if action.redo:
            self.delivery.arrived_again(action)
        else:
            self.delivery.arrived(action.id[0], action.place, action)
        self.tell(m.Accepted(self.rank, action.id))

    def step(self) -> bool:
        if self.finished:
            return False
        if self.waiting is not None:
            name = self.waiting.id
            if self.delivery.is_urgent:
                urgent = self.delivery.next()
                assert isinstance(urgent, Deliver)
                self.make(urgent.item.id, True)
                return True
            if self.held(*(name if self.rules.ordered else name[:1])) >= self.sim.plan.room:
                return False
            send, self.waiting = self.waiting, None
            self.make(send.id)
            self.rows[send.id[0]] += self.sim.rows(send.id)
            return True
        match self.delivery.next():
            case Deliver(send) if not send.redo:
                self.waiting = send
            case Deliver(send):
                self.make(send.id, redo=True)
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
        self.delivered: list[tuple[BatchId, Tail | None]] = []
        self.inbox: dict[BatchId, int] = {}
        self.forward: list[m.Send] = []
        self.counts: dict[str, int] = Counter()
        self.returned = False
        self.meetings: list[object] = []
        self.per_epoch: Counter[int] = Counter()
        self.group: list[BatchId] = []
        self.number, self.recorded = sim.plan.number, sim.plan.number
        self.cut: list[tuple[list[BatchId], Tail | None]] = []
        """Where batches are cut anew: the names of the parts of each that was delivered."""

    def begin(self) -> None:
        gated = self.rules.kind == "loop" and self.rules.ranks > 1
        first = self.sim.coordinator.edges[self.rank.stage].begins_with(self.rank)
        if self.rules.rebatch is None:
            self.delivery: Delivery[Parts] = Delivery(gated, self.rules.ordered, first)
        else:
            self.delivery = Joining(
                gated, self.rules.ordered, first, rows=self.rules.rebatch, drop_last=self.rules.drop_last,
                join=lambda parts: [part for of in parts for part in of],
            )  # fmt: skip

    def ask(self, epoch: int) -> None:
        """Make a checkpoint, as all ranks of the loop do after the same batch."""
        if self.sim.plan.every and self.rules.kind == "loop":
            self.number += 1
            self.sim.asked[self.rank] = list(self.delivered)
            self.sim.asked_cut[self.rank] = list(self.cut)
            self.tell(m.Checkpointed(self.rank, self.number, epoch, self.per_epoch[epoch]))

    def store(self, epoch: int) -> None:
        """Close the files of a sink that stores: a part is the names of its batches."""
        if self.rules.stores and self.group:
            self.tell(m.Stored(self.rank, epoch, tuple(self.group)))
        self.group = []

    def on(self, action: m.Action) -> None:
        if isinstance(action, m.EpochEnd) and isinstance(self.delivery, Joining):
            self.delivery.parts_ended(action.epoch, action.batches, action.sent, action.parts)
        elif isinstance(action, m.EpochEnd):
            self.delivery.ended(action.epoch, action.batches, action.sent)
        elif isinstance(action, m.StreamEnd):
            self.delivery.stream_ended(action.epochs)
        else:
            super().on(action)

    def other(self, action: m.Action) -> None:
        if isinstance(action, m.Recorded):
            self.recorded = action.number
            return
        assert isinstance(action, m.Release)
        self.delivery.released(action.epoch, action.rounds)

    def send(self, action: m.Send) -> None:
        self.forward.append(action)
        self.pass_on()

    def pass_on(self) -> None:
        for action in [a for a in self.forward if a.id in self.inbox]:
            self.forward.remove(action)
            self.sim.between[self.rank, action.to].append((action, self.inbox[action.id]))

    def arrived(self, action: m.Send, rows: int) -> None:
        if not self.take(action):
            return
        name = name_of(action)
        assert name not in self.inbox or action.fill, "a batch arrived twice"
        if action.fill is None:
            self.inbox[name] = rows
        if isinstance(self.delivery, Joining):
            assert self.delivery.part_arrived(
                name[0], action.place, action.index, rows, [(action, rows)], fill=action.fill is not None
            )
        else:
            self.delivery.arrived(name[0], action.place, [(action, rows)])
        self.tell(m.Accepted(self.rank, name)) if action.fill is None else None
        self.pass_on()

    def waits_for_others(self) -> bool:
        """Whether another rank of the loop is not yet where this one has come to."""
        if not self.sim.plan.collective or self.rules.kind != "loop" or not self.meetings:
            return False
        others = [other for other in self.sim.ranks.values() if isinstance(other, Consumer) and other.rules is self.rules]
        here = len(self.meetings)
        assert len({other.meetings[here - 1] for other in others if len(other.meetings) >= here}) == 1, (
            "they are not at one step"
        )
        return any(len(other.meetings) < here for other in others)

    def step(self) -> bool:
        if self.returned or self.recorded < self.number or self.waits_for_others():
            return False
        slow = self.sim.plan.slow
        if (self.rank.stage in slow or self.rank in slow) and self.sim.random.random() < 0.9:
            self.sim.slowed = True
            return False
        if self.sim.plan.leaves.get(self.rank, 1 << 30) <= len(self.delivered):
            if self.sim.plan.fails:
                self.returned = True
                self.tell(m.Failed(self.rank, b""))
                return True
            return self.leave()
        match self.delivery.next():
            case Deliver(parts):
                action, rows = parts[0][0], sum(rows for _, rows in parts)
                self.cut.append(([name_of(part) for part, _ in parts], action.fill))
                self.delivered.append((action.id, action.fill))
                self.meetings.append(action.id[0])
                self.per_epoch[action.id[0]] += 1
                epoch = action.id[0]
                if action.fill is Tail.PAD:
                    self.counts[f"padded {epoch}"] += 1
                else:
                    self.rows[epoch] += rows
                    if action.fill is Tail.REPEAT:
                        self.counts[f"repeated {epoch}"] += rows
                    else:
                        for part, _ in parts:
                            self.tell(m.Consumed(self.rank, name_of(part)))
                            self.group.append(name_of(part))
                if self.sim.plan.every and len(self.group) >= self.sim.plan.every:
                    self.store(epoch)
                if self.sim.plan.every and len(self.delivered) % self.sim.plan.every == 0:
                    self.ask(epoch)
                return True
            case End(epoch, left):
                self.meetings.append(f"end of {epoch}")
                repeated = self.counts[f"repeated {epoch}"]
                self.sim.tail += len(left)
                self.store(epoch)
                self.tell(
                    m.EpochDone(self.rank, epoch, self.per_epoch[epoch], self.rows[epoch], 0,
                                sum(rows for parts in left for _, rows in parts), self.counts[f"padded {epoch}"],
                                repeated // ROWS, repeated)
                )  # fmt: skip
                if epoch % 2:
                    self.ask(epoch + 1)
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

    def __init__(self, plan: Plan, seed: int, retries: int = 0) -> None:
        self.plan, self.random = plan, random.Random(seed)
        self.early: dict[RankId, list[m.Action]] = {}
        self.to_driver: dict[RankId, deque[m.Event]] = {}
        self.to_rank: dict[RankId, deque[m.Action]] = {}
        self.between: dict[tuple[RankId, RankId], deque[tuple[m.Send, int]]] = defaultdict(deque)
        self.ranks: dict[RankId, SimRank] = {}
        self.tail = 0
        self.balanced: list[m.EpochBalanced] = []
        self.outcome: m.Action | None = None
        self.asked: dict[RankId, list[tuple[BatchId, Tail | None]]] = {}
        self.asked_cut: dict[RankId, list[tuple[list[BatchId], Tail | None]]] = {}
        self.records_cut: list[tuple[m.Record, list[list[tuple[list[BatchId], Tail | None]]]]] = []
        self.records: list[tuple[m.Record, dict[RankId, list[tuple[BatchId, Tail | None]]]]] = []
        self.kept: list[m.Keep] = []
        order_seed = seed if plan.orders is None else plan.orders
        self.gave_up: list[m.GaveUp] = []
        self.slowed = False
        orders = [
            random.Random(f"{order_seed} {epoch}").sample(range(len(plan.splits)), len(plan.splits))
            for epoch in range(plan.epochs)
        ]
        rows = [batches * ROWS for batches in plan.splits]
        source = SourceRules(plan.epochs, orders.__getitem__, rows)
        if plan.endless:
            ends = [stage.index for stage in plan.stages if stage.kind == "loop"]
            first = min((plan.start.get(index, Position()).epoch for index in ends), default=0)
            source = SourceRules(first, orders.__getitem__, rows, {}, ended=False)
        self.coordinator = Coordinator(plan.stages, source, retries, plan.start)
        for stage in plan.stages:
            for index in range(stage.ranks if stage.begin is None else stage.begin * stage.world):
                self.add(RankId(stage.index, index))
        self.most_held = 0
        self.dead: set[RankId] = set()
        self.deaths: deque[m.Died] = deque()
        self.crashes = plan.crashes
        self.changes = plan.changes
        self.joined_late: list[RankId] = []
        self.left: list[RankId] = []

    def rows(self, name: BatchId) -> int:
        """The rows of what was read, or of what a function has made."""
        return ROWS if len(name) == 3 else self.plan.sizes(name)

    def scale(self) -> bool:
        """The number of worlds of an elastic stage changes, to any from one to all."""
        elastic = [rules for rules in self.plan.stages if rules.begin is not None]
        rules = self.random.choice(elastic)
        self.changes -= 1
        self.carry_out(self.coordinator.scale(rules.index, self.random.randint(1, rules.ranks // rules.world)))
        return True

    def leave(self, rank: RankId) -> None:
        """A world is stopped that was to leave: nothing in its outbox, nothing on its way to it that counts."""
        if rank in self.dead:
            return
        member = self.ranks.pop(rank)
        assert not +member.outbox, f"{rank} leaves with {member.outbox} in its outbox"
        alive = [pair for pair in self.between if rank in pair and not self.dead.intersection(pair)]
        assert not any(self.between[pair] for pair in alive), f"{rank} leaves with a batch on its way"
        assert not self.to_rank.pop(rank), f"{rank} was told something after it had left"
        self.left.append(rank)

    def add(self, rank: RankId) -> None:
        """A rank comes up."""
        kinds = {"read": Reader, "map": Mapper, "loop": Consumer, "write": Consumer}
        rules = self.plan.stages[rank.stage]
        self.to_driver[rank], self.to_rank[rank] = deque([m.Joined(rank, "", 0)]), deque(self.early.pop(rank, ()))
        self.ranks[rank] = kinds[rules.kind](self, rank, rules)

    def crash(self) -> bool:
        """A world of a reading or map stage dies; what was on the way from it arrives in part, or not at all."""
        mortal = [rank for rank in self.ranks if self.plan.stages[rank.stage].kind in ("read", "map")]
        victim = self.random.choice(mortal) if mortal else None
        if victim is None or victim not in (edge := self.coordinator.edges[victim.stage]).ranks:
            return False
        self.crashes -= 1
        for rank in edge.world_of(victim):
            self.dead.add(rank)
            del self.ranks[rank], self.to_rank[rank]
            for queue in (self.to_driver[rank], *(q for pair, q in self.between.items() if pair[0] == rank)):
                for _ in range(self.random.randint(0, len(queue))):
                    queue.pop()
            for pair in [pair for pair in self.between if pair[1] == rank]:
                del self.between[pair]
        self.deaths.append(m.Died(victim, "killed"))
        return True

    def die(self) -> bool:
        """The driver hears of a death."""
        self.carry_out(self.coordinator.on(self.deaths.popleft()))
        return True

    def carry_out(self, actions: list[m.Action]) -> None:
        for action in actions:
            if isinstance(action, m.Finish | m.Fail):
                self.outcome = action
            elif isinstance(action, m.EpochBalanced):
                self.balanced.append(action)
            elif isinstance(action, m.Record):
                whose = [rank for rank in self.asked if rank.stage == action.stage]
                self.records.append((action, {rank: self.asked[rank] for rank in whose}))
                self.records_cut.append((action, [self.asked_cut[rank] for rank in whose]))
            elif isinstance(action, m.Keep):
                self.kept.append(action)
            elif isinstance(action, m.GaveUp):
                self.gave_up.append(action)
            elif isinstance(action, m.Restart):
                for rank in action.ranks:
                    self.add(rank)
            elif isinstance(action, m.Start):
                for rank in action.ranks:
                    self.joined_late.append(rank)
                    self.add(rank)
            elif isinstance(action, m.Left):
                for rank in action.ranks:
                    self.leave(rank)
            elif action.rank in self.to_rank:
                self.to_rank[action.rank].append(action)
            elif action.rank not in self.dead:
                self.early.setdefault(action.rank, []).append(action)

    def cut(self) -> bool:
        """A further epoch of an endless source, or its end."""
        source = self.coordinator.source
        more = source.epochs < self.plan.epochs
        self.carry_out(self.coordinator.cut(len(self.plan.splits)) if more else self.coordinator.end_source())
        return True

    def moves(self) -> list[Callable[[], bool]]:
        moves: list[Callable[[], bool]] = []
        if not self.coordinator.source.ended and self.coordinator.splits.are_handed_out:
            moves.append(self.cut)
        for rank, queue in self.to_driver.items():
            if queue:
                moves.append(lambda rank=rank: self.carry_out(self.coordinator.on(self.to_driver[rank].popleft())) or True)
        for rank, actions in self.to_rank.items():
            if actions and self.ranks[rank].is_welcome:
                moves.append(lambda rank=rank: self.ranks[rank].on(self.to_rank[rank].popleft()) or True)
        for member in self.ranks.values():
            if not member.is_welcome and not any(isinstance(e, m.Joined) for e in self.to_driver[member.rank]):
                moves.append(lambda member=member: member.welcome() or True)
        if self.deaths:
            moves.append(self.die)
        for pair, parcels in self.between.items():
            if parcels and pair[1] in self.ranks:
                moves.append(lambda pair=pair: self.ranks[pair[1]].comes(*self.between[pair].popleft()) or True)
        return moves

    def run(self) -> m.Action:
        self.carry_out(self.coordinator.start())
        while self.outcome is None:
            moves = self.moves() + [rank.turn for rank in self.ranks.values()]
            if self.crashes and self.random.random() < 0.03:
                moves.append(self.crash)
            if self.changes and self.random.random() < 0.05:
                moves.append(self.scale)
            self.random.shuffle(moves)
            self.slowed = False
            assert any(move() for move in moves) or self.slowed, "the run is stuck: nothing can move"
            used = max(max(edge.credit.used.values(), default=0) for edge in self.coordinator.edges)
            self.most_held = max(self.most_held, used)
        return self.outcome

    def delivered(self, stage: int) -> list[list[tuple[BatchId, Tail | None]]]:
        return [r.delivered for r in self.ranks.values() if r.rank.stage == stage and isinstance(r, Consumer)]
