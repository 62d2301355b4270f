"""What the driver has measured, as the rule of `ghee.protocol.elastic` wants it, and what it has decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ghee.driver.plan import Plan
from ghee.observe.times import Times
from ghee.protocol.coordinator import Coordinator
from ghee.protocol.elastic import Change, Elastic, Figures, Seen, StageFacts
from ghee.protocol.messages import RankId
from ghee.resources import Auto

EVERY = 0.1
"""Seconds between two looks at what the ranks have measured."""


class Scaling:
    """The numbers of replicas of a run's elastic stages. Used by the driver's thread alone."""

    def __init__(self, plan: Plan, coordinator: Coordinator, cores: int | None) -> None:
        """`cores` are those of the machine that all ranks share, None where they have machines of their own."""
        self._plan, self._coordinator = plan, coordinator
        facts = [
            StageFacts(
                stage.index, stage.name, stage.kind, stage.parent, stage.ranks_of_world,  # type: ignore[arg-type]
                (stage.elastic.min, stage.elastic.max) if stage.elastic else None, stage.when_slow,
            )
            for stage in plan.stages
        ]  # fmt: skip
        self._rule = Elastic(facts, cores)
        self.is_needed = any(stage.elastic for stage in plan.stages)
        self._looked = 0.0

    def decide(self, now: float, times: Mapping[RankId, Times], has_joined: Callable[[RankId], bool]) -> list[Change]:
        """What is to change at `now`, a time in seconds."""
        if not self.is_needed or now - self._looked < EVERY:
            return []
        self._looked = now
        return self._rule.decide(now, self._seen(times, has_joined), self._coordinator.splits.left)

    def _seen(self, times: Mapping[RankId, Times], has_joined: Callable[[RankId], bool]) -> Sequence[Seen]:
        seen = []
        for edge in self._coordinator.edges:
            there = edge.takers()
            figures = {rank: _figures(times[rank]) for rank in there if rank in times}
            settled = edge.failed or (not edge.leaving and all(has_joined(rank) for rank in there))
            seen.append(Seen(figures, len(there) // edge.rules.world, settled))
        return seen


def _figures(t: Times) -> Figures:
    return Figures(t.worked, t.waited_input, t.waited_room, t.batches_in, t.batches_out, t.cpu)


def advise(advice: str, elastic: Auto | None, replicas: int) -> str:
    """The report's advice, where the stage that limits finds its number of replicas itself."""
    if elastic is None or not advice.startswith("give "):
        return advice
    return f"allow more than {elastic.max} replicas (replicas=ghee.auto)" if replicas == elastic.max else ""


def numbers_of(plan: Plan, records: Sequence[Mapping[str, object]]) -> dict[int, int]:
    """With how many replicas each elastic stage begins: as the journal left it, within what is allowed now, or the least."""
    last = {str(record["stage"]): record["replicas"] for record in records}
    found = {}
    for stage in plan.stages:
        if stage.elastic:
            before = last.get(stage.name, stage.elastic.min)
            assert isinstance(before, int)
            found[stage.index] = max(stage.elastic.min, min(stage.elastic.max, before))
    return found
