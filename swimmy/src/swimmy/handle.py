"""A run in the user's hands: its state, its log, its result."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from swimmy.follow import Follower


class LogLine(NamedTuple):
    """A line that a rank printed; ``rank`` is None for what MPI's launcher said. ``pod`` is the Pod's index."""

    rank: int | None
    pod: int
    text: str

    def __str__(self) -> str:
        return f"[{'mpi' if self.rank is None else f'rank {self.rank}'}] {self.text}"


class Event(NamedTuple):
    """Something that happened to the run; ``at`` in seconds since 1970."""

    at: float
    entry: dict[str, Any]

    def __str__(self) -> str:
        rest = ", ".join(f"{name} {value}" for name, value in self.entry.items() if name != "kind" and value is not None)
        return f"{time.strftime('%H:%M:%S', time.localtime(self.at))} {self.entry['kind']}: {rest}"


class PodView(NamedTuple):
    """A Pod of the run as it was last seen. ``address`` is its IP."""

    replica: int
    name: str
    node: str | None
    address: str | None
    phase: str
    running: bool


class Handle:
    """A run that was submitted. Use it as a context manager, or call ``close``: either cancels a run that is not detached.

    Methods may be called from any thread.
    """

    def __init__(self, follower: Follower, *, detached: bool) -> None:
        self._follower = follower
        self._detached = detached
        self._record = follower.record
        self._thread = threading.Thread(target=follower.run, name=f"follow {follower.spec.run}", daemon=True)
        self._thread.start()

    @property
    def id(self) -> str:
        return self._follower.spec.run

    @property
    def state(self) -> str:
        """ "submitted", "scheduling", "starting", "running", "done", "failed" or "cancelled"."""
        return self._record.state

    @property
    def requests(self) -> dict[str, int]:
        """Requests to the API server so far, by what was asked."""
        return dict(self._follower.cluster.requests)

    def status(self) -> str:
        """One line for people: how far the run is, and what it waits for."""
        if self.state in ("submitted", "scheduling"):
            return self._follower.table.summary(time.monotonic())
        return self.state

    def pods(self) -> list[PodView]:
        """The newest Pod of each replica."""
        current = sorted(self._follower.table.current().items())
        return [PodView(index, each.name, each.node, each.address, each.phase, each.running) for index, each in current]

    def logs(self, follow: bool = True) -> Iterator[LogLine]:
        """Every line that the ranks printed, from the first; ``follow=True`` waits for more until the run has ended."""
        position = 0
        while True:
            with self._record.changed:
                while follow and position == len(self._record.lines) and not self._record.ended:
                    self._record.changed.wait()
                lines = self._record.lines[position:]
                ended = self._record.ended
            yield from (LogLine(*line) for line in lines)
            position += len(lines)
            if not follow or (ended and position == len(self._record.lines)):
                return

    @property
    def events(self) -> list[Event]:
        """What happened so far, the oldest first."""
        with self._record.changed:
            return [Event(at, entry) for at, entry in self._record.entries]

    def wait_state(self, *states: str, timeout: float | None = None) -> str:
        """Waits until the run is in one of those states or has ended, and says in which; raises TimeoutError."""
        with self._record.changed:
            if not self._record.changed.wait_for(lambda: self._record.ended or self._record.state in states, timeout):
                raise TimeoutError(f"run {self.id} is still {self.state} after {timeout} s: {self.status()}")
            return self._record.state

    def result(self, timeout: float | None = None) -> list[Any]:
        """Each rank's result, in the order of the ranks. Raises what ended the run otherwise, or TimeoutError (and goes
        on).
        """
        with self._record.changed:
            if not self._record.changed.wait_for(lambda: self._record.ended, timeout):
                raise TimeoutError(f"run {self.id} is still {self.state} after {timeout} s: {self.status()}")
        if self._record.error is not None:
            raise self._record.error
        assert self._record.results is not None
        return self._record.results

    def cancel(self) -> None:
        """Ends the run; returns when its objects are deleted."""
        self._follower.request_end("cancel")
        self._thread.join()

    def close(self) -> None:
        """Stops following; a run that is not detached ends. May be called twice, and raises nothing for a run that
        failed.
        """
        self._follower.request_end("leave" if self._detached else "cancel")
        self._thread.join()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
