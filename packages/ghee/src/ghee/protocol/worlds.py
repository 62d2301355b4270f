"""Worlds of an elastic stage: they join late, and leave in order.

A world that is to leave gets nothing more. Its ranks give back the splits that they are reading, finish the inputs that
they hold, and what they have made goes where it belongs. When nothing is left that would be lost with them they are told
that their stream has ended, return like any other rank, and are stopped. Nothing needs to be made again, so leaving is
no death; a world that dies on its way out is buried like any other, but is not started again.
"""

from __future__ import annotations

from collections.abc import Sequence

from ghee.protocol import messages as m
from ghee.protocol.edge import Edge
from ghee.protocol.messages import Action, RankId
from ghee.protocol.recovery import Recovery
from ghee.protocol.splits import Splits


class Worlds:
    """Starts and ends worlds. Works on the coordinator's edges and splits."""

    def __init__(self, edges: Sequence[Edge], splits: Splits, recovery: Recovery) -> None:
        self._edges, self._splits, self._recovery = edges, splits, recovery

    def count(self, edge: Edge) -> int:
        """How many worlds are there, or were asked for, and are not to leave."""
        return len(edge.takers()) // edge.rules.world

    def ask(self, edge: Edge, wanted: int) -> list[Action]:
        """Have the stage consist of `wanted` worlds. Nothing follows once its stream has ended."""
        assert edge.rules.begin is not None
        actions: list[Action] = []
        if edge.told_end:
            return actions
        size = edge.rules.world
        worlds = [edge.ranks[first : first + size] for first in range(0, len(edge.ranks), size)]
        more = wanted - self.count(edge)
        # Who has not been told yet that it is to part stays; only then somebody new is started.
        for world in [w for w in worlds if w[0] in edge.leaving and w[0] not in edge.parting][: max(0, more)]:
            self._stay(edge, world)
        free = [w for w in worlds if w[0] in edge.returned and w[0] not in edge.parting]
        for world in free[: max(0, wanted - self.count(edge))]:
            actions += self._start(edge, world)
        for world in [w for w in reversed(worlds) if w[0] in edge.takers()][: max(0, -more)]:
            actions += self._leave(edge, world)
        return actions

    def _start(self, edge: Edge, world: Sequence[RankId]) -> list[Action]:
        actions: list[Action] = [m.Start(tuple(world))]
        for rank in world:
            edge.returned.discard(rank)
            actions += edge.ends_so_far(rank)
        return actions

    def _stay(self, edge: Edge, world: Sequence[RankId]) -> None:
        for rank in world:
            edge.leaving.discard(rank)
            if edge.rules.kind == "read":
                self._splits.stay(rank)
            else:
                edge.credit.stay(rank)

    def _leave(self, edge: Edge, world: Sequence[RankId]) -> list[Action]:
        actions: list[Action] = []
        for rank in world:
            edge.leaving.add(rank)
            if edge.rules.kind == "read":
                actions += self._splits.leave(rank)
            else:
                edge.credit.leave(rank)
        return actions

    def settle(self, edge: Edge) -> list[Action]:
        """Tell the worlds to part that have nothing left which anybody needs; to be called after every event."""
        actions: list[Action] = []
        if edge.told_end:
            edge.leaving -= edge.leaving - edge.parting  # they end with all the others
            return actions
        for rank in [rank for rank in edge.leaving - edge.parting if rank.index % edge.rules.world == 0]:
            world = edge.world_of(rank)
            if all(self._is_done(edge, member) for member in world):
                for member in world:
                    edge.parting.add(member)
                    actions += self._tell_end(edge, member)
        return actions

    def _is_done(self, edge: Edge, rank: RankId) -> bool:
        return not (edge.held[rank] or self._splits.is_reading(rank) or self._recovery.is_needed(rank))

    def _tell_end(self, edge: Edge, rank: RankId) -> list[Action]:
        newest = self._splits.epoch if edge.rules.kind == "read" else edge.epoch
        epochs = max(edge.told, min(newest + 1, edge.epochs))
        given = [edge.given.get(epoch, {}).get(rank, 0) for epoch in range(edge.told, epochs)]
        ends = [m.EpochEnd(rank, edge.told + number, sent, sent) for number, sent in enumerate(given)]
        return [*ends, m.StreamEnd(rank, epochs)]

    def returned(self, edge: Edge, rank: RankId) -> list[Action]:
        """A rank that was told to part has returned: its world is stopped when all of it has."""
        world = edge.world_of(rank)
        if rank not in edge.parting or not all(member in edge.returned for member in world):
            return []
        for member in world:
            self._forget(edge, member)
        return [m.Left(tuple(world))]

    def _forget(self, edge: Edge, rank: RankId) -> None:
        """The place is free for a world that is started later, under a new life."""
        new = rank._replace(life=rank.life + 1)
        edge.ranks[rank.index] = new
        edge.returned.discard(rank)
        edge.returned.add(new)
        edge.leaving.discard(rank)
        edge.parting.discard(rank)
        edge.held[new] = edge.held.pop(rank)
        edge.credit.remove(rank)
        self._splits.forget(rank)
