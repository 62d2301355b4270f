"""How many replicas a map stage needs: a pure rule from what was measured. Time is an argument.

    replicas = ceil(batches that the trainer would take in a second / batches that one replica makes in a second)

Both rates are over the seconds in which the rank was at work, so they say what it could do and not what it was let do.
The number is reached in one step, up and down, because the formula knows it; steps of one would take a start of a replica
each. What keeps it still: it grows only while the trainer waits, and shrinks only to where there is room to spare
(hysteresis); after a change nothing is measured until all replicas are there and have made a batch, and for a while after
that (cool-down); and it does not go on growing where the last growth brought nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ghee.protocol.edge import Kind
from ghee.protocol.messages import RankId, WhenSlow

WAIT = 0.05
"""The share of its time that a trainer may wait before its preprocessing grows."""

HEADROOM = 1.2
"""A stage shrinks only to where it makes this many times what is taken: less would make the trainer wait soon."""

IDLE = 0.5
"""The share of their time that replicas must wait for input before they are too many though a trainer waits."""

WINDOW = 1.0
"""Seconds that are measured before anything is decided, at the least."""

LEAST_BATCHES = 4
"""Batches that an elastic stage and every end must have done in a window; fewer say little."""

PATIENCE = 10.0
"""Seconds after which one batch is enough: a branch that takes less sets no pace that could be measured."""

_INSTANT = 1e-6
"""Seconds that a batch takes at the least: whoever needs less could take any number."""

COOL_DOWN = 2.0
"""Seconds after a change, once all its replicas are at work, that are not measured."""

GAIN = 1.1
"""A growth has brought nothing where the trainer does not get this many times what it got before."""

HOLD = 60.0
"""Seconds for which a stage does not grow after a growth that has brought nothing."""


@dataclass(frozen=True)
class StageFacts:
    """What does not change. `bounds` are the least and most replicas where the stage is elastic; `world`: ranks of each."""

    index: int
    name: str
    kind: Kind
    parent: int | None
    world: int = 1
    bounds: tuple[int, int] | None = None
    when_slow: WhenSlow = WhenSlow.WAIT


class Figures(NamedTuple):
    """What one rank has counted since it began: seconds, batches taken, batches made of them, seconds of computing."""

    worked: float = 0.0
    waited_input: float = 0.0
    waited_room: float = 0.0
    taken: int = 0
    made: int = 0
    cpu: float = 0.0

    def since(self, before: Figures) -> Figures:
        """What has come since then."""
        return Figures(*(now - was for now, was in zip(self, before, strict=True)))  # type: ignore[arg-type]

    @property
    def seconds(self) -> float:
        """All its time."""
        return self.worked + self.waited_input + self.waited_room


@dataclass(frozen=True)
class Seen:
    """What the driver sees of a stage. `replicas` are asked for; `settled`: all of them have joined, and none is leaving."""

    ranks: Mapping[RankId, Figures]
    replicas: int = 1
    settled: bool = True


class Change(NamedTuple):
    """A stage is to have another number of replicas, or (`before == after`) will not grow though its trainer waits."""

    stage: int
    before: int
    after: int
    reason: str


@dataclass
class _Window:
    """What one stage did in a window. By rank: batches in a second of work, and the share of its time that it waited."""

    taken: int
    made: int
    rates: list[float]
    waited: list[float]
    cpu: float = 0.0

    @property
    def fan_out(self) -> float:
        """Batches made of one that was taken."""
        return self.made / self.taken if self.taken else 1.0


@dataclass
class _Growth:
    """The last growth of a stage: what the trainer got before it, and until when another is not tried."""

    before: int
    got: float
    hold_until: float = -math.inf


@dataclass
class Elastic:
    """Decides for all elastic stages of a run. `decide` is called every now and then with everything that is known.

    Where all ranks share a machine, a stage does not grow past what its cores can do: more would only take turns.
    """

    stages: Sequence[StageFacts]
    cores: int | None = None
    """Of the machine that all ranks share; None where each has its own."""
    _base: dict[RankId, Figures] = field(default_factory=dict)
    _began: float | None = None
    _pause: float = 0.0
    _growths: dict[int, _Growth] = field(default_factory=dict)

    def decide(self, now: float, seen: Sequence[Seen], splits_left: int) -> list[Change]:
        """What is to change. `seen` is by stage; `splits_left`: how many no rank has been given yet."""
        if not all(stage.settled for stage in seen):
            self._base.clear()
            self._began = None
            return []
        if self._began is None:
            self._began = now + self._pause
            self._pause = COOL_DOWN
        if now < self._began or not self._have_begun(seen):
            return []
        if not self._base:
            self._began = now
        windows = [self._window(stage) for stage in seen]
        seconds = now - self._began
        if seconds < WINDOW or not self._is_enough(windows, LEAST_BATCHES if seconds < PATIENCE else 1):
            return []
        changes = self._changes(now, seconds, windows, seen, splits_left)
        self._base.clear()
        self._began = now + COOL_DOWN if any(change.before != change.after for change in changes) else now
        return changes

    def _have_begun(self, seen: Sequence[Seen]) -> bool:
        """Whether there is something to measure: the first batch of a rank, which is slow, never is."""
        begun = {stage.index for stage in self.stages if any(f.taken for f in seen[stage.index].ranks.values())}
        ends = [stage.index for stage in self.stages if stage.kind in ("loop", "write")]
        return all(s.index in begun for s in self.stages if s.bounds) and not begun.isdisjoint(ends)

    def _is_enough(self, windows: Sequence[_Window], least: int) -> bool:
        ends = [windows[stage.index].taken >= least for stage in self.stages if stage.kind in ("loop", "write")]
        elastic = all(windows[stage.index].taken >= least for stage in self.stages if stage.bounds)
        return elastic and (all(ends) if least > 1 else any(ends))

    def _window(self, seen: Seen) -> _Window:
        parts = [
            figures.since(self._base.setdefault(rank, figures)) for rank, figures in seen.ranks.items() if figures.taken
        ]
        shares = [part.waited_input / part.seconds for part in parts if part.seconds > 0]
        return _Window(
            sum(part.taken for part in parts), sum(part.made for part in parts),
            [part.taken / max(part.worked, _INSTANT * part.taken) for part in parts if part.taken], shares,
            sum(part.cpu for part in parts),
        )  # fmt: skip

    def _changes(
        self, now: float, seconds: float, windows: Sequence[_Window], seen: Sequence[Seen], splits_left: int
    ) -> list[Change]:
        changes = []
        replicas = [stage.replicas for stage in seen]
        used = sum(window.cpu for window in windows) / seconds
        factor = self.cores / used if self.cores is not None and used else math.inf
        for facts in self.stages:
            if facts.bounds is None or not windows[facts.index].rates:
                continue
            need = self._need(facts, windows, replicas, seconds)
            if need is None:
                continue
            have = replicas[facts.index]
            # Whoever has nothing to read is of no use, nor is who finds no core to compute on.
            useful = min(have + splits_left if facts.parent is None else math.inf, have * factor)
            change = self._change(now, facts, need, windows[facts.index], have, useful)
            if change is not None:
                changes.append(change)
                replicas[facts.index] = change.after
        return changes

    def _need(self, facts: StageFacts, windows: Sequence[_Window], replicas: Sequence[int], seconds: float) -> _Need | None:
        """Of the trainers behind the stage that one which sets the pace."""
        found = []
        for end in self.stages:
            path = self._path(facts, end)
            if end.kind not in ("loop", "write") or path is None or not windows[end.index].rates:
                continue
            window = windows[end.index]
            made = math.prod(windows[stage.index].fan_out for stage in path)
            # A loop is as fast as its slowest rank, for which the others wait; and where that one waits, all do.
            middle = min if end.kind == "loop" else statistics.median
            takes = len(window.rates) * middle(window.rates)
            supply = self._supply(facts, windows, replicas, seconds) * made
            rate = facts.world * statistics.median(windows[facts.index].rates) * made
            found.append(_Need(end, takes, min(takes, supply), rate, middle(window.waited), window.taken / seconds))
        # A branch that is waited for holds the others up: the slowest sets the pace. The others go past what is slower.
        waits = [need for need in found if need.end.when_slow is WhenSlow.WAIT]
        if waits:
            return min(waits, key=lambda need: need.takes)
        return max(found, key=lambda need: need.takes, default=None)

    def _path(self, start: StageFacts, end: StageFacts) -> list[StageFacts] | None:
        """The stages from `start` to before `end`, through maps only; None where there is no such way."""
        path: list[StageFacts] = []
        at = end
        while at.parent is not None:
            at = self.stages[at.parent]
            path.append(at)
            if at.index == start.index:
                return path
            if at.kind == "loop":
                return None
        return None

    def _supply(self, facts: StageFacts, windows: Sequence[_Window], replicas: Sequence[int], seconds: float) -> float:
        """The batches a second that can come in at a stage, whatever it could do with more."""
        if facts.parent is None:
            return math.inf
        parent, window = self.stages[facts.parent], windows[facts.parent]
        if parent.kind == "loop" or not window.rates:
            return window.made / seconds if parent.kind == "loop" else math.inf
        own = replicas[parent.index] * parent.world * statistics.median(window.rates)
        return min(own, self._supply(parent, windows, replicas, seconds)) * window.fan_out

    def _change(
        self, now: float, facts: StageFacts, need: _Need, window: _Window, have: int, useful: float
    ) -> Change | None:
        assert facts.bounds is not None
        least, most = facts.bounds[0], max(have, _clip(useful, 1, facts.bounds[1]))
        starved = need.waited > WAIT
        wanted = _clip(need.pace / need.rate, least, most)
        spare = _clip(HEADROOM * need.pace / need.rate, least, most)
        reason = (
            f"{need.end.name} waited {100 * need.waited:.0f} % of its time, a replica makes {_rate(need.rate)} batches/s, "
            f"{need.end.name} takes {_rate(need.takes)}"
        )
        if need.pace < need.takes:
            reason += f", no more than {_rate(need.pace)} can come in"
        if starved and wanted > have:
            return self._grow(now, facts, need, have, wanted, reason)
        if not starved:
            self._growths.pop(facts.index, None)
        if spare < have and (not starved or statistics.median(window.waited) > IDLE):
            return Change(facts.index, have, spare, f"{facts.name} {have} -> {spare} replicas: {reason}")
        return None

    def _grow(self, now: float, facts: StageFacts, need: _Need, have: int, wanted: int, reason: str) -> Change | None:
        last = self._growths.get(facts.index)
        if last is not None and now < last.hold_until:
            return None
        if last is not None and last.hold_until == -math.inf and need.got < GAIN * last.got:
            last.hold_until = now + HOLD
            return Change(facts.index, have, have, (
                f"{facts.name} stays at {have} replicas though {need.end.name} waited "
                f"{100 * need.waited:.0f} % of its time: "
                f"{have - last.before} more than {last.before} brought it {_rate(need.got)} batches/s instead of "
                f"{_rate(last.got)} (are there enough cores?)"
            ))  # fmt: skip
        self._growths[facts.index] = _Growth(have, need.got)
        return Change(facts.index, have, wanted, f"{facts.name} {have} -> {wanted} replicas: {reason}")


class _Need(NamedTuple):
    """What a trainer would take in a second, how much of that can come, what a replica makes, in the trainer's batches."""

    end: StageFacts
    takes: float
    pace: float
    rate: float
    waited: float
    got: float


def _clip(ratio: float, least: int, most: int) -> int:
    """The next whole number, between the bounds; what is a hair above one is that one."""
    return max(least, min(most, math.ceil(ratio - 1e-9) if math.isfinite(ratio) else most))


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
