"""What is shown while a run goes on: a line for each stage on the terminal, and what the ranks print above it."""

from __future__ import annotations

import threading

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ghee.observe.report import Report, StageReport

_BAR = 20


class Progress:
    """A live table on standard error. Called from the driver's threads."""

    def __init__(self, run_id: str, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live = Live(Text(f"ghee run {run_id}: starting"), console=self._console, refresh_per_second=8, transient=True)
        self._lock = threading.Lock()
        self._live.start()

    def update(self, report: Report) -> None:
        """Show the newest figures."""
        with self._lock:
            self._live.update(draw(report))

    def line(self, source: str, line: str) -> None:
        """Show a line that a rank has printed, above the table."""
        with self._lock:
            self._console.print(Text.assemble((f"[{source}] ", "dim"), line))

    def close(self, report: Report | None) -> None:
        """Leave the last table standing, if the run ended well."""
        with self._lock:
            if report is not None:
                self._live.update(draw(report))
            self._live.stop()
            if report is not None:
                self._console.print(draw(report))


def draw(report: Report) -> Table:
    """The table of a report: what every stage does with its time."""
    title = f"ghee run {report.run}  {report.seconds:.1f} s  {report.rows_read:,} rows read"
    said = "\n".join(
        filter(None, (report.lag_said if report.lag else "", *report.changes[-1:], report.limited_by, report.advice))
    )
    table = Table(title=title, caption=said or None, title_justify="left", caption_justify="left", box=None)
    for name in ("stage", "ranks", "rows", "rows/s", "works ▇  waits for input ░  for room ▒"):
        table.add_column(name, justify="right" if name in ("ranks", "rows", "rows/s") else "left")
    for stage in report.stages:
        table.add_row(stage.name, str(stage.ranks), f"{stage.rows:,}", f"{stage.rows_per_second:,.0f}", _bar(stage))
    return table


def _bar(stage: StageReport) -> Text:
    works, room = round(_BAR * stage.worked), round(_BAR * stage.waited_room)
    waits = max(0, _BAR - works - room) if stage.worked + stage.waited_input + stage.waited_room else 0
    return Text.assemble(
        ("▇" * works, "green"), ("░" * waits, "yellow"), ("▒" * room, "blue"), f" {100 * stage.worked:3.0f} %"
    )
