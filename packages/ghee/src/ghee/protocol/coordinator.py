"""The coordinator: who reads what, who gets the next batch, when an epoch has ended, what is made again.

A state machine without I/O: `on(events)` returns the actions. The driver feeds it what the ranks say and carries out
what it answers. An *edge* is named by the stage it leads to; every stage but the first has exactly one. The rules in
prose, with the reasons: docs/protocol.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf

from ghee.protocol import messages as m
from ghee.protocol.branches import Branches
from ghee.protocol.dealing import Dealing
from ghee.protocol.edge import Edge, SourceRules, StageRules
from ghee.protocol.ledger import Ledger
from ghee.protocol.lineage import Batch, Lineage, Status, Way
from ghee.protocol.messages import Action, BatchId, Cause, RankId, Tail
from ghee.protocol.position import Position, Step, Tracker, Uneven
from ghee.protocol.recovery import Recovery
from ghee.protocol.recut import Cut, count
from ghee.protocol.share import Rounds
from ghee.protocol.splits import Splits
from ghee.protocol.stored import Stores
from ghee.protocol.taken import Taken
from ghee.protocol.worlds import Worlds

RETRIES = 3
"""How often a world may be started again, unless the run says otherwise."""


class Coordinator:
    """The rules of one run. Not thread-safe: the driver's thread alone calls it."""

    def __init__(
        self,
        stages: SequenceOf[StageRules],
        source: SourceRules,
        retries: int = RETRIES,
        start: Mapping[int, Position] | None = None,
    ) -> None:
        """`start`: by the index of a loop's or a sink's stage, what it has taken in an earlier run."""
        self.stages = list(stages)
        self.source = source
        self.ledger = Ledger([stage.parent for stage in stages])
        self.children: list[list[int]] = [[] for _ in stages]
        for stage in stages[1:]:
            assert stage.parent is not None
            self.children[stage.parent].append(stage.index)
        starts = self._starts(start or {})
        self.edges = [Edge(stage, source, starts[stage.index].epoch, starts[stage.index]) for stage in stages]
        self.lineage = Lineage()
        first = starts[0]
        self.splits = Splits(source, self.lineage.finished_of_split, first.epoch, first.splits)
        self.lineage.finished[first.epoch] = Taken(first.splits, first.roots)
        for roots in first.roots.values():
            entry = self.ledger.at(0, first.epoch)
            entry.before_rows += roots.rows
            entry.before_batches += len(roots)
        self.trackers = {
            edge.rules.index: Tracker(edge.ranks, self.lineage, starts[edge.rules.index])
            for edge in self.edges
            if edge.rules.kind == "loop" and not edge.rules.loops_before
        }
        self.stores = {
            edge.rules.index: Stores(edge.ranks, self.lineage, starts[edge.rules.index])
            for edge in self.edges
            if edge.rules.stores and not edge.rules.loops_before
        }
        self.recovery = Recovery(self.edges, self.lineage, self.splits, retries)
        self.branches = Branches(self.recovery, self._skip)
        self.dealing = Dealing(
            self.lineage, self.recovery, receiver=self._receiver, send=self._send, skip=self._skip, arrived=self._arrived
        )  # fmt: skip
        self.worlds = Worlds(self.edges, self.splits, self.recovery)
        self._elastic = [edge for edge in self.edges if edge.rules.begin is not None]
        self.first_failure: m.Fail | None = None
        self.finished = False
        self._tally: dict[tuple[RankId, int], int] = {}
        self._over = first.epoch
        self._out: list[Action] = []

    def _starts(self, start: Mapping[int, Position]) -> list[Position]:
        """Where each stage begins: a loop after what it has taken, the others with what a stage behind them lacks."""
        starts = [Position()] * len(self.stages)
        for stage in reversed(self.stages):
            children = self.children[stage.index]
            if stage.kind == "loop" or not children:
                starts[stage.index] = start.get(stage.index, Position())
            else:
                starts[stage.index] = functools.reduce(Position.common, (starts[child] for child in children))
        return starts

    # ── entry ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> list[Action]:
        """The first actions: an empty source has ended before it began."""
        return self.on()

    def cut(self, splits: int, owners: SequenceOf[int] = ()) -> list[Action]:
        """An endless source has a further epoch, of so many splits (at least one).

        `owners`: for each split whose it is at an edge where a split's batches go to one rank (`StageRules.by_split`).
        """
        assert self.source.cuts is not None
        assert splits
        assert not self.source.ended
        self.source.cuts[self.source.epochs] = splits
        self.source.owners[self.source.epochs] = owners
        self.source.epochs += 1
        return self.on()

    def end_source(self) -> list[Action]:
        """An endless source has no further epoch: what was cut is brought to its end."""
        self.source.ended = True
        return self.on()

    def on(self, *events: m.Event) -> list[Action]:
        """Take events in their order, answer with the actions that follow from them."""
        for event in events:
            if not self.finished and self._is_alive(event.rank):
                _HANDLERS[type(event)](self, event)
        if not self.finished:
            self._settle()
            self._balance()
        out, self._out = self._out, []
        return out

    def given(self, rank: RankId, steps: int) -> list[Action]:
        """The function of a loop's rank has been given so many batches since the run's very beginning."""
        if not self.finished and self._is_alive(rank):
            self._track(rank, lambda tracker: tracker.given(rank, steps))
        return self.on()

    def scale(self, stage: int, worlds: int) -> list[Action]:
        """Have an elastic stage consist of so many worlds from now on."""
        if self.finished:
            return []
        self._out.extend(self.worlds.ask(self.edges[stage], worlds))
        return self.on()

    def _is_alive(self, rank: RankId) -> bool:
        """What a dead rank had said last is as if it had not been said: it was lost with it."""
        edge = self.edges[rank.stage]
        return edge.ranks[rank.index].life == rank.life and not edge.failed

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_joined(self, event: m.Joined) -> None:
        edge = self.edges[event.rank.stage]
        if edge.rules.kind != "read" and event.rank not in edge.credit.used:
            edge.credit.add(event.rank)

    def _on_idle(self, event: m.Idle) -> None:
        self.splits.idle(event.rank)

    def _on_made(self, event: m.Made) -> None:
        known = self.lineage.find(event.id)
        if known is not None:
            self._recover(self.recovery.made_again(event, known, self.ledger))
            return
        if self.lineage.is_closed(event.id):
            self._out.append(m.Discard(event.rank, event.id))
            return
        stage, epoch = event.rank.stage, event.id[0]
        self.ledger.made(stage, epoch, event.rows)
        ways = {}
        for child in self.children[stage]:
            edge = self.edges[child]
            left = edge.left_of(event.id, event.rows)
            rows = event.rows if left is None else count(left)
            self.ledger.at(child, epoch).before_rows += event.rows - rows
            if self._was_taken(edge, event.id):
                self.ledger.at(child, epoch).before_rows += rows
            elif edge.abandoned:
                self.ledger.at(child, epoch).skipped += rows
            elif left == []:
                edge.passed(event.id)
            else:
                ways[child] = Way(event.rank, left=left)
        batch = Batch(event.id, event.rows, event.size, ways, {event.rank})
        batch.cut = any(way.left is not None for way in ways.values())
        root = self.lineage.root_of(event.id)
        root.batches[event.id] = batch
        if not ways:  # it is kept in mind all the same: it may be made again, and counts once
            self._out.append(m.Discard(event.rank, event.id))
            self.lineage.close_if_over(event.id[:3])
            return
        root.open += len(ways)
        self.recovery.depends_on(event.rank, batch)
        for child in ways:
            self.edges[child].add_ready(batch)

    @staticmethod
    def _was_taken(edge: Edge, name: BatchId) -> bool:
        """Whether a consumer has had a batch in an earlier run, or all consumers behind a map what would come of it."""
        if edge.taken is None:
            return False
        return edge.taken.has(name) if edge.is_consumer else edge.taken.has_root(name)

    @staticmethod
    def _check_none_left(edge: Edge, tracker: Tracker) -> None:
        if edge.returned and tracker.is_asked:
            gone = min(rank.index for rank in edge.returned)
            raise Uneven(f"rank {gone} has returned, and another rank asks for a checkpoint: all ranks make it together")

    def _on_finished(self, event: m.Finished) -> None:
        stage, epoch = event.rank.stage, event.id[0]
        # Closed: its last lost batch came out and was consumed before its function was done with it again.
        root = None if self.lineage.is_closed(event.id) else self.lineage.root_of(event.id)
        if root is not None and event.id not in root.finished:
            rows_out = self.recovery.rows_made_of(event, root) if event.redo else event.rows_out
            self.ledger.finished(stage, epoch, event.rows_in, rows_out, event.outputs)
            for edge in self.edges[1:]:
                edge.counted(event.id, event.outputs)
            self.lineage.mark_finished(event.id, root, event.rows_in)
        if stage > 0:
            self._take_in(event.rank, event.id)
            self.edges[stage].open[epoch] -= 1
        if root is not None:
            self._recover(self.recovery.settle_lost(event, root, self.ledger))
            self.lineage.close_if_over(event.id[:3])
        if not event.redo:
            self._count(event.rank, epoch, event.rows_in)

    def _count(self, rank: RankId, epoch: int, rows: int) -> None:
        self._tally[rank, epoch] = self._tally.get((rank, epoch), 0) + rows

    def _on_split_done(self, event: m.SplitDone) -> None:
        key = (event.epoch, event.split)
        if self.splits.split_done(event):
            entry, expected = self.ledger.at(0, event.epoch), self.splits.rows(key)
            entry.read_rows += event.rows
            entry.read_batches += event.batches
            entry.expected_rows += event.rows if expected is None else expected
            for edge in self.edges[1:]:
                edge.counted(key, event.batches)
            self.lineage.finished_of(event.epoch).read(event.split, event.batches)
            for follows in (*self.trackers.values(), *self.stores.values()):
                follows.read(key, event.batches)

    def _on_gave_back(self, event: m.GaveBack) -> None:
        self.splits.gave_back(event)

    def _on_accepted(self, event: m.Accepted) -> None:
        edge = self.edges[event.rank.stage]
        batch = edge.held[event.rank].get(event.id)
        if batch is not None and batch.ways[event.rank.stage].status is Status.SENT:
            self._out.extend(self.recovery.arrived(batch, event.rank.stage))
            complete = edge.line is None or edge.line.arrived(event.id)
            if edge.shared and complete:
                self._arrived(edge, event.id[0], event.rank)

    def _arrived(self, edge: Edge, epoch: int, rank: RankId) -> None:
        rounds = edge.rounds_if_open(epoch)
        released = rounds.arrived(rank) if rounds is not None else None
        if released is not None:
            self._out.extend(m.Release(to, epoch, released) for to in self._present(edge))

    def _on_recalled(self, event: m.Recalled) -> None:
        self._out.extend(self.recovery.recalled(event))

    def _on_consumed(self, event: m.Consumed) -> None:
        edge = self.edges[event.rank.stage]
        batch = edge.held[event.rank].get(event.id)
        if batch is None:
            return
        self._count(event.rank, event.id[0], batch.rows)
        if event.rank.stage in self.stores:
            self.stores[event.rank.stage].taken(event.rank, event.id)
        # The parts of a batch are taken with the last of them.
        names = [event.id] if edge.line is None else edge.line.consumed(event.id)
        if names:
            # First they follow it, for it may be the last of its root, which then is closed.
            self._track(event.rank, lambda tracker: tracker.taken(event.rank, *names))
        for name in names:
            self._take_in(event.rank, name)

    def _on_stored(self, event: m.Stored) -> None:
        if event.rank.stage in self.stores:
            self._out.extend(self.stores[event.rank.stage].stored(event))
        else:  # behind a loop there is no position that could be gone back to
            self._out.append(m.Keep(event.rank.stage, event.parts, None))

    def _track(self, rank: RankId, follow: Callable[[Tracker], object]) -> None:
        tracker = self.trackers.get(rank.stage)
        if tracker is not None:
            try:
                follow(tracker)
            except Uneven as error:
                self._fail(Cause.CHECKPOINT, str(error))

    def _on_checkpointed(self, event: m.Checkpointed) -> None:
        if event.rank.stage not in self.trackers:  # behind a loop there is no position that could be gone back to
            self._out.append(m.Recorded(event.rank, event.number))
            return

        def record(tracker: Tracker) -> None:
            position = tracker.asked(event.rank, event.number, Step(event.epoch, event.step), event.steps)
            if position is None:
                self._check_none_left(self.edges[event.rank.stage], tracker)
            if position is not None:
                self._out.append(m.Record(event.rank.stage, event.number, event.steps, event.value, position))
                self._out.extend(m.Recorded(rank, event.number) for rank in self.edges[event.rank.stage].ranks)

        self._track(event.rank, record)

    def _take_in(self, rank: RankId, name: BatchId) -> Batch | None:
        """The rank is done with a batch. None if it stood in for another: that is charged to nobody."""
        edge = self.edges[rank.stage]
        batch = edge.held[rank].pop(name, None)
        if batch is not None:
            if batch.ways[rank.stage].status is Status.LOST:  # and is not to be made again any more
                edge.lost[name[0]] -= 1
            edge.credit.give_back(rank, batch.size, name[0])
            rounds = edge.rounds_if_open(edge.epoch)
            if rounds is not None:
                rounds.unpark(rank)
            self.lineage.done(batch, rank.stage)
        return batch

    def _on_epoch_done(self, event: m.EpochDone) -> None:
        edge = self.edges[event.rank.stage]
        said = event.rows + event.skipped - event.repeated_rows
        tally = self._tally.pop((event.rank, event.epoch), 0)
        if said != tally:
            self._fail(Cause.LEDGER, f"{event.rank} counted {said} rows in epoch {event.epoch}, the driver {tally}")
            return
        if edge.is_consumer:
            entry = self.ledger.at(event.rank.stage, event.epoch)
            entry.skipped += event.skipped
            entry.tail += event.tail
            entry.repeated += event.repeated_rows
            entry.padded += event.padded
            entry.rows_in += event.rows
            for name in [name for name in edge.held[event.rank] if name[0] == event.epoch]:
                self._take_in(event.rank, name)  # what the tail rule dropped was never consumed
            if edge.line is not None:
                edge.line.drop(event.rank, event.epoch)
            self._track(event.rank, lambda tracker: tracker.epoch_done(event.rank, event.epoch))
            if event.rank.stage in self.stores:
                self._out.extend(self.stores[event.rank.stage].ended(event.rank, event.epoch))
            edge.done.setdefault(event.epoch, set()).add(event.rank)
            self._balance()

    def _balance(self) -> None:
        """An epoch is over when every stage is done with it: nothing of it will be made again, so all stages must balance.

        Where a rank has returned before its end there is nothing to balance. One after the other, they are forgotten.
        """
        while not self.finished:
            epoch = self._over
            edges = [edge for edge in self.edges if not edge.failed and epoch < edge.epochs]
            if not edges or not all(edge.is_left(epoch) for edge in edges if edge.is_consumer):
                return
            if not all(edge.is_consumer or self._stage_ended(edge, epoch) for edge in edges):
                return
            if all(edge.is_done(epoch) for edge in edges if edge.is_consumer):
                self._check_balance([edge.rules.index for edge in edges], epoch)
            if not self.finished:
                self._over += 1
                self._forget(epoch)

    def _check_balance(self, stages: SequenceOf[int], epoch: int) -> None:
        for stage in stages:
            problems = self.ledger.problems(stage, epoch)
            if problems:
                self._fail(Cause.LEDGER, f"epoch {epoch} does not balance at stage {stage}: {'; '.join(problems)}")
                return
            self._out.append(m.EpochBalanced(stage, epoch))

    def _forget(self, epoch: int) -> None:
        """The epoch is over: memory must not grow with their number."""
        self.lineage.forget(epoch)
        self.splits.forget_epoch(epoch)
        self.source.owners.pop(epoch, None)
        self.ledger.fold(epoch)
        for edge in self.edges:
            edge.forget(epoch)
            if self.source.cuts is not None:
                edge.restarts.clear()  # what a stream may survive is counted anew where it has got on

    def _on_returned(self, event: m.Returned) -> None:
        edge = self.edges[event.rank.stage]
        edge.returned.add(event.rank)
        self._track(event.rank, lambda tracker: self._check_none_left(edge, tracker))
        self._track(event.rank, Tracker.give_up)
        for name, batch in list(edge.held[event.rank].items()):
            has_come = batch.ways[event.rank.stage].status is Status.HELD
            self._take_in(event.rank, name)
            if edge.shared and edge.line is None and not has_come:  # no other rank is to wait for it
                self._arrived(edge, name[0], event.rank)
        if edge.line is not None:
            for cut in edge.line.drop(event.rank):
                if edge.shared:
                    self._arrived(edge, cut.epoch, event.rank)
        self._left(edge)
        self._out.extend(self.worlds.returned(edge, event.rank))

    def _left(self, edge: Edge) -> None:
        """A rank has left a stage: nothing is wanted any more where all have."""
        if edge.abandoned:
            for batch in [batch for ready in edge.ready.values() for batch in ready.values()]:
                edge.ready[batch.id[0]].pop(batch.id)
                self._skip(edge, batch)
            for batch in [batch for missed in edge.missed.values() for batch in missed.values()]:
                self.ledger.at(edge.rules.index, batch.id[0]).skipped += batch.rows
                self.lineage.done(batch, edge.rules.index)  # its maker has thrown it away when it went past
            edge.missed.clear()
            self.recovery.abandon(edge)
        ends = [e for e in self.edges if not self.children[e.rules.index]]
        nothing_more_wanted = all(e.abandoned and not e.complete for e in ends)
        if nothing_more_wanted or all(e.abandoned for e in self.edges):
            self.finished = True
            self._out.append(m.Finish())

    def _on_failed(self, event: m.Failed) -> None:
        self._end_or_go_on(event.rank, m.Fail(Cause.USER, "a function raised", event.rank, event.error, event.again))

    def _on_died(self, event: m.Died) -> None:
        actions = self.recovery.bury(event)
        self._recover(actions)
        if not self.finished and any(isinstance(action, m.Left) for action in actions):
            self._left(self.edges[event.rank.stage])  # it was on its way out, and may be the last that had not returned

    def _recover(self, actions: list[Action]) -> None:
        self.finished = any(isinstance(action, m.Fail) for action in actions)
        self._out.extend(actions)

    def _end_or_go_on(self, rank: RankId, cause: m.Fail) -> None:
        """A stage has failed. The run goes on where other branches may; when the last has failed, the first is the cause."""
        edge = self.edges[rank.stage]
        self.first_failure = self.first_failure or cause
        if not edge.rules.may_fail or all(e.failed for e in self.edges if e.rules.may_fail and e is not edge):
            self.finished = True
            self._out.append(self.first_failure if edge.rules.may_fail else cause)
            return
        edge.failed = True
        self._out.append(m.GaveUp(rank.stage, cause))
        for other in edge.ranks:
            edge.returned.add(other)
            for name in list(edge.held[other]):
                self._take_in(other, name)
        self._left(edge)
        self._balance()

    def _fail(self, cause: Cause, message: str) -> None:
        self.finished = True
        self._out.append(m.Fail(cause, message))

    # ── what follows ─────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self) -> None:
        """Give away what can be given, and close epochs that have ended, from the source down."""
        self._out.extend(self.splits.hand_out(self.edges[0].takers))
        self._tell_ends(self.edges[0])
        for edge in self.edges[1:]:
            self._advance(edge)
        for edge in self.edges[1:]:
            if edge.rules.when_slow is not m.WhenSlow.WAIT:
                self._out.extend(self.branches.pass_over(edge))
                self._advance(edge)
                self._out.extend(self.splits.hand_out(self.edges[0].takers))  # what the branch has missed
        for edge in self._elastic:
            if edge.leaving and not self.finished:
                self._out.extend(self.worlds.settle(edge))

    def _advance(self, edge: Edge) -> None:
        self._give_away(edge)
        while not self.finished and self._may_close(edge):
            if edge.line is not None:
                self.dealing.close(edge)
            self._settle_tail(edge)
            if self.finished:
                return
            edge.go_on()
            self._give_away(edge)
        if not self.finished:
            self._tell_ends(edge)

    def _may_close(self, edge: Edge) -> bool:
        assert edge.rules.parent is not None
        return (
            edge.epoch < edge.epochs
            and not edge.ready.get(edge.epoch)
            and not edge.lost.get(edge.epoch)
            and not edge.missed.get(edge.epoch)
            and self._stage_ended(self.edges[edge.rules.parent], edge.epoch)
        )

    def _stage_ended(self, edge: Edge, epoch: int) -> bool:
        """Whether the stage behind an edge will make no more batches in the epoch."""
        if edge.rules.kind == "read":
            return self.splits.is_over(epoch)
        if edge.rules.kind == "map":
            busy = edge.open.get(epoch, 0) or edge.lost.get(epoch, 0) or any(name[0] == epoch for name in edge.late)
            return edge.epoch > epoch and not busy
        return edge.is_left(epoch)

    def _give_away(self, edge: Edge) -> None:
        while edge.late:
            batch = next(iter(edge.late.values()))
            to = edge.credit.least_loaded()
            if to is None:
                return
            del edge.late[batch.id]
            self._send(edge, batch, to)
        if edge.line is not None:
            self.dealing.deal(edge)
            return
        while (ready := edge.next_ready()) is not None:
            to = self._receiver(edge, ready, ready.size)
            if to is None:
                return
            edge.take_ready(ready)
            if edge.shared:
                edge.rounds(edge.epoch).deal()
            if to in edge.returned:
                self._skip(edge, ready)
                if edge.shared:
                    self._arrived(edge, edge.epoch, to)
            else:
                self._send(edge, ready, to)

    def _receiver(self, edge: Edge, batch: Batch, size: int) -> RankId | None:
        if edge.rules.by_split:
            to = edge.ranks[self.source.owners[batch.id[0]][batch.id[1]] % len(edge.ranks)]
            return to if to in edge.returned or edge.credit.has_room(to, size, edge.epoch) else None
        if not edge.shared:
            return edge.credit.least_loaded_with_room(size, edge.epoch)
        rounds = edge.rounds(edge.epoch)
        while (rank := rounds.candidate()) is not None:
            if rank in edge.returned or edge.credit.has_room(rank, size, edge.epoch):
                return rank
            rounds.park()
            if rounds.ordered:
                return None
        return None

    def _send(self, edge: Edge, batch: Batch, to: RankId, cut: Cut | None = None) -> None:
        way, epoch = batch.ways[edge.rules.index], batch.id[0]
        if cut is not None:
            assert edge.line is not None
            way.place, way.index = cut.place, edge.line.add(cut, batch)
        elif not way.redo:
            way.place = edge.next_place(to)
        way.status, way.to = Status.SENT, to
        edge.held[to][batch.id] = batch
        edge.credit.charge(to, batch.size, epoch)
        if edge.rules.kind == "map":
            edge.open[epoch] = edge.open.get(epoch, 0) + 1
        last = not batch.is_wanted_of(way.sender)
        skip, take = (0, None) if batch.whole is None else batch.id[-2:]
        self._out.append(
            m.Send(way.sender, batch.made, to, way.place, last, redo=way.redo, index=way.index, skip=skip, take=take)
        )

    def _skip(self, edge: Edge, batch: Batch) -> None:
        """Nobody at this edge wants the batch."""
        left = batch.ways[edge.rules.index].left
        self.ledger.at(edge.rules.index, batch.id[0]).skipped += batch.rows if left is None else count(left)
        self.lineage.done(batch, edge.rules.index)
        self._out.extend(self.recovery.let_go(batch, batch.ways[edge.rules.index].sender))

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _settle_tail(self, edge: Edge) -> None:
        """Every batch of the epoch was given away: what of those that do not divide?"""
        rounds, tail = edge.rounds_if_open(edge.epoch), edge.rules.tail
        lacking = rounds.without if edge.shared and rounds is not None else []
        if rounds is None or not lacking or tail is Tail.DROP:
            return
        if tail is Tail.ERROR:
            self._fail(
                Cause.TAIL,
                f"epoch {edge.epoch} has {rounds.dealt} batches for {len(edge.ranks)} ranks, which does not divide, and "
                f'tail="error" was asked for; allowed: "drop", "pad", "repeat", or another number of replicas',
            )
            return
        giver = next((rank for rank in edge.ranks if rank not in lacking and rank not in edge.returned), None)
        if giver is None:
            return  # whoever has a batch of this round has returned: nobody needs it to be filled
        self._fill(edge, rounds, giver, [rank for rank in lacking if rank not in edge.returned], tail)

    def _fill(self, edge: Edge, rounds: Rounds, giver: RankId, lacking: list[RankId], tail: Tail) -> None:
        """The giver sends a copy of its last batch to the ranks that lack one."""
        edge.filled.add(edge.epoch)
        if edge.line is None:
            names = [next(name for name in reversed(edge.held[giver]) if name[0] == edge.epoch)]
        else:
            names = edge.line.last[giver].names
            names = names[:1] if tail is Tail.PAD else names
        for rank in lacking:
            place = edge.next_place(rank)
            for index, name in enumerate(names):
                self._out.append(m.Send(giver, name, rank, place, False, tail, index=index))
            if edge.line is not None:
                edge.line.parts[edge.epoch, rank] += len(names)

    def _tell_ends(self, edge: Edge) -> None:
        """Tell the ranks of a stage which epochs have ended for them, and when the stream has."""
        while edge.told < edge.epochs:
            epoch = edge.told
            if not (edge.epoch > epoch if edge.is_consumer else self._stage_ended(edge, epoch)):
                return
            edge.told += 1
            self._out.extend(
                m.EpochEnd(
                    rank, epoch, *self._share(edge, epoch, rank), parts=edge.line.parts[epoch, rank] if edge.line else 0
                )
                for rank in self._present(edge)
            )
            edge.forget_rounds(epoch)
        if not edge.told_end and edge.ended and (edge.is_consumer or self._is_drained(edge)):
            edge.told_end = True
            self._out.extend(m.StreamEnd(rank, edge.epochs) for rank in self._present(edge))

    def _is_drained(self, edge: Edge) -> bool:
        """Whether nothing that this stage made can be needed again: its consumers have all."""
        for child in (self.edges[number] for number in self.children[edge.rules.index]):
            over = child.complete or child.abandoned if child.is_consumer else self._is_drained(child)
            if not over:
                return False
        return True

    def _present(self, edge: Edge) -> Iterator[RankId]:
        return (rank for rank in edge.ranks if rank not in edge.returned and rank not in edge.parting)

    def _share(self, edge: Edge, epoch: int, rank: RankId) -> tuple[int, int]:
        """How many batches the rank is to deliver in the epoch, and how many were sent to it."""
        sent = edge.given.get(epoch, {}).get(rank, 0)
        if not edge.shared:
            return sent, sent
        return edge.rounds(epoch).full_rounds + (epoch in edge.filled), sent


_HANDLERS: dict[type, Callable[..., None]] = {
    m.Joined: Coordinator._on_joined,
    m.Idle: Coordinator._on_idle,
    m.Made: Coordinator._on_made,
    m.Finished: Coordinator._on_finished,
    m.SplitDone: Coordinator._on_split_done,
    m.GaveBack: Coordinator._on_gave_back,
    m.Accepted: Coordinator._on_accepted,
    m.Recalled: Coordinator._on_recalled,
    m.Consumed: Coordinator._on_consumed,
    m.EpochDone: Coordinator._on_epoch_done,
    m.Checkpointed: Coordinator._on_checkpointed,
    m.Stored: Coordinator._on_stored,
    m.Returned: Coordinator._on_returned,
    m.Failed: Coordinator._on_failed,
    m.Died: Coordinator._on_died,
}
