"""A timeline of a run, batch by batch, in Chrome's trace format (ui.perfetto.dev and chrome://tracing open it).

Each rank writes what it did into a file of its own in the run's folder, a line for each event; `merge` puts the files
together when the run has ended. A rank is shown as a process with two threads: its function, and its transfer thread. An
arrow leads from where a batch is sent to where a function takes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from ghee.protocol.messages import BatchId, RankId

MOST_EVENTS = 1_000_000
"""Events of a whole run: some 150 MB, of which a browser can still show the timeline. Each rank has its part of them."""

LEAST_WAIT = 20e-6
"""Seconds: shorter waits are not shown."""

FUNCTION, TRANSFER = 1, 2

_PROCESSES_OF_STAGE = 100_000

_MANY, _OLD = 1000, 0.5
"""Events, and seconds, after which they are written."""


@dataclass(frozen=True)
class TraceSettings:
    """What every rank is told: the folder, the most events of a rank, and when the trace began.

    The start is on the monotonic clock of the machine that `boot` names, and on the wall clock for others.
    """

    folder: str
    most: int
    boot: str
    began: float
    began_wall: float

    @classmethod
    def begin(cls, folder: Path, ranks: int) -> TraceSettings:
        """A trace that begins now."""
        folder.mkdir(mode=0o700, exist_ok=True)
        return cls(str(folder), MOST_EVENTS // max(ranks, 1), _boot(), time.perf_counter(), time.time())

    def offset(self) -> float:
        """What to take off `time.perf_counter()` of this process for seconds since the trace began."""
        if self.boot == _boot():
            return self.began
        return time.perf_counter() - (time.time() - self.began_wall)


class Trace:
    """The events of one rank. `span` and the arrows may be called by its two threads, `flush` and `close` by one."""

    def __init__(self, settings: TraceSettings, rank: RankId, stage: str, address: str) -> None:
        """`address` is the rank's own: an arrow is named by its batch and by where it leads."""
        self._offset, self._most = settings.offset(), settings.most
        self._rank, self._number = rank, 1 + rank.stage * _PROCESSES_OF_STAGE + rank.index
        self._stage, self._address = stage, address
        self._events: deque[tuple[Any, ...]] = deque()
        self._count = 0
        self._flushed = time.perf_counter()
        path = Path(settings.folder) / f"{rank.stage}-{rank.index}-{rank.life}.jsonl"
        self._file: IO[str] = path.open("a", encoding="utf-8")
        self._write_names()
        if not rank.life:
            self.span("starts", settings.began if settings.boot == _boot() else self._offset)

    def _write_names(self) -> None:
        names: list[tuple[str, int, dict[str, object]]] = [
            ("process_name", 0, {"name": f"{self._stage}-{self._rank.index}"}),
            ("process_sort_index", 0, {"sort_index": self._number}),
            ("thread_name", FUNCTION, {"name": "function"}),
            ("thread_name", TRANSFER, {"name": "transfer"}),
        ]
        for name, thread, args in names:
            self._write({"ph": "M", "name": name, "pid": self._number, "tid": thread, "args": args})
        self._file.flush()

    def span(
        self,
        name: str,
        began: float,
        thread: int = FUNCTION,
        batch: BatchId | None = None,
        ended: float | None = None,
        **args: object,
    ) -> None:
        """Something that has lasted from `began` (`time.perf_counter`) until `ended`, or now."""
        self._add(("X", name, began, time.perf_counter() if ended is None else ended, thread, batch, args))

    def wait(self, name: str, began: float) -> None:
        """A wait of the function that ends now."""
        if time.perf_counter() - began >= LEAST_WAIT:
            self.span(name, began)

    def sent(self, began: float, batches: list[BatchId], address: str, size: int) -> None:
        """Batches were given to the network, since `began`."""
        now = time.perf_counter()
        self._add(("X", "sends", began, now, TRANSFER, None, {"batches": len(batches), "bytes": size}))
        for batch in batches:
            self._add(("s", "batch", began, 0.0, TRANSFER, batch, address))

    def worked(self, began: float, batch: BatchId, rows: int, received: bool = True) -> None:
        """The function was busy with a batch since `began`; `received`: another rank has sent it."""
        now = time.perf_counter()
        self._add(("X", self._stage, began, now, FUNCTION, batch, {"rows": rows}))
        if received:
            self._add(("f", "batch", began + min(1e-6, (now - began) / 2), 0.0, FUNCTION, batch, self._address))

    def _add(self, event: tuple[Any, ...]) -> None:
        if self._count < self._most:
            self._events.append(event)
        self._count += 1

    def flush(self, at_once: bool = False) -> None:
        """Write what there is, if that is much or old."""
        now = time.perf_counter()
        if not at_once and len(self._events) < _MANY and now - self._flushed < _OLD:
            return
        self._flushed = now
        while self._events:
            kind, name, began, ended, thread, batch, args = self._events.popleft()
            event: dict[str, object] = {
                "ph": kind, "name": name, "cat": "ghee", "pid": self._number, "tid": thread, "ts": self._microseconds(began),
            }  # fmt: skip
            if kind == "X":
                event["dur"] = round(1e6 * (ended - began), 3)
                event["args"] = args if batch is None else {"batch": ".".join(map(str, batch)), **args}
            else:
                event["id"] = _arrow(batch, args)
                if kind == "f":
                    event["bp"] = "e"  # it ends in the span around it, not in the next one
            self._write(event)
        self._file.flush()

    def close(self) -> None:
        """Write the rest, and say so if there was more than is kept."""
        self.flush(at_once=True)
        if self._count > self._most:
            self._write({
                "ph": "i", "s": "p", "name": f"cut off: of {self._count} events the first {self._most} are kept",
                "cat": "ghee.cut", "pid": self._number, "tid": FUNCTION, "ts": self._microseconds(time.perf_counter()),
            })  # fmt: skip
        self._file.close()

    def _microseconds(self, clock: float) -> float:
        return max(0.0, round(1e6 * (clock - self._offset), 3))

    def _write(self, event: dict[str, object]) -> None:
        self._file.write(json.dumps(event, separators=(",", ":")) + "\n")


def merge(folder: Path, target: Path, run: str) -> list[str]:
    """Put the ranks' files together to one that appears whole or not at all; returns a note for each rank that was cut off.

    What a killed rank had not written to the end is left out. The ranks' files are removed.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    notes: list[str] = []
    try:
        with beside.open("w", encoding="utf-8") as out:
            out.write(f'{{"displayTimeUnit":"ms","otherData":{{"run":{json.dumps(run)}}},"traceEvents":[\n')
            before = ""
            for path in sorted(folder.glob("*.jsonl")):
                with path.open(encoding="utf-8") as lines:
                    name = ""
                    for line in lines:
                        if not line.endswith("}\n"):
                            continue
                        if '"ph":"M"' in line and '"process_name"' in line:
                            name = json.loads(line)["args"]["name"]
                        if '"cat":"ghee.cut"' in line:
                            notes.append(f"the trace of {name} was {json.loads(line)['name']}")
                        out.write(before + line[:-1])
                        before = ",\n"
            out.write("\n]}\n")
        beside.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
    for path in folder.glob("*.jsonl"):
        path.unlink()
    folder.rmdir()
    return notes


def _arrow(batch: BatchId, address: str) -> int:
    """The same number at sender and receiver, for this batch on this way; exact in a double."""
    return int.from_bytes(blake2b(repr((batch, address)).encode(), digest_size=6).digest(), "little")


def _boot() -> str:
    """Which start of which machine this is: its processes share one monotonic clock."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
