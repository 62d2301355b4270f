"""What limits a run, and which change would help. Computed from what was measured; nothing here measures or waits.

The stage that limits is the one with the most work for each of its ranks: every batch must pass it, so the run cannot be
faster than that stage without waiting. How many replicas another stage needs so that it does not hold up the loop is the
ratio of two measured rates: its seconds of work, over the seconds that the loop needs for the same batches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from ghee.observe.report import RankReport, StageReport
from ghee.resources import format_bytes

MOST_ADVISED = 4
"""Never more than this many times the replicas that there are: farther away another stage will limit."""

LEAST_SECONDS = 1.0
"""A stream that was shorter is no ground for advice."""

LITTLE = 0.05
"""A share of time that is not worth a change."""

BUSY = 0.6
"""Below this share of work in every stage it is no stage that limits, but what lies between them."""

SLOW = 1.3
"""A rank is called slow when it needs this many times what the others need for a batch."""

SMALL_BATCH = 64 << 10
"""Bytes below which a batch's message costs more than its bytes."""

FULL = 0.85
"""Above this share of a machine's cores there is nothing left for more replicas."""


class Limit(NamedTuple):
    """`stage` is the number of the one that limits, None where it is no stage; `said` and `advice` are sentences."""

    stage: int | None
    said: str
    advice: str


def find_limit(stages: Sequence[StageReport], parents: Sequence[int | None], cores: int | None = None) -> Limit:
    """What limits, in a sentence, and what to change, if that is known.

    `parents[s]` is the stage that feeds stage s, None for the first. `cores` are those of the machine that all ranks share,
    None where they have machines of their own.
    """
    if not any(stage.by_rank for stage in stages):
        return Limit(None, "", "")
    return _Search(stages, parents, cores).find()


class _Search:
    def __init__(self, stages: Sequence[StageReport], parents: Sequence[int | None], cores: int | None) -> None:
        self.stages, self.parents, self.cores = stages, parents, cores
        self.ends = [number for number in range(len(stages)) if number not in parents]
        self.seconds = max((_total(rank) for end in self.ends for rank in stages[end].by_rank), default=0.0)
        self.work = [_work(stage) for stage in stages]
        self.limit = max(range(len(stages)), key=self.work.__getitem__)

    def find(self) -> Limit:
        stage = self.stages[self.limit]
        consumer = self.consumer()
        waited = _pace(self.stages[consumer]).waited_input_share
        if max(self.work) < BUSY * self.seconds and waited > 1 - BUSY and self.seconds >= LEAST_SECONDS:
            return self.between(consumer, waited)
        if self.limit in self.ends:
            return self.at_an_end(stage)
        if waited < LITTLE:
            return self.balanced(consumer, waited)
        said = f"{stage.name} limits the run: {self.stages[consumer].name} waited {_percent(waited)} of its time for it"
        if stage.reading > 0.5:
            said += f" ({_percent(stage.reading)} of its work was reading)"
        advice = [self.more_replicas(self.target(), consumer)]
        if (slow := slow_rank(stage)) is not None:
            advice.append(
                f"rank {slow.rank} of {stage.name} needs {times_as_long(stage, slow):.1f} times as long for a batch"
            )
        return Limit(self.limit, said, "; ".join(filter(None, advice)))

    def consumer(self) -> int:
        """The end behind the limiting stage that waited the longest."""
        behind = [end for end in self.ends if self.limit in self.before(end)] or self.ends
        return max(behind, key=lambda end: _pace(self.stages[end]).waited_input_share)

    def before(self, stage: int) -> list[int]:
        """The stage and those that feed it."""
        found = [stage]
        while (parent := self.parents[found[-1]]) is not None:
            found.append(parent)
        return found

    def feeds(self, stage: int) -> StageReport:
        """What feeds a stage; the first stage itself."""
        parent = self.parents[stage]
        return self.stages[stage if parent is None else parent]

    def target(self) -> float:
        """Seconds to which the limiting stage's work for each rank should come down: what others need in any case."""
        fixed = [self.work[end] for end in self.ends if self.stages[end].kind == "loop" and end != self.limit]
        others = [work for number, work in enumerate(self.work) if number != self.limit]
        return max(fixed or others, default=0.0)

    def at_a_slow_rank(self, stage: StageReport) -> Limit | None:
        """The limit is one rank of a loop, and the others are done long before it."""
        slow, pace = slow_rank(stage), _pace(stage)
        if slow is None or slow is not pace or stage.kind != "loop":
            return None
        others = [rank for rank in stage.by_rank if rank is not slow]
        share = statistics.mean(rank.worked for rank in others) / (_total(slow) or 1.0)
        if slow.worked_share - share < LITTLE:
            return None
        said = f"rank {slow.rank} of {stage.name} limits the run: it worked {_percent(slow.worked_share)} of the time, "
        said += f"the other {len(others)} only {_percent(share)}"
        times = times_as_long(stage, slow)
        advice = f"see what slows rank {slow.rank} down: it needs {times:.1f} times as long for a batch"
        return Limit(self.limit, said, advice)

    def at_an_end(self, stage: StageReport) -> Limit:
        pace = _pace(stage)
        if (limit := self.at_a_slow_rank(stage)) is not None:
            return limit
        said = f"{stage.name} limits the run: it worked {_percent(pace.worked_share)} of its time"
        before = self.feeds(self.limit)
        if stage.kind == "write" and before.waited_room >= LITTLE:
            said += f", and {before.name} waited {_percent(before.waited_room)} of its time for it to take more"
            return Limit(self.limit, said, self.more_replicas(self.target(), self.limit))
        said += f" and waited {_percent(pace.waited_input_share)} for batches"
        return Limit(self.limit, said, self.at_a_loop())

    def at_a_loop(self) -> str:
        """Nothing before the loop holds it up: say what it holds up, and what is more than enough."""
        held = [self.stages[end].name for end in self.ends if end != self.limit and self.stages[end].waited_input > LITTLE]
        if held and self.stages[self.limit].kind == "loop":
            return f'{_and(held)} waited for it: when_slow="skip" or "reread" lets a branch go on without a slow one'
        if self.seconds < LEAST_SECONDS:
            return ""
        fewer = []
        for number in self.before(self.limit)[1:]:
            stage = self.stages[number]
            enough = max(1, math.ceil(1.2 * stage.replicas * self.work[number] / (self.work[self.limit] or 1.0)))
            if 2 * enough <= stage.replicas:
                fewer.append(f"{stage.name} would do with {enough} {_replicas(enough)} instead of {stage.replicas}")
        return "; ".join(reversed(fewer))

    def balanced(self, consumer: int, waited: float) -> Limit:
        stage, end = self.stages[self.limit], self.stages[consumer]
        share = min(1.0, self.work[self.limit] / (self.seconds or 1.0))
        said = f"{stage.name} and {end.name} are balanced: {stage.name} worked {_percent(share)} of the time, "
        return Limit(self.limit, f"{said}{end.name} waited {_percent(waited)} of it for batches", "")

    def between(self, consumer: int, waited: float) -> Limit:
        """No stage is busy: room or messages."""
        end = self.stages[consumer]
        for number in self.before(consumer)[:-1]:
            before, stage = self.feeds(number), self.stages[number]
            if before.waited_room > 0.2 and stage.waited_input > 0.2:
                said = (
                    f"the credit between {before.name} and {stage.name} limits the run: {before.name} waited "
                    f"{_percent(before.waited_room)} of its time for room while {stage.name} waited "
                    f"{_percent(stage.waited_input)} for batches"
                )
                return Limit(
                    None, said, f"give {stage.name} more credit (credit=), or make the batches smaller (batch_size=)"
                )
        size = min((s.bytes_out / s.batches for s in self.stages if s.batches and s.bytes_out), default=SMALL_BATCH)
        said = f"no stage limits the run: none worked more than {_percent(max(self.work) / self.seconds)} of the time, "
        said += f"and {end.name} waited {_percent(waited)} of it for batches"
        if size >= SMALL_BATCH:
            return Limit(None, said, "")
        return Limit(
            None,
            f"{said}; batches of {format_bytes(size)} cost more to send than to work on",
            "make the batches larger (batch_size=)",
        )

    def more_replicas(self, target: float, consumer: int) -> str:
        """The replicas with which no stage that can have more would need longer than `target` seconds."""
        if self.seconds < LEAST_SECONDS:
            return ""
        chain = [number for number in reversed(self.before(consumer)) if self.stages[number].kind != "loop"]
        wanted = {number: self.wanted(number, target) for number in chain}
        growing = {number: replicas for number, replicas in wanted.items() if replicas > self.stages[number].replicas}
        if self.limit not in growing:
            return self.cannot_grow(self.stages[self.limit])
        order = sorted(growing, key=lambda number: number != self.limit)
        allowed, note = self.allowed(growing)
        if not allowed:
            return note
        texts = [
            f"{self.stages[number].name} {allowed[number]} replicas instead of {self.stages[number].replicas}"
            for number in order
            if number in allowed
        ]
        return f"give {_and(texts)}{note}"

    def wanted(self, number: int, target: float) -> int:
        """Replicas of a stage that need `target` seconds each for the work that was done; within what is advised."""
        stage = self.stages[number]
        work = self.work[number] * stage.replicas
        most = MOST_ADVISED * stage.replicas
        replicas = math.ceil(work / target - 1e-9) if work < most * target else most
        if number == self.limit:
            replicas = max(replicas, stage.replicas + 1)
        replicas = min(replicas, most)
        return replicas if stage.most_replicas is None else max(stage.replicas, min(replicas, stage.most_replicas))

    def cannot_grow(self, stage: StageReport) -> str:
        """Why the limiting stage gets no more replicas though it would need them."""
        if stage.hosted:
            kind = "reads in Python" if stage.kind == "read" else "writes in Python"
            return f"{stage.name} {kind} in the driver's process, where it has one rank: make it faster, or use files"
        return (
            f"more replicas of {stage.name} would have nothing to read: the source has {stage.most_replicas} splits; "
            "store it in more files or row groups"
        )

    def allowed(self, growing: dict[int, int]) -> tuple[dict[int, int], str]:
        """What of it the cores of one machine can do, and a note if that is less."""
        used = sum(rank.cpu for stage in self.stages for rank in stage.by_rank) / (self.seconds or 1.0)
        if self.cores is None or not used:
            return growing, ""
        faster = min(growing[number] / self.stages[number].replicas for number in growing)
        if used * faster <= self.cores:
            return growing, ""
        name = self.stages[self.limit].name
        said = f"this machine's {self.cores} cores"
        if used > FULL * self.cores:
            return {}, f"{said} are busy, so more replicas do not help here: use a machine with more, or make {name} cheaper"
        most = {
            number: min(growing[number], math.floor(self.stages[number].replicas * self.cores / used)) for number in growing
        }
        fitting = {number: replicas for number, replicas in most.items() if replicas > self.stages[number].replicas}
        if not fitting:
            return {}, f"{said} have no room for another replica: use a machine with more, or make {name} cheaper"
        return fitting, f" ({said} allow no more; {growing[self.limit]} would be needed)"


def slow_rank(stage: StageReport) -> RankReport | None:
    """The rank that needs much longer for a batch than the others, if there is one."""
    ranks = [rank for rank in stage.by_rank if rank.batches]
    if len(ranks) < 2:
        return None
    slowest = max(ranks, key=lambda rank: rank.seconds_per_batch)
    return slowest if times_as_long(stage, slowest) > SLOW else None


def times_as_long(stage: StageReport, slow: RankReport) -> float:
    """How many times what the other ranks need a rank needs for a batch."""
    others = [rank.seconds_per_batch for rank in stage.by_rank if rank is not slow and rank.batches]
    return slow.seconds_per_batch / (statistics.median(others) or 1e-9)


def _work(stage: StageReport) -> float:
    """Seconds of work for each rank. A loop goes at the pace of its slowest rank, others share as they can."""
    if not stage.by_rank:
        return 0.0
    if stage.kind == "loop":
        return _pace(stage).worked
    return sum(rank.worked for rank in stage.by_rank) / max(stage.ranks, 1)


def _pace(stage: StageReport) -> RankReport:
    """The rank that sets the pace: the one that worked the longest."""
    return max(stage.by_rank, key=lambda rank: rank.worked, default=RankReport(0))


def _total(rank: RankReport) -> float:
    return rank.worked + rank.waited_input + rank.waited_room


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _replicas(number: int) -> str:
    return "replica" if number == 1 else "replicas"


def _and(texts: Sequence[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
