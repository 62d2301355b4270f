"""What follows when a reading or map rank dies: what was lost with it is made again from the source, once.

Nothing is kept for the case of a crash: a rank forgets a batch as soon as it was sent. What is lost is found by lineage
and made again from the source by whoever is idle; what comes out a second time though it was never lost is thrown away
at its maker, by name. So a batch can be made twice but never delivered twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from ghee.protocol import messages as m
from ghee.protocol.edge import Edge
from ghee.protocol.ledger import Ledger
from ghee.protocol.lineage import Batch, Lineage, Root, Status, Way
from ghee.protocol.messages import Action, BatchId, Cause, RankId
from ghee.protocol.splits import Splits


class Recovery:
    """Decides what is made again. Works on the coordinator's edges, lineage and splits."""

    def __init__(self, edges: Sequence[Edge], lineage: Lineage, splits: Splits, retries: int) -> None:
        self._edges, self._lineage, self._splits = edges, lineage, splits
        self.retries = retries
        self._from: dict[RankId, dict[BatchId, Batch]] = {}

    # ── in ordinary times ────────────────────────────────────────────────────────────────────────────────────────

    def depends_on(self, rank: RankId, batch: Batch) -> None:
        """Until it has arrived everywhere, the batch would be lost with the rank."""
        self._from.setdefault(rank, {})[batch.key] = batch

    def is_needed(self, rank: RankId) -> bool:
        """Whether something would be lost if the rank were gone now."""
        return bool(self._from.get(rank))

    def arrived(self, batch: Batch, stage: int) -> list[Action]:
        """The batch has arrived at one of the stages that it was on its way to."""
        way = batch.ways[stage]
        way.status, way.recalled = Status.HELD, False
        if batch.whole is not None and batch.whole.parts:
            batch.whole.parts.pop(batch.key, None)
        if not batch.depends_on(way.sender):
            self._from.get(way.sender, {}).pop(batch.key, None)
        return self._drop_spare(batch, way)

    def _drop_spare(self, batch: Batch, way: Way) -> list[Action]:
        spare, way.spare = way.spare, None
        if spare is None or batch.is_wanted_of(spare):
            return []
        if not batch.depends_on(spare):
            self._from.get(spare, {}).pop(batch.key, None)
        return [m.Discard(spare, batch.made)]

    def let_go(self, batch: Batch, sender: RankId) -> list[Action]:
        """A stage wants the batch no more: its maker throws it away unless another stage still waits for it."""
        if batch.is_wanted_of(sender):
            return []
        if not batch.depends_on(sender):
            self._from.get(sender, {}).pop(batch.key, None)
        return [m.Discard(sender, batch.made)]

    def dealt(self, batch: Batch, sender: RankId) -> None:
        """All rows of a batch were given away, as parts, on which what would be lost depends from now on."""
        if not batch.depends_on(sender):
            self._from.get(sender, {}).pop(batch.key, None)

    def make_missed(self, batch: Batch, stage: int) -> None:
        """A batch that went past a slow stage is made again for it, as if it had been lost before it was given away."""
        way = batch.ways[stage]
        way.status, way.missed = Status.READY, True
        self._lose(batch, stage, again_at=None)

    # ── a death ──────────────────────────────────────────────────────────────────────────────────────────────────

    def bury(self, died: m.Died) -> list[Action]:
        """A rank has died, and its world with it: find what is lost, and have the world started again.

        A world that was to leave is not started again, and its death does not count.
        """
        rank, reason = died.rank, died.reason
        edge = self._edges[rank.stage]
        world = edge.world_of(rank)
        if edge.is_consumer or edge.rules.loops_before:  # what a loop has made cannot be made again
            # The world has died with it: what its other ranks had not returned is lost, though this one had.
            is_over = all(member in edge.returned for member in world)
            return [] if is_over else [m.Fail(died.cause, reason, rank, again=died.cause.is_kill)]
        number = rank.index // edge.rules.world
        before, leaving = edge.restarts.get(number, 0), rank in edge.leaving
        if not died.cause.is_kill or (before == self.retries and not leaving):
            return [m.Fail(died.cause, f"{reason} (started again {before} times before)" if before else reason, rank)]
        edge.restarts[number] = before + (not leaving)
        new = [member._replace(life=member.life + 1) for member in world]
        actions: list[Action] = [m.Left(tuple(world)) if leaving else m.Restart(tuple(new), reason)]
        for dead, born in zip(world, new, strict=True):
            actions += self._bury(edge, dead, born)
        return actions

    def _bury(self, edge: Edge, dead: RankId, born: RankId) -> list[Action]:
        stage = edge.rules.index
        edge.ranks[dead.index] = born
        edge.credit.remove(dead)
        edge.returned.discard(dead)
        self._splits.bury(dead)
        actions: list[Action] = []
        if dead in edge.leaving:
            edge.returned.add(born)
            edge.leaving.discard(dead)
            edge.parting.discard(dead)
        else:
            actions = edge.ends_so_far(born)
        held = edge.held.pop(dead)
        edge.held[born] = {}
        for batch in held.values():
            edge.open[batch.id[0]] -= 1
            batch.ways[stage].recalled = False
            actions += self._drop_spare(batch, batch.ways[stage])
            self._lose(batch, stage, again_at=None)
        for batch in self._from.pop(dead, {}).values():
            for child, way in batch.ways.items():
                if way.spare == dead:
                    way.spare = None
                if way.sender != dead:
                    continue
                if way.status is Status.READY:
                    self._edges[child].ready.get(batch.id[0], {}).pop(batch.id, None)
                    self._edges[child].late.pop(batch.id, None)
                    self._lose(batch, child, again_at=None)
                elif way.status is Status.SENT and not way.recalled:
                    assert way.to is not None
                    way.recalled = True
                    actions.append(m.Recall(way.to, batch.id, dead))
        return actions

    def _lose(self, batch: Batch, stage: int, again_at: RankId | None) -> None:
        """The batch must be made again for a stage: at the same rank and place if that waits for it, else anywhere."""
        edge, way = self._edges[stage], batch.ways[stage]
        root = self._lineage.roots[batch.id[:3]]
        root.open += way.status is Status.DONE
        if again_at is None:
            way.redo = way.redo or way.status is not Status.READY
        was_lost = way.status is Status.LOST
        way.status, way.to = Status.LOST, again_at
        if was_lost:
            return  # and now its receiver is lost as well
        edge.lost[batch.id[0]] = edge.lost.get(batch.id[0], 0) + 1
        assert edge.rules.parent is not None
        maker = self._edges[edge.rules.parent]
        if maker.rules.kind == "read":
            if batch.id[:3] in root.finished:
                self._splits.read_again(batch.id[:3])
        else:
            parent = root.batches[batch.made[:-1]]
            if parent.ways[maker.rules.index].status is Status.DONE:
                self._lose(parent, maker.rules.index, again_at=None)

    def recalled(self, event: m.Recalled) -> list[Action]:
        """A receiver has said that it will not get a batch whose sender has died."""
        stage = event.rank.stage
        batch = self._edges[stage].held[event.rank].get(event.id)
        way = batch.ways[stage] if batch is not None else None
        if batch is None or way is None or not way.recalled:
            return []  # it had arrived after all
        way.recalled = False
        if way.spare is None:
            self._lose(batch, stage, again_at=event.rank)
            return []
        sender, way.spare = way.spare, None
        return [self._send_again(batch, way, sender)]

    def abandon(self, edge: Edge) -> None:
        """Nobody at this edge wants anything any more, so nothing needs to be made again for it."""
        stage = edge.rules.index
        for root in list(self._lineage.roots.values()):
            for member in [member for batch in root.batches.values() for member in batch.family]:
                if stage in member.ways and member.ways[stage].status is Status.LOST:
                    self._lineage.done(member, stage)
        edge.lost.clear()

    # ── making again ─────────────────────────────────────────────────────────────────────────────────────────────

    def made_again(self, event: m.Made, batch: Batch, ledger: Ledger) -> list[Action]:
        """A batch that was made before came out once more: send it where it was lost, else throw it away."""
        actions: list[Action] = []
        batch.seen.add(event.rank)
        had, found = batch.is_wanted_of(event.rank), []
        for member in batch.family:
            for stage, way in member.ways.items():
                if way.status is Status.LOST:
                    way.sender, way.status = event.rank, Status.READY
                    found.append((member, stage))
                    self._edges[stage].lost[batch.id[0]] -= 1
                elif way.recalled and way.spare is None:
                    way.spare = event.rank
            if member.depends_on(event.rank):
                self.depends_on(event.rank, member)
        if had or not batch.is_wanted_of(event.rank):  # one copy is enough
            actions.append(m.Discard(event.rank, event.id))
        if not batch.is_wanted_of(event.rank):
            return actions
        if event.rows != batch.rows:
            if batch.cut:
                return [*actions, _not_the_same(event.rank, batch, f"{event.rows:,}")]
            ledger.remade(event.rank.stage, event.id[0], event.rows - batch.rows)
            batch.rows, batch.size = event.rows, event.size
        for member, stage in found:
            self._offer(member, stage, member.ways[stage], actions)
        return actions

    def _offer(self, batch: Batch, stage: int, way: Way, actions: list[Action]) -> None:
        edge = self._edges[stage]
        if way.to is not None:
            actions.append(self._send_again(batch, way, way.sender))
        elif way.redo and edge.rules.kind == "map":
            edge.late[batch.id] = batch
        else:
            edge.add_ready(batch)

    def _send_again(self, batch: Batch, way: Way, sender: RankId) -> Action:
        """To the rank that waits for it, at its old place; it is charged there already."""
        assert way.to is not None
        way.status, way.sender = Status.SENT, sender
        skip, take = (0, None) if batch.whole is None else batch.id[-2:]
        return m.Send(
            sender, batch.made, way.to, way.place, not batch.is_wanted_of(sender), redo=way.redo,
            index=way.index, skip=skip, take=take,
        )  # fmt: skip

    def rows_made_of(self, event: m.Finished, root: Root) -> int:
        """The rows that came of an input whose function was begun by a rank that died, and done by another."""
        return sum(batch.rows for batch in self._children(event, root))

    def settle_lost(self, event: m.Finished, root: Root, ledger: Ledger) -> list[Action]:
        """A function is done with an input: what is lost of its outputs, and was made by now, must be made once more.

        What was not made this time will never be: the function is not a function of its input alone. Those rows count as
        dropped by it; where some of them were given away already, the run cannot go on.
        """
        for batch in self._children(event, root):
            lost = [
                (member, stage) for member in batch.family for stage, way in member.ways.items() if way.status is Status.LOST
            ]
            if lost and event.rank in batch.seen:
                if event.rank.stage == 0:
                    self._splits.read_again(event.id)
                elif root.batches[event.id].ways[event.rank.stage].status is Status.DONE:
                    self._lose(root.batches[event.id], event.rank.stage, again_at=None)
            elif lost and batch.cut:
                return [_not_the_same(event.rank, batch, "none")]
            elif lost:
                ledger.remade(event.rank.stage, event.id[0], -batch.rows)
                for member, stage in lost:
                    self._edges[stage].lost[batch.id[0]] -= 1
                    self._lineage.done(member, stage)
            batch.seen.discard(event.rank)
        return []

    def _children(self, event: m.Finished, root: Root) -> list[Batch]:
        return [batch for batch in root.batches.values() if batch.id[:-1] == event.id]


def _not_the_same(rank: RankId, batch: Batch, rows: str) -> m.Fail:
    """A batch that was cut anew has come out otherwise: what was given away of it does not fit the rest any more."""
    return m.Fail(
        Cause.KILLED,
        f"a rank was killed, and its function gave {rows} rows where it had given {batch.rows:,} for the same batch before "
        f"({', '.join(map(str, batch.id))}): behind .rebatch() a function must give the same for the same batch "
        "(seed what is random by what is in the batch)",
        rank,
        again=True,
    )
