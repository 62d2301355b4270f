"""The ledger: rows read = rows delivered + rows dropped, stage by stage, epoch by epoch.

Each number is told by the rank that counted it and is compared with what its neighbours counted; nothing is derived
from the sum that it is to check.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Entry:
    """One stage's rows and batches in one epoch. `made` is by announcement, `rows_out` by the function's own count.

    `before` is what had been taken already where the run went on from a checkpoint, and came by once more.
    """

    rows_in: int = 0
    rows_out: int = 0
    made_rows: int = 0
    made_batches: int = 0
    dropped: int = 0
    added: int = 0
    empty: int = 0
    inputs: int = 0
    skipped: int = 0
    tail: int = 0
    repeated: int = 0
    padded: int = 0
    read_rows: int = 0
    read_batches: int = 0
    expected_rows: int = 0
    before_rows: int = 0
    before_batches: int = 0


@dataclass
class Ledger:
    """Counts of every stage and epoch. `parents[s]` is the stage that feeds stage s, None for the first."""

    parents: list[int | None]
    entries: dict[tuple[int, int], Entry] = field(default_factory=lambda: defaultdict(Entry))

    def at(self, stage: int, epoch: int) -> Entry:
        """The entry of a stage and epoch."""
        return self.entries[stage, epoch]

    def fold(self, epoch: int) -> None:
        """Add the entries of an epoch that balances to one that stands for all such epochs (of number -1)."""
        for key in [key for key in self.entries if key[1] == epoch]:
            past, entry = self.entries[key[0], -1], self.entries.pop(key)
            for name, value in vars(entry).items():
                setattr(past, name, getattr(past, name) + value)

    def finished(self, stage: int, epoch: int, rows_in: int, rows_out: int, outputs: int) -> None:
        """A function is done with an input."""
        entry = self.at(stage, epoch)
        entry.inputs += 1
        entry.rows_in += rows_in
        entry.rows_out += rows_out
        entry.dropped += max(0, rows_in - rows_out)
        entry.added += max(0, rows_out - rows_in)
        entry.empty += outputs == 0

    def made(self, stage: int, epoch: int, rows: int) -> None:
        """A batch was announced."""
        entry = self.at(stage, epoch)
        entry.made_rows += rows
        entry.made_batches += 1

    def remade(self, stage: int, epoch: int, more: int) -> None:
        """A function gave other rows than before when a lost batch was made again: count what is delivered."""
        entry = self.at(stage, epoch)
        entry.made_rows += more
        entry.rows_out += more
        entry.dropped += max(0, -more)
        entry.added += max(0, more)

    def problems(self, stage: int, epoch: int) -> list[str]:
        """What does not balance at a stage in an epoch; empty if all does."""
        entry, parent = self.at(stage, epoch), self.parents[stage]
        found: list[str] = []

        def equal(what: str, left: int, right: int) -> None:
            if left != right:
                found.append(f"{what}: {left} != {right}")

        if entry.inputs:
            equal("rows that left the functions, rows announced", entry.rows_out, entry.made_rows)
        if parent is None:
            equal("rows read, rows given to functions + before", entry.read_rows, entry.rows_in + entry.before_rows)
            equal("batches read, batches finished + before", entry.read_batches, entry.inputs + entry.before_batches)
            equal("rows that the source's metadata promised, rows read", entry.expected_rows, entry.read_rows)
        else:
            before = self.at(parent, epoch)
            equal(
                "rows made before it, rows delivered + skipped + dropped by the tail + taken in an earlier run - repeated",
                before.made_rows,
                entry.rows_in + entry.skipped + entry.tail + entry.before_rows - entry.repeated,
            )
        return found
