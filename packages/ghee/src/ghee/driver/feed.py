"""The driver's end of a source without an end: epochs are cut of it, written down, and acknowledged when they are over.

stream.take() ─► ranges ─► journal: cut ─► coordinator.cut(splits) ─► ranks read
an epoch balances at every sink, a loop's checkpoint is recorded ─► stream.acknowledge(offsets)

Where the sink has transactions, its ranks commit the offsets with the rows: then the group's offsets say where the run
goes on, and the journal does not.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

from ghee.driver.journal import Journal
from ghee.driver.plan import Plan
from ghee.io.contract import Split
from ghee.io.kafka.ranges import Range, cut
from ghee.protocol.messages import EpochBalanced, EpochEnd, Read, Record
from ghee.protocol.position import Position

Partition = tuple[str, int]


class Feed:
    """The cuts of one run that are not over. One thread, the driver's."""

    def __init__(self, plan: Plan, stream: Any, journal: Journal | None, positions: dict[int, Position]) -> None:
        self._plan, self._stream, self._journal = plan, stream, journal
        self._splits: dict[int, list[Split]] = {}
        self._ranges: dict[int, list[Range]] = {}
        self._loops = {stage.index: positions.get(stage.index, Position()) for stage in plan.stages if stage.kind == "loop"}
        self._balanced: set[int] = set()
        self._asked = False
        self._began = False
        self.got_on = False
        """Whether something was acknowledged since the driver began."""
        writing = [stage for stage in plan.stages if getattr(stage.payload, "transactions", False)]
        self._writing = writing[0] if writing else None
        self._cut_at: dict[int, float] = {}
        before = [] if journal is None else journal.of_kind("cut")
        said = [] if journal is None else journal.of_kind("acknowledged")
        done = max((record["epoch"] for record in said), default=-1) + 1
        if self._writing is not None:
            done = max((record["epoch"] for record in before), default=-1) + 1
        self.first = min((of.epoch for of in self._loops.values()), default=done)
        """The epoch that the run begins with."""
        self._acknowledged = self.first
        self.recorded = {
            record["epoch"]: [Range(*one) for one in record["ranges"]] for record in before if record["epoch"] >= self.first
        }
        """Epochs that an earlier run had cut and not finished: they are read as they were cut."""
        over = {record["epoch"] for record in said}
        ends: dict[Partition, int] = {}
        for record in before:
            for topic, partition, begin, stop in record["ranges"]:
                if self._writing is None or record["epoch"] in over:
                    ends[topic, partition] = stop
                else:  # where nothing was committed yet, it begins where the run had begun
                    ends.setdefault((topic, partition), begin)
        self._ends = ends

    def begin(self) -> None:
        """Join the group, or take the partitions."""
        self._stream.begin(self._ends, transactions=self._writing is not None)
        self._began = True

    def next(self, wanted: bool) -> list[int] | None:
        """For each split of a further epoch who owns it; None if there is none yet. `wanted`: the ranks have nothing left.

        What comes of a partition is one rank's, where ranks commit the offsets: an offset is one number.
        """
        self._stream.check()  # also while ranks are busy: one of them may wait for what will not come
        if not wanted:
            return None
        epoch = self.first + len(self._splits) if not self._splits else max(self._splits) + 1
        epoch = max(epoch, self._acknowledged)
        if epoch in self.recorded:
            return self._add(epoch, self.recorded.pop(epoch))
        if not self._asked:
            self._stream.ask()
            self._asked = True
        ranges = self._stream.take()
        if ranges is None:
            return None
        self._asked = False
        if self._journal is not None:
            self._journal.append(kind="cut", epoch=epoch, ranges=[list(one) for one in ranges])
        return self._add(epoch, ranges)

    def _add(self, epoch: int, ranges: list[Range]) -> list[int]:
        self._ranges[epoch] = ranges
        self._splits[epoch] = cut(ranges, self._plan.source.options.batch_size)
        self._cut_at[epoch] = time.monotonic()
        return [_owner(split.pieces[0]) for split in self._splits[epoch]]

    def with_split(self, action: Read) -> Read:
        """What a rank is told to read, with the split itself."""
        return action._replace(what=self._splits[action.epoch][action.split])

    def with_commit(self, action: EpochEnd) -> EpochEnd:
        """What a rank of a sink with transactions is told at the end of an epoch: the offsets of its partitions."""
        stage = self._writing
        if stage is None or action.rank.stage != stage.index:
            return action
        own = [one for one in self._ranges[action.epoch] if _owner(one) % stage.size == action.rank.index]
        offsets = [(one.topic, one.partition, one.stop) for one in own]
        return action._replace(commit=(offsets, self._stream.membership()) if own else None)

    def balanced(self, action: EpochBalanced) -> None:
        """An epoch is over at a stage; the rules say it of all stages at once."""
        if action.stage == 0:
            began = self._cut_at.pop(action.epoch, None)
            if began is not None:  # an epoch that is read again, for a loop that went back, ends a second time
                self._stream.took(time.monotonic() - began)
            self._balanced.add(action.epoch)
            self._acknowledge()

    def recorded_at(self, action: Record) -> None:
        """A loop's checkpoint is written down."""
        self._loops[action.stage] = action.position
        self._acknowledge()

    def finished(self) -> None:
        """Every function has returned well: what was cut has reached its end."""
        self._loops.clear()
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Offsets of the epochs that every end has, in order: a loop by its checkpoint, a sink as they end."""
        while self._acknowledged in self._balanced and all(p.epoch > self._acknowledged for p in self._loops.values()):
            epoch = self._acknowledged
            self._acknowledged += 1
            self.got_on = True
            self._balanced.discard(epoch)
            del self._splits[epoch]
            ranges = self._ranges.pop(epoch)
            if self._journal is not None:
                self._journal.append(kind="acknowledged", epoch=epoch)
            self._stream.acknowledge({(one.topic, one.partition): one.stop for one in ranges})

    def lag(self) -> dict[str, int]:
        """By partition how many offsets are not acknowledged."""
        lag: dict[str, int] = self._stream.lag()
        return lag

    def oldest(self) -> float | None:
        """How old the oldest row is that is not acknowledged, in seconds; None where there is none, or it is not known."""
        age: float | None = self._stream.oldest()
        return age

    def close(self) -> None:
        """Commit and leave."""
        if self._began:
            self._stream.close()


def _owner(one: Range) -> int:
    return zlib.crc32(one.topic.encode()) + one.partition


def unready(plan: Plan) -> Sequence[str]:
    """What of a pipeline cannot follow a source without an end, and what asks for one."""
    problems = []
    ends = [stage for stage in plan.stages if stage.kind in ("loop", "write")]
    for stage in plan.stages:
        if not getattr(stage.payload, "transactions", False):
            continue
        said = f"{stage.name!r} has transactions=True, which commits rows and the offsets that they were made of together"
        if not plan.endless or plan.source.options.group is None:
            problems.append(f"{said}: read a topic with group= and without until=, or leave it out (at least once)")
        if len(ends) > 1:
            problems.append(f"{said}: it must be the pipeline's only end, for the offsets tell nothing of the others")
    if not plan.endless:
        return problems
    for stage in plan.stages:
        if stage.loops_before:
            problems.append(
                f"{stage.name!r} follows a loop: what a loop gives away has no place in the stream to go back to"
            )
        if stage.kind == "loop" and stage.size > 1 and stage.tail.value == "drop":
            problems.append(
                f'the loop {stage.name!r} has tail="drop", which would drop rows of every cut; take "pad" or "repeat"'
            )
        if stage.drop_last:
            problems.append(f"{stage.name!r} has drop_last=True, which would drop rows of every cut; leave it out")
        if stage.kind == "write" and not stage.hosted and not getattr(stage.payload, "endless", False):
            problems.append(f"{stage.name!r} writes files, which appear when the run ends, and a stream has no end")
    return problems
