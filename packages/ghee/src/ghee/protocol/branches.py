"""Branches of different speed: what goes past a slow one, and what is made again for it.

A batch goes past a branch when the branch has no room for it and every other branch has been given it: the slow branch
never holds the others up, and each batch is taken by at least one. A branch that skips is done with it. For one that
reads again it is made again from the source, like a batch that was lost with a rank, as soon as the branch has room and
nothing else to take; then it waits for the branch, however slow, so no batch is made again twice.
"""

from __future__ import annotations

from collections.abc import Callable

from ghee.protocol.edge import Edge
from ghee.protocol.lineage import Batch, Status
from ghee.protocol.messages import Action, WhenSlow
from ghee.protocol.recovery import Recovery


class Branches:
    """Decides what goes past slow branches. `skip` counts a batch as skipped at an edge and has it thrown away."""

    def __init__(self, recovery: Recovery, skip: Callable[[Edge, Batch], None]) -> None:
        self._recovery, self._skip = recovery, skip

    def pass_over(self, edge: Edge) -> list[Action]:
        """Let go past what the edge could not take; to be called when everything was given that can be."""
        actions: list[Action] = []
        if edge.rules.when_slow is WhenSlow.WAIT:
            return actions
        while (batch := edge.next_ready()) is not None and _is_taken_elsewhere(batch, edge):
            edge.take_ready(batch)
            if edge.rules.when_slow is WhenSlow.SKIP:
                self._skip(edge, batch)
            else:
                actions += self._miss(edge, batch)
        if edge.rules.when_slow is WhenSlow.REREAD:
            if batch is not None or edge.missed.get(edge.epoch) or edge.lost.get(edge.epoch):
                actions += self._pass_over_later(edge)
            self._make_missed(edge)
        return actions

    def _miss(self, edge: Edge, batch: Batch) -> list[Action]:
        way = batch.ways[edge.rules.index]
        way.status = Status.MISSED
        edge.missed.setdefault(batch.id[0], {})[batch.id] = batch
        return self._recovery.let_go(batch, way.sender)

    def _pass_over_later(self, edge: Edge) -> list[Action]:
        """The branch is in an epoch that the others may have left: what they take of later ones goes past it too."""
        actions: list[Action] = []
        for epoch in [epoch for epoch in edge.ready if epoch > edge.epoch]:
            for batch in [batch for batch in edge.ready[epoch].values() if _is_taken_elsewhere(batch, edge)]:
                del edge.ready[epoch][batch.id]
                actions += self._miss(edge, batch)
        return actions

    def _make_missed(self, edge: Edge) -> None:
        """Have the next missed batches made again, of one split and no more bytes than a rank of the branch takes."""
        missed = edge.missed.get(edge.epoch)
        if not missed or edge.ready.get(edge.epoch) or edge.lost.get(edge.epoch):
            return
        first = next(iter(missed.values()))
        if edge.credit.least_loaded_with_room(first.size, edge.epoch) is None:
            return
        size = 0
        for batch in [batch for batch in missed.values() if batch.id[:2] == first.id[:2]]:
            size += batch.size
            if size > edge.rules.credit and batch is not first:
                return
            del missed[batch.id]
            self._recovery.make_missed(batch, edge.rules.index)


def _is_taken_elsewhere(batch: Batch, edge: Edge) -> bool:
    others = [way for stage, way in batch.ways.items() if stage != edge.rules.index]
    waits = (Status.READY, Status.LOST)
    return bool(others) and not batch.ways[edge.rules.index].missed and all(way.status not in waits for way in others)
