"""The coordinator: who reads what, who gets the next batch, when an epoch has ended, whether the ledger balances.

A state machine without I/O: `on(event)` returns the actions. The driver feeds it what the ranks say and carries out
what it answers. An *edge* is named by the stage it leads to; every stage but the first has exactly one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal

from ghee.protocol import messages as m
from ghee.protocol.credit import Credit
from ghee.protocol.ledger import Ledger
from ghee.protocol.messages import Action, BatchId, RankId, Tail
from ghee.protocol.sequence import Sequence
from ghee.protocol.share import Rounds

Kind = Literal["read", "map", "loop", "write"]


@dataclass(frozen=True)
class StageRules:
    """What the rules need to know of a stage.

    `credit` is in bytes and `most` in batches, both for each rank. `depth` counts the functions that a batch has passed
    through before it arrives here. `after_loop`: a loop lies upstream, so that batches may come after the last epoch.
    """

    index: int
    kind: Kind
    parent: int | None
    ranks: int
    credit: int = 64 << 20
    most: int = 1 << 30
    ordered: bool = False
    tail: Tail = Tail.DROP
    depth: int = 0
    after_loop: bool = False


@dataclass(frozen=True)
class SourceRules:
    """What the rules need to know of the source: `order(epoch)` gives the splits' numbers in the order of reading."""

    epochs: int
    order: Callable[[int], SequenceOf[int]]
    rows: SequenceOf[int | None]


@dataclass
class _Batch:
    """A batch in an outbox. `copies`: to how many edges it must still be sent."""

    sender: RankId
    rows: int
    size: int
    copies: int


class _Edge:
    """The state of the edge into a stage."""

    def __init__(self, rules: StageRules, epochs: int, splits: int) -> None:
        self.rules = rules
        self.splits = splits
        self.epochs = epochs + rules.after_loop
        self.ranks = [RankId(rules.index, index) for index in range(rules.ranks)]
        self.credit = Credit(self.ranks, rules.credit, rules.most)
        self.epoch = 0
        self.ready: dict[int, dict[BatchId, None]] = {}
        self.held: dict[RankId, dict[BatchId, _Batch]] = {rank: {} for rank in self.ranks}
        self.given: dict[int, dict[RankId, int]] = {}
        self.open: dict[int, int] = {}
        self.told: set[int] = set()
        self.done: dict[int, set[RankId]] = {}
        self.returned: set[RankId] = set()
        self.rounds: dict[int, Rounds] = {}
        self.filled: set[int] = set()
        self.sequences: dict[int, Sequence] = {}

    @property
    def shared(self) -> bool:
        """Whether all ranks must get the same number of batches."""
        return self.rules.kind == "loop"

    @property
    def abandoned(self) -> bool:
        return len(self.returned) == len(self.ranks)

    @property
    def left_early(self) -> bool:
        """Whether a rank has returned before the end of the stream."""
        return any(len(self.done.get(epoch, ())) < len(self.ranks) for epoch in range(self.epochs))

    def rounds_of(self, epoch: int) -> Rounds:
        if epoch not in self.rounds:
            self.rounds[epoch] = Rounds(self.ranks, self.rules.ordered)
        return self.rounds[epoch]

    def sequence_of(self, epoch: int) -> Sequence:
        if epoch not in self.sequences:
            self.sequences[epoch] = Sequence(epoch, self.splits, self.rules.depth)
        return self.sequences[epoch]

    def next_ready(self) -> BatchId | None:
        """The batch that is to be given away next."""
        ready = self.ready.get(self.epoch)
        if self.rules.ordered:
            return self.sequence_of(self.epoch).next(ready or {})  # type: ignore[arg-type]
        return next(iter(ready)) if ready else None


class Coordinator:
    """The rules of one run. Not thread-safe: the driver's thread alone calls it."""

    def __init__(self, stages: SequenceOf[StageRules], source: SourceRules) -> None:
        self.stages = list(stages)
        self.source = source
        self.ledger = Ledger([stage.parent for stage in stages])
        self.children: list[list[int]] = [[] for _ in stages]
        for stage in stages[1:]:
            assert stage.parent is not None
            self.children[stage.parent].append(stage.index)
        splits = len(source.rows)
        self.edges = [_Edge(stage, source.epochs, splits) for stage in stages]
        self.batches: dict[BatchId, _Batch] = {}
        self.idle: deque[RankId] = deque()
        self.read_epoch = 0
        self.left: deque[tuple[int, int]] = deque(enumerate(source.order(0)) if source.epochs else ())
        self.splits_done = [0] * source.epochs
        self.finished = False
        self._out: list[Action] = []

    # ── entry ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> list[Action]:
        """The first actions: an empty source has ended before it began."""
        return self._collect()

    def on(self, *events: m.Event) -> list[Action]:
        """Take events in their order, answer with the actions that follow from them."""
        for event in events:
            if not self.finished:
                _HANDLERS[type(event)](self, event)
        return self._collect()

    def _collect(self) -> list[Action]:
        if not self.finished:
            self._settle()
        out, self._out = self._out, []
        return out

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_joined(self, event: m.Joined) -> None:
        pass

    def _on_idle(self, event: m.Idle) -> None:
        self.idle.append(event.rank)
        self._hand_out_splits()

    def _hand_out_splits(self) -> None:
        while self.idle:
            while not self.left:
                if self.read_epoch + 1 >= self.source.epochs or not self.source.rows:
                    return
                self.read_epoch += 1
                self.left.extend(enumerate(self.source.order(self.read_epoch)))
            place, _ = self.left.popleft()
            self._out.append(m.Read(self.idle.popleft(), self.read_epoch, place))

    def split_at(self, epoch: int, place: int) -> int:
        """The number of the split that is read as the `place`-th of an epoch."""
        return self.source.order(epoch)[place]

    def _on_made(self, event: m.Made) -> None:
        stage, epoch = event.rank.stage, event.id[0]
        entry = self.ledger.at(stage, epoch)
        entry.made_rows += event.rows
        entry.made_batches += 1
        children = [child for child in self.children[stage] if not self.edges[child].abandoned]
        for child in self.children[stage]:
            if self.edges[child].abandoned:
                self.ledger.at(child, epoch).skipped += event.rows
        if not children:
            self._out.append(m.Discard(event.rank, event.id))
            return
        self.batches[event.id] = _Batch(event.rank, event.rows, event.size, len(children))
        for child in children:
            self.edges[child].ready.setdefault(epoch, {})[event.id] = None

    def _on_finished(self, event: m.Finished) -> None:
        stage, epoch = event.rank.stage, event.id[0]
        self.ledger.finished(stage, epoch, event.rows_in, event.rows_out, event.outputs)
        if stage > 0:
            self._give_back(event.rank, event.id)
            self.edges[stage].open[epoch] -= 1
        self._count(event.id, event.outputs)

    def _count(self, prefix: BatchId, children: int) -> None:
        for edge in self.edges[1:]:
            if edge.rules.ordered and edge.epoch <= prefix[0]:
                edge.sequence_of(prefix[0]).counted(prefix, children)

    def _on_split_done(self, event: m.SplitDone) -> None:
        entry = self.ledger.at(0, event.epoch)
        expected = self.source.rows[self.split_at(event.epoch, event.split)]
        entry.read_rows += event.rows
        entry.read_batches += event.batches
        entry.expected_rows += event.rows if expected is None else expected
        self.splits_done[event.epoch] += 1
        given = self.edges[0].given.setdefault(event.epoch, {})
        given[event.rank] = given.get(event.rank, 0) + event.batches
        self._count((event.epoch, event.split), event.batches)

    def _on_accepted(self, event: m.Accepted) -> None:
        edge = self.edges[event.rank.stage]
        if edge.shared and len(edge.ranks) > 1:
            self._arrived(edge, event.id[0], event.rank)

    def _arrived(self, edge: _Edge, epoch: int, rank: RankId) -> None:
        rounds = edge.rounds.get(epoch)  # gone when the ranks were told how many batches the epoch has
        released = rounds.arrived(rank) if rounds is not None else None
        if released is not None:
            self._out.extend(m.Release(to, epoch, released) for to in edge.ranks if to not in edge.returned)

    def _on_consumed(self, event: m.Consumed) -> None:
        self._give_back(event.rank, event.id)

    def _give_back(self, rank: RankId, name: BatchId) -> None:
        edge = self.edges[rank.stage]
        batch = edge.held[rank].pop(name, None)
        if batch is not None:  # a batch that stands in for another is charged to nobody
            edge.credit.give_back(rank, batch.size, name[0])
            if edge.shared and edge.epoch in edge.rounds:
                edge.rounds[edge.epoch].unpark(rank)

    def _on_epoch_done(self, event: m.EpochDone) -> None:
        edge = self.edges[event.rank.stage]
        entry = self.ledger.at(event.rank.stage, event.epoch)
        entry.said_rows += event.rows
        entry.skipped += event.skipped
        entry.tail += event.tail
        entry.repeated += event.repeated_rows
        entry.padded += event.padded
        if edge.rules.kind in ("loop", "write"):
            entry.rows_in += event.rows
        for name in [name for name in edge.held[event.rank] if name[0] == event.epoch]:
            self._give_back(event.rank, name)  # what the tail rule dropped was never consumed
        done = edge.done.setdefault(event.epoch, set())
        done.add(event.rank)
        if len(done) == len(edge.ranks):
            self._balance(edge, event.epoch)

    def _balance(self, edge: _Edge, epoch: int) -> None:
        stage = edge.rules.index
        problems = self.ledger.problems(stage, epoch)
        if problems:
            self._fail("ledger", f"the ledger of epoch {epoch} does not balance at stage {stage}: {'; '.join(problems)}")
        else:
            self._out.append(m.EpochBalanced(stage, epoch))

    def _on_returned(self, event: m.Returned) -> None:
        edge = self.edges[event.rank.stage]
        edge.returned.add(event.rank)
        for name in list(edge.held[event.rank]):
            self._give_back(event.rank, name)
        if edge.abandoned:
            for epoch in list(edge.ready):
                for name in list(edge.ready[epoch]):
                    self._skip(edge, epoch, name)
        ends = [e for e in self.edges if not self.children[e.rules.index]]
        nothing_more_wanted = all(e.abandoned and e.left_early for e in ends)
        if nothing_more_wanted or all(e.abandoned for e in self.edges):
            self.finished = True
            self._out.append(m.Finish())

    def _on_failed(self, event: m.Failed) -> None:
        self.finished = True
        self._out.append(m.Fail("user", "a function raised", event.rank, event.error))

    def _on_died(self, event: m.Died) -> None:
        if event.rank not in self.edges[event.rank.stage].returned:
            self.finished = True
            self._out.append(m.Fail("died", event.reason, event.rank))

    def _fail(self, kind: str, message: str) -> None:
        self.finished = True
        self._out.append(m.Fail(kind, message))

    # ── what follows ─────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self) -> None:
        """Give away what can be given, and close epochs that have ended, from the source down."""
        self._tell_ends(self.edges[0])
        for edge in self.edges[1:]:
            self._give_away(edge)
            while edge.epoch < edge.epochs and not edge.ready.get(edge.epoch) and self._upstream_ended(edge):
                self._close(edge)
                if self.finished:
                    return
                edge.epoch += 1
                self._give_away(edge)
            self._tell_ends(edge)

    def _upstream_ended(self, edge: _Edge) -> bool:
        assert edge.rules.parent is not None
        return self._stage_ended(self.edges[edge.rules.parent], edge.epoch)

    def _stage_ended(self, edge: _Edge, epoch: int) -> bool:
        """Whether the stage behind an edge will make no more batches in the epoch."""
        if edge.rules.kind == "read":
            return self.splits_done[epoch] == len(self.source.rows)
        if edge.rules.kind == "map":
            return edge.epoch > epoch and edge.open.get(epoch, 0) == 0
        done = edge.done.get(epoch, set())
        return all(rank in done or rank in edge.returned for rank in edge.ranks)

    def _give_away(self, edge: _Edge) -> None:
        while (name := edge.next_ready()) is not None:
            batch = self.batches[name]
            to = self._receiver(edge, batch.size)
            if to is None:
                return
            del edge.ready[edge.epoch][name]
            if edge.rules.ordered:
                edge.sequence_of(edge.epoch).taken()
            if edge.shared:
                edge.rounds_of(edge.epoch).deal(to)
            if to in edge.returned:
                self._skip(edge, edge.epoch, name)
                if len(edge.ranks) > 1:
                    self._arrived(edge, edge.epoch, to)
            else:
                self._send(edge, name, batch, to)

    def _receiver(self, edge: _Edge, size: int) -> RankId | None:
        if not edge.shared:
            return edge.credit.least_loaded(size, edge.epoch)
        rounds = edge.rounds_of(edge.epoch)
        for rank in rounds.candidates():
            if rank in edge.returned or edge.credit.has_room(rank, size, edge.epoch):
                return rank
            rounds.park(rank)
        return None

    def _send(self, edge: _Edge, name: BatchId, batch: _Batch, to: RankId) -> None:
        given = edge.given.setdefault(edge.epoch, {})
        place = given.get(to, 0)
        given[to] = place + 1
        edge.held[to][name] = batch
        edge.credit.charge(to, batch.size, edge.epoch)
        if edge.rules.kind == "map":
            edge.open[edge.epoch] = edge.open.get(edge.epoch, 0) + 1
        batch.copies -= 1
        self._out.append(m.Send(batch.sender, name, to, place, batch.copies == 0))
        if batch.copies == 0:
            del self.batches[name]

    def _skip(self, edge: _Edge, epoch: int, name: BatchId) -> None:
        """Nobody at this edge wants the batch."""
        batch = self.batches[name]
        edge.ready[epoch].pop(name, None)
        self.ledger.at(edge.rules.index, epoch).skipped += batch.rows
        batch.copies -= 1
        if batch.copies == 0:
            self._out.append(m.Discard(batch.sender, name))
            del self.batches[name]

    def _close(self, edge: _Edge) -> None:
        """Every batch of the epoch was given away: settle the tail."""
        rounds = edge.rounds.get(edge.epoch)
        if edge.shared and rounds is not None and (lacking := rounds.without):
            self._settle_tail(edge, rounds, lacking)
        edge.sequences.pop(edge.epoch, None)
        edge.ready.pop(edge.epoch, None)

    def _settle_tail(self, edge: _Edge, rounds: Rounds, lacking: list[RankId]) -> None:
        tail = edge.rules.tail
        if tail is Tail.ERROR:
            self._fail(
                "tail",
                f"epoch {edge.epoch} has {rounds.dealt} batches for {len(edge.ranks)} ranks, which does not divide, and "
                f'tail="error" was asked for; allowed: "drop", "pad", "repeat", or another number of replicas',
            )
        elif tail is not Tail.DROP and (found := self._last_of_round(edge, lacking)) is not None:
            edge.filled.add(edge.epoch)
            giver, name = found
            for rank in lacking:
                if rank not in edge.returned:
                    place = edge.given.setdefault(edge.epoch, {}).get(rank, 0)
                    edge.given[edge.epoch][rank] = place + 1
                    self._out.append(m.Send(giver, name, rank, place, False, tail))

    def _last_of_round(self, edge: _Edge, lacking: list[RankId]) -> tuple[RankId, BatchId] | None:
        """A rank that has a batch of the unfinished round, and that batch: the last one that it was given.

        None if all that have one have returned: then nobody needs the round to be filled.
        """
        for rank in edge.ranks:
            if rank not in lacking and rank not in edge.returned:
                return rank, next(name for name in reversed(edge.held[rank]) if name[0] == edge.epoch)
        return None

    def _tell_ends(self, edge: _Edge) -> None:
        """Tell the ranks of a stage which epochs have ended for them, and when the stream has."""
        kind = edge.rules.kind
        while len(edge.told) < edge.epochs:
            epoch = len(edge.told)
            ended = edge.epoch > epoch if kind in ("loop", "write") else self._stage_ended(edge, epoch)
            if not ended:
                return
            edge.told.add(epoch)
            self._out.extend(m.EpochEnd(rank, epoch, *self._share(edge, epoch, rank)) for rank in self._present(edge))
            edge.rounds.pop(epoch, None)
        if len(edge.told) == edge.epochs:
            edge.told.add(edge.epochs)
            self._out.extend(m.StreamEnd(rank, edge.epochs) for rank in self._present(edge))

    def _present(self, edge: _Edge) -> Iterator[RankId]:
        return (rank for rank in edge.ranks if rank not in edge.returned)

    def _share(self, edge: _Edge, epoch: int, rank: RankId) -> tuple[int, int]:
        """How many batches the rank is to deliver in the epoch, and how many were sent to it."""
        sent = edge.given.get(epoch, {}).get(rank, 0)
        if not edge.shared:
            return sent, sent
        return edge.rounds_of(epoch).full_rounds + (epoch in edge.filled), sent


_HANDLERS: dict[type, Callable[..., None]] = {
    m.Joined: Coordinator._on_joined,
    m.Idle: Coordinator._on_idle,
    m.Made: Coordinator._on_made,
    m.Finished: Coordinator._on_finished,
    m.SplitDone: Coordinator._on_split_done,
    m.Accepted: Coordinator._on_accepted,
    m.Consumed: Coordinator._on_consumed,
    m.EpochDone: Coordinator._on_epoch_done,
    m.Returned: Coordinator._on_returned,
    m.Failed: Coordinator._on_failed,
    m.Died: Coordinator._on_died,
}
