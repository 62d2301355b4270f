"""Runs first in every Python process whose PYTHONPATH has this folder: kills ranks of one stage at a named point.

What it needs stands in the environment variable GHEE_TEST_KILL: "STAGE|POINT|FOLDER|LIVES". A rank of a life before LIVES
is killed, once each; for each kill a file is made in the folder.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

THIRD = 3
"""Which event of its kind is the point: not the first, so that something has gone through before."""


class Point:
    """Kills this process when it has been reached for the third time, or the first."""

    def __init__(self, mark: Path, at: int = THIRD) -> None:
        self.mark, self.left = mark, at

    def reached(self) -> bool:
        """Whether this is the event; counts."""
        self.left -= 1
        return self.left == 0

    def kill(self) -> None:
        """As `kill -9` would."""
        self.mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a function by one that is given it first."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *arguments: around(original, *arguments))


def half_queued(point: Point) -> None:
    """All frames of a batch but the last were handed to ZeroMQ."""
    import zmq

    from ghee.transfer import zeromq

    def send(original: Any, socket: Any, frames: Any) -> None:
        if len(frames) > 2 and point.reached():
            for frame in frames[:-1]:
                socket.send(frame, zmq.SNDMORE)
            point.kill()
        original(socket, frames)

    wrap(zeromq, "_send", send)


def half_on_the_wire(point: Point) -> None:
    """ZeroMQ has all frames of a batch that is larger than what the kernel takes, and has begun to write them."""
    from ghee.transfer import zeromq

    def send(original: Any, socket: Any, frames: Any) -> None:
        original(socket, frames)
        if len(frames) > 2 and point.reached():
            point.kill()

    wrap(zeromq, "_send", send)


def laid_down(point: Point) -> None:
    """A batch was copied; a small one is not announced yet, a large one announced and not sent."""
    from ghee.transfer.manager import TransferManager

    def lay_down(original: Any, *arguments: Any) -> Any:
        parcel = original(*arguments)
        if point.reached():
            point.kill()
        return parcel

    wrap(TransferManager, "_lay_down", lay_down)


def sent(point: Point) -> None:
    """A batch was sent; nobody has said that it arrived."""
    from ghee.transfer.manager import TransferManager

    def dispatch(original: Any, manager: Any, address: str) -> None:
        is_one = bool(manager._parcels.get(address))
        original(manager, address)
        if is_one and point.reached():
            point.kill()

    wrap(TransferManager, "_dispatch_all", dispatch)


def arrived(point: Point) -> None:
    """A batch has arrived; the driver does not know."""
    from ghee.transfer.manager import TransferManager

    def on_arrived(original: Any, *arguments: Any) -> None:
        original(*arguments)
        if point.reached():
            point.kill()

    wrap(TransferManager, "_on_arrived", on_arrived)


def _before_saying(kind: str) -> Callable[[Point], None]:
    def install(point: Point) -> None:
        from ghee.transfer.manager import TransferManager

        def tell(original: Any, manager: Any, *events: Any) -> None:
            if any(type(event).__name__ == kind for event in events) and point.reached():
                point.kill()
            original(manager, *events)

        wrap(TransferManager, "tell", tell)

    return install


def _at_a_write(*, before: bool) -> Callable[[Point], None]:
    def install(point: Point) -> None:
        from ghee.io.sinks.writer import FileWriter

        def write(original: Any, *arguments: Any) -> None:
            if before and point.reached():
                point.kill()
            original(*arguments)
            if not before and point.reached():
                point.kill()

        wrap(FileWriter, "write", write)

    return install


def parts_recorded(point: Point) -> None:
    """What a sink's rank has stored stands in the journal; the next batch is at hand."""
    from ghee.io.sinks.writer import FileWriter

    def write(original: Any, *arguments: Any) -> None:
        runs = Path(os.environ["GHEE_HOME"], "runs")
        if any(b'"stored"' in journal.read_bytes() for journal in runs.glob("*/journal")):
            point.kill()
        original(*arguments)

    wrap(FileWriter, "write", write)


def epoch_ended(point: Point) -> None:
    """The rank was told that an epoch has ended, and has not seen it."""
    from ghee.protocol.messages import EpochEnd
    from ghee.transfer.manager import TransferManager

    def on_action(original: Any, manager: Any, action: Any) -> None:
        if isinstance(action, EpochEnd):
            point.kill()
        original(manager, action)

    wrap(TransferManager, "_on_action", on_action)


POINTS: dict[str, Callable[[Point], None]] = {
    "half of the frames queued": half_queued,
    "half on the wire": half_on_the_wire,
    "laid down": laid_down,
    "sent": sent,
    "arrived": arrived,
    "done with an input": _before_saying("Finished"),
    "batch taken": _before_saying("Consumed"),
    "before a write": _at_a_write(before=True),
    "after a write": _at_a_write(before=False),
    "parts closed": _before_saying("Stored"),
    "parts recorded": parts_recorded,
    "told of the epoch's end": epoch_ended,
    "counted the epoch": _before_saying("EpochDone"),
    "returned": _before_saying("Returned"),
}


def install(plan: str, command: list[str]) -> None:
    """Prepare this process to be killed, if it is a rank that the plan means."""
    stage, name, folder, lives = plan.split("|")
    if "ghee.launch.process" not in command:
        return
    place = command.index("ghee.launch.process")
    if command[place + 2] != stage:
        return
    number = len(os.listdir(folder))
    if number >= int(lives):
        return
    at = 1 if name in ("counted the epoch", "returned") else THIRD
    point = Point(Path(folder, str(number)), at)
    if number or name.startswith("starting"):  # while it is started (again), before it has joined
        while name == "starting, batches wait" and not Path(folder, os.pardir, "read").exists():
            os.sched_yield()
        point.kill()
    POINTS[name](point)


if "GHEE_TEST_KILL" in os.environ:
    install(os.environ["GHEE_TEST_KILL"], Path("/proc/self/cmdline").read_text().split("\0"))
