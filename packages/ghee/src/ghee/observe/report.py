"""What a run measured: rows and seconds by stage, and the one line that says what limits it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from ghee.observe.times import Times
from ghee.pipeline import UNTIL_RETURN
from ghee.protocol.ledger import Entry
from ghee.resources import format_bytes

RECENT_SECONDS = 10.0
"""What "now" is, for a stream whose rows per second change."""


class Recent:
    """Rows per second of the last seconds, from a count that grows. Pure: the clock is the caller's."""

    def __init__(self) -> None:
        self._counts: list[tuple[float, int]] = []

    def add(self, now: float, count: int) -> None:
        """The count at this moment."""
        self._counts.append((now, count))
        while len(self._counts) > 2 and self._counts[1][0] <= now - RECENT_SECONDS:
            self._counts.pop(0)

    @property
    def rate(self) -> float:
        """Between the first and the last count of that time."""
        if len(self._counts) < 2:
            return 0.0
        (began, before), (now, after) = self._counts[0], self._counts[-1]
        return (after - before) / (now - began) if now > began else 0.0


@dataclass
class RankReport:
    """One rank of a stage, over all its lives. Seconds from its first batch on; `cpu` is what its process computed.

    `rows` and `largest`, the rows of its largest batch, are of what it was given.
    """

    rank: int
    worked: float = 0.0
    waited_input: float = 0.0
    waited_room: float = 0.0
    cpu: float = 0.0
    batches: int = 0
    rows: int = 0
    largest: int = 0

    @property
    def worked_share(self) -> float:
        """The share of its time in which it worked."""
        return self.worked / (self._total or 1.0)

    @property
    def waited_input_share(self) -> float:
        """The share of its time in which it waited for batches."""
        return self.waited_input / (self._total or 1.0)

    @property
    def seconds_per_batch(self) -> float:
        """Seconds of work for a batch."""
        return self.worked / max(self.batches, 1)

    @property
    def _total(self) -> float:
        return self.worked + self.waited_input + self.waited_room


@dataclass
class StageReport:
    """One stage, over all its ranks and epochs. Shares are of the ranks' time from their first batch to the end.

    `waited_input`: for batches; `waited_room`: for the next stage to take some; `worked`: in the function, and `cpu` of all
    time computing (more than 1 for several threads). `reading` is of the work. `capacity`: rows per second that its ranks
    could do without waiting. `most_replicas`: how many could have something to do, where that is known. `hosted`: it runs
    in the driver's process.
    """

    name: str
    kind: str
    ranks: int
    rows: int = 0
    batches: int = 0
    bytes_out: int = 0
    rows_per_second: float = 0.0
    waited_input: float = 0.0
    waited_room: float = 0.0
    worked: float = 0.0
    dropped: int = 0
    tail_dropped: int = 0
    skipped: int = 0
    repeated: int = 0
    padded: int = 0
    set_aside: int = 0
    replicas: int = 1
    cpu: float = 0.0
    reading: float = 0.0
    capacity: float = 0.0
    most_replicas: int | None = None
    hosted: bool = False
    calls: int = 0
    """How often a map's function was called with a batch."""
    empty: int = 0
    """How many of the calls gave no batch."""
    by_rank: list[RankReport] = field(default_factory=list)

    def is_uneven(self, epochs: int) -> bool:
        """Whether the ranks of a loop were given rows that differ by more than a batch in each epoch.

        Where an epoch's tail was padded, one rank has a batch less, and it may be the one with the epoch's short batch.
        """
        rows = [rank.rows for rank in self.by_rank]
        largest = max((rank.largest for rank in self.by_rank), default=0)
        allowed = largest * (max(epochs, 1) + min(self.padded, epochs))
        return self.kind == "loop" and len(rows) > 1 and max(rows) - min(rows) > allowed

    def rows_said(self, epochs: int, *, judged: bool = True) -> str:
        """The rows of a loop's ranks in a line; empty for anything else than a loop of several ranks.

        `judged`: whether it says that they are uneven, which they may be where ranks were given batches a second time.
        """
        if self.kind != "loop" or len(self.by_rank) < 2:
            return ""
        rows = [rank.rows for rank in self.by_rank]
        shown = ", ".join(f"{count:,}" for count in rows[:16]) + (" …" if len(rows) > 16 else "")
        line = f"rows by rank of {self.name}: {shown}"
        if not (judged and self.is_uneven(epochs)):
            return line
        return (
            f"{line}: they differ by {max(rows) - min(rows):,}, more than one batch an epoch, for batches differ in size; "
            "every rank got as many batches, so a mean over ranks gives their rows different weights"
        )


@dataclass
class Report:
    """What a run measured. `seconds` is from the call of `ghee.run` to its end, `first_batch` to the first delivery.

    `limited_by` says what limits the run, `limiting` names the stage if it is one, `advice` says which change would help.
    """

    run: str
    seconds: float = 0.0
    first_batch: float | None = None
    epochs: int = 0
    rows_read: int = 0
    balanced: bool = False
    stages: list[StageReport] = field(default_factory=list)
    limited_by: str = ""
    advice: str = ""
    restarts: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    limiting: str = ""
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    lag: dict[str, int] = field(default_factory=dict)
    """Of a stream: by partition how many offsets are not acknowledged yet."""
    oldest: float | None = None
    """Of a stream: how old the oldest row is that is not acknowledged yet, in seconds; None where there is none."""
    recent: float = 0.0
    """Rows per second that were read in the last `RECENT_SECONDS`."""

    def stage(self, name: str) -> StageReport:
        """The report of a stage, by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def lag_said(self) -> str:
        """The lag in a line, the partitions that lag most."""
        most = sorted(self.lag.items(), key=lambda one: -one[1])
        named = ", ".join(f"{name} {behind:,}" for name, behind in most[:4]) + (" …" if len(most) > 4 else "")
        age = "" if self.oldest is None else f", the oldest row is {self.oldest:.0f} s old"
        now = f"; {self.recent:,.0f} rows/s in the last {RECENT_SECONDS:.0f} s"
        return f"lag: {sum(self.lag.values()):,} offsets ({named}){age}{now}"

    @property
    def warnings(self) -> list[str]:
        """What is most likely a mistake, though the run has not failed."""
        return [
            f"WARNING: {stage.name} gave no batch in any of its {stage.calls:,} calls, so all its {stage.rows:,} rows were "
            "dropped and nothing came after it: is a `return` missing?"
            for stage in self.stages
            if stage.calls and stage.empty == stage.calls
        ]

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        head = f"run {self.run}: {self.seconds:.1f} s"
        if self.first_batch is not None:
            head += f", first batch after {self.first_batch:.2f} s"
        balance = "balances" if self.balanced else "was not checked to the end (the loop returned early)"
        passes = "until the loops returned" if self.epochs >= UNTIL_RETURN else f"in {self.epochs} epochs"
        lines = [head, f"{self.rows_read:,} rows read {passes}; the ledger {balance}"]
        table: list[tuple[str, ...]] = [
            ("stage", "ranks", "rows", "rows/s", "could do", "work", "waits for input", "waits for room", "dropped", "out")
        ]
        for s in self.stages:
            share = [f"{100 * value:.0f} %" for value in (s.worked, s.waited_input, s.waited_room)]
            dropped = f"{s.dropped + s.tail_dropped + s.skipped:,}"
            table.append(
                (
                    s.name,
                    str(s.ranks),
                    f"{s.rows:,}",
                    f"{s.rows_per_second:,.0f}",
                    f"{s.capacity:,.0f}",
                    *share,
                    dropped,
                    format_bytes(s.bytes_out),
                )
            )
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        for row in table:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append("  ".join(cells).rstrip())
        lines += [said for s in self.stages if (said := s.rows_said(self.epochs, judged=not self.restarts))]
        lines += [f"changed {reason}" for reason in self.changes]
        lines += [self.lag_said] if self.lag else []
        lines += [
            f"{s.name} set {s.set_aside:,} messages aside, which could not be decoded" for s in self.stages if s.set_aside
        ]
        lines += [f"started again: {reason}" for reason in self.restarts]
        lines += [f"failed: {failure}" for failure in self.failures]
        lines += self.notes
        return "\n".join([*lines, self.limited_by, *([self.advice] if self.advice else []), *self.warnings])


def summarize_stage(
    name: str, kind: str, ranks: int, times: list[tuple[int, Times]], entries: list[Entry]
) -> StageReport:  # fmt: skip
    """Put together what the ranks of a stage measured and what the ledger counted. `times`: of each life, by index."""
    by_rank: dict[int, RankReport] = {}
    for index, t in times:
        rank = by_rank.setdefault(index, RankReport(index))
        rank.worked += max(0.0, t.worked)
        rank.waited_input += t.waited_input
        rank.waited_room += t.waited_room
        rank.cpu += t.cpu
        rank.batches += t.batches_in
        rank.rows += t.rows_in
        rank.largest = max(rank.largest, t.largest_in)
    totals = [rank.worked + rank.waited_input + rank.waited_room for rank in by_rank.values()]
    total, longest = sum(totals) or 1.0, max(totals, default=0.0)
    worked = sum(rank.worked for rank in by_rank.values())
    rows = sum(e.rows_in for e in entries)
    return StageReport(
        name, kind, ranks, rows, sum(t.batches_in for _, t in times), sum(t.bytes_out for _, t in times),
        rows / longest if longest else 0.0,
        sum(rank.waited_input for rank in by_rank.values()) / total,
        sum(rank.waited_room for rank in by_rank.values()) / total, worked / total,
        sum(e.dropped for e in entries), sum(e.tail for e in entries), sum(e.skipped for e in entries),
        sum(e.repeated for e in entries), sum(e.padded for e in entries), sum(t.set_aside for _, t in times),
        cpu=sum(rank.cpu for rank in by_rank.values()) / total,
        reading=sum(t.read for _, t in times) / (worked or 1.0),
        capacity=rows / (worked / max(ranks, 1)) if worked else 0.0,
        calls=sum(e.inputs for e in entries), empty=sum(e.empty for e in entries),
        by_rank=[by_rank[index] for index in sorted(by_rank)],
    )  # fmt: skip
