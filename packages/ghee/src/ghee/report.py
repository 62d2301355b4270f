"""What a run measured: rows and seconds by stage, and the one line that says what limits it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field

from ghee.protocol.ledger import Entry
from ghee.resources import format_bytes
from ghee.transfer.manager import Times

MOST_ADVISED = 4
"""The report never advises more than this many times the replicas that there were."""

LEAST_SECONDS = 1.0
"""A stream that was shorter is no ground for advice."""


@dataclass
class StageReport:
    """One stage, over all its ranks and epochs. Shares are of the ranks' time from their first batch to the end.

    `waited_input`: for batches; `waited_room`: for the next stage to take some; `worked`: in the function.
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


@dataclass
class Report:
    """What a run measured. `seconds` is from the call of `ghee.run` to its end, `first_batch` to the first delivery."""

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
    changes: list[str] = field(default_factory=list)

    def stage(self, name: str) -> StageReport:
        """The report of a stage, by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        head = f"run {self.run}: {self.seconds:.1f} s"
        if self.first_batch is not None:
            head += f", first batch after {self.first_batch:.2f} s"
        balance = "balances" if self.balanced else "was not checked to the end (the loop returned early)"
        lines = [head, f"{self.rows_read:,} rows read in {self.epochs} epochs; the ledger {balance}"]
        table: list[tuple[str, ...]] = [
            ("stage", "ranks", "rows", "rows/s", "work", "waits for input", "waits for room", "dropped", "out")
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
        lines += [f"changed {reason}" for reason in self.changes]
        lines += [f"started again: {reason}" for reason in self.restarts]
        lines += [f"failed: {failure}" for failure in self.failures]
        return "\n".join([*lines, self.limited_by, *([self.advice] if self.advice else [])])


def summarize_stage(name: str, kind: str, ranks: int, times: list[Times], entries: list[Entry]) -> StageReport:
    """Put together what the ranks of a stage measured and what the ledger counted."""
    waited_input = sum(t.waited_input for t in times)
    waited_room = sum(t.waited_room for t in times)
    worked = sum(max(0.0, t.worked) for t in times)
    total = (waited_input + waited_room + worked) or 1.0
    rows = sum(e.rows_in for e in entries)
    longest = max((t.waited_input + t.waited_room + t.worked for t in times), default=0.0)
    return StageReport(
        name, kind, ranks, rows, sum(t.batches_in for t in times), sum(t.bytes_out for t in times),
        rows / longest if longest else 0.0,
        waited_input / total, waited_room / total, worked / total,
        sum(e.dropped for e in entries), sum(e.tail for e in entries), sum(e.skipped for e in entries),
        sum(e.repeated for e in entries), sum(e.padded for e in entries),
    )  # fmt: skip


def find_limit(stages: list[StageReport], parents: list[int | None]) -> tuple[str, str]:
    """Which stage limits the run, and what to change: (sentence, advice).

    The limit is the busiest stage. If it is not the last, the stages after it wait for it; replicas of a map stage help
    until its consumers wait no more: their number is scaled by the share of time in which the consumer did not wait.
    """
    if not stages:
        return "", ""
    limit = max(range(len(stages)), key=lambda number: stages[number].worked)
    stage = stages[limit]
    ends = [number for number in range(len(stages)) if number not in parents]
    consumer = max((stages[number] for number in ends), key=lambda s: s.waited_input)
    if limit in ends or consumer.waited_input < 0.05:
        said = f"{stage.name} limits the run: it worked {100 * stage.worked:.0f} % of its time"
        return said + f" and waited {100 * stage.waited_input:.0f} % for batches", ""
    # Beyond a factor the measured rate says little: another stage will be the limit by then.
    factor = min(MOST_ADVISED, 1 / max(0.01, 1 - consumer.waited_input))
    wanted = max(stage.ranks + 1, math.ceil(stage.ranks * factor))
    said = f"{stage.name} limits the run: {consumer.name} waited {100 * consumer.waited_input:.0f} % of its time for it"
    seconds = consumer.rows / consumer.rows_per_second if consumer.rows_per_second else 0.0
    if stage.kind == "loop" or seconds < LEAST_SECONDS:
        return said, ""
    return said, f"give {stage.name} {wanted} replicas instead of {stage.ranks}"
