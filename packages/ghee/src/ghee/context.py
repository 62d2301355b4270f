"""Which rank this is: `ghee.rank()` and its kin, for the user's functions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Place:
    """A rank's place in its run.

    `folder` is the run's; `inline` says that the ranks are threads of one process; `world` names the MPI world among
    those of the run; `gpus` is what the stage asked for in each replica; `address` is the IP of the rank's Pod, empty where
    all ranks share this machine. `at_end` is called when every rank of the run
    has returned, last added first. `stream` holds the `Batches` of a loop's rank.
    """

    stage: str
    rank: int
    size: int
    folder: str
    inline: bool
    world: str = ""
    gpus: int = 0
    address: str = ""
    at_end: list[Callable[[], None]] = field(default_factory=list)
    stream: list[Any] = field(default_factory=list)


_by_thread = threading.local()
_of_process: Place | None = None


def enter(place: Place) -> None:
    """Set the place of this thread, and of the process if its ranks are processes."""
    global _of_process
    _by_thread.place = place
    if not place.inline:
        _of_process = place


def leave() -> None:
    """Call what was to be called at the end. The place stays: threads of the function may still ask for it."""
    place = current()
    while place is not None and place.at_end:
        place.at_end.pop()()


def current() -> Place | None:
    """The place of the calling thread; None outside of a run."""
    place: Place | None = getattr(_by_thread, "place", None) or _of_process
    return place


def rank() -> int:
    """The rank within the stage's MPI world, as MPI counts it; 0 outside of a run."""
    place = current()
    return place.rank if place else 0


def size() -> int:
    """The number of ranks in the stage's MPI world; 1 outside of a run."""
    place = current()
    return place.size if place else 1


def stage() -> str:
    """The name of the stage; empty outside of a run."""
    place = current()
    return place.stage if place else ""
