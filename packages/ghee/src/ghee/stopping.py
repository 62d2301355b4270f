"""How another process asks a run of this machine to end: a file in the run's folder, at which its driver looks."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from ghee.errors import CheckpointError

LOOK_SECONDS = 0.5
"""How often a driver looks."""

_NAME, IN_ORDER, NOW = "stop", "in order", "now"


def ask(folder: Path, how: str = IN_ORDER) -> None:
    """Ask the run of this folder to end. Raises CheckpointError where it does not run."""
    if not is_running(folder):
        raise CheckpointError(f"run {folder.name} is not running")
    new = folder / f"{_NAME}.{os.getpid()}"
    new.write_text(how)
    new.replace(folder / _NAME)


def asked(folder: Path) -> str | None:
    """How it was asked to end, if it was."""
    try:
        return (folder / _NAME).read_text()
    except FileNotFoundError:
        return None


def forget(folder: Path) -> None:
    """A run begins, or goes on: what was asked of an earlier one is over."""
    (folder / _NAME).unlink(missing_ok=True)


def is_running(folder: Path) -> bool:
    """Whether a driver holds the run's journal."""
    with (folder / "journal").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait(folder: Path) -> None:
    """Until its driver has let go of it; a driver that is killed lets go too."""
    while is_running(folder):
        time.sleep(0.1)  # a lock that others hold tells nobody when it is free, but to who waits for it and can take it
