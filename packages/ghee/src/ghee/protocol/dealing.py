"""Dealing rows: where batches are cut anew, ranges of rows go to ranks, as many as make a batch of exactly so many.

Who gets the next batch is decided as at every edge (round by round, or whoever holds least); then its rows are taken from
what is ready, in that order. What was cut does not depend on how many ranks there are, nor, where it is ordered, on who
was first; and one batch of an epoch is short, not one of each rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ghee.protocol.edge import Edge
from ghee.protocol.lineage import Batch, Lineage, Way
from ghee.protocol.messages import RankId
from ghee.protocol.recovery import Recovery
from ghee.protocol.recut import Cut


class _Send(Protocol):
    def __call__(self, edge: Edge, batch: Batch, to: RankId, cut: Cut | None = None) -> None: ...


class Dealing:
    """Gives rows away. `receiver`, `send`, `skip` and `arrived` are the coordinator's."""

    def __init__(
        self,
        lineage: Lineage,
        recovery: Recovery,
        *,
        receiver: Callable[[Edge, Batch, int], RankId | None],
        send: _Send,
        skip: Callable[[Edge, Batch], None],
        arrived: Callable[[Edge, int, RankId], None],
    ) -> None:
        self._lineage, self._recovery = lineage, recovery
        self._receiver, self._send, self._skip, self._arrived = receiver, send, skip, arrived

    def deal(self, edge: Edge) -> None:
        """Give away what is ready, as far as there is room."""
        line = edge.line
        assert line is not None
        while (batch := edge.next_ready()) is not None:
            if not batch.rows:  # nothing to deliver
                edge.take_ready(batch)
                self._skip(edge, batch)
                continue
            first, rows = (batch.ways[edge.rules.index].left or [(0, batch.rows)])[0]
            take = min(rows, line.rows - (line.open.rows if line.open is not None else 0))
            size = -(-batch.size * take // batch.rows)
            cut = line.open
            if cut is None:
                to = self._receiver(edge, batch, size)
                if to is None:
                    return
                cut = self._begin(edge, to)
            elif not self._has_room(edge, cut, size):
                return
            part = self._part(edge, batch, first, take, size)
            cut.rows += take
            if cut.to in edge.returned:
                self._skip(edge, part)
            else:
                self._send(edge, part, cut.to, cut)
            if cut.rows == line.rows:
                self.close(edge)

    def _begin(self, edge: Edge, to: RankId) -> Cut:
        assert edge.line is not None
        if edge.shared:
            edge.rounds(edge.epoch).deal()
        return edge.line.begin(to, edge.epoch, 0 if to in edge.returned else edge.next_place(to))

    @staticmethod
    def _has_room(edge: Edge, cut: Cut, size: int) -> bool:
        """A batch that was begun is brought to its end where the rank holds nothing else, however large it is."""
        if cut.to in edge.returned or len(edge.held[cut.to]) == len(cut.parts):
            return True
        return edge.credit.has_room(cut.to, size, edge.epoch)

    def _part(self, edge: Edge, batch: Batch, first: int, take: int, size: int) -> Batch:
        """Rows of a batch, to be given away; the batch itself where that is all of them."""
        stage = edge.rules.index
        way = batch.ways[stage]
        batch.cut = True
        if way.left is None and take == batch.rows:
            edge.take_ready(batch)
            return batch
        left = way.left or [(0, batch.rows)]
        rest = [(first + take, left[0][1] - take)] if take < left[0][1] else []
        way.left = [*rest, *left[1:]]
        part = Batch((*batch.id, first, take), take, size, {stage: Way(way.sender)}, set(), whole=batch)
        batch.parts = batch.parts or {}
        batch.parts[part.key] = part
        self._lineage.roots[batch.id[:3]].open += 1
        self._recovery.depends_on(way.sender, part)
        if not way.left:
            edge.take_ready(batch)
            self._lineage.done(batch, stage)
            self._recovery.dealt(batch, way.sender)
        return part

    def close(self, edge: Edge) -> None:
        """The open batch, if there is one, gets no further row. It is short at an epoch's end, and may be dropped for it."""
        assert edge.line is not None
        cut = edge.line.close()
        if cut is None:
            return
        if edge.shared and cut.is_there:
            self._arrived(edge, cut.epoch, cut.to)
        if cut.dropped:
            if edge.shared:
                edge.rounds(edge.epoch).take_back(cut.to)
            if cut.to not in edge.returned:
                edge.given[edge.epoch][cut.to] -= 1
