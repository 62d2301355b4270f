"""What a run was asked to be, and what is known of it: shared by the thread that follows it and the handle that shows it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from swimmy.channel import Keys
from swimmy.manifests import Owner
from swimmy.spec import Mpi, Pods


@dataclass(frozen=True)
class Access:
    """What a client needs to speak with a run's agents. Holds secret keys: never logged, stored only for a detached run."""

    client: Keys
    server: str


@dataclass(frozen=True)
class Ahead:
    """Pods that are made together with those of another run, which is to give them their work: `swimmy.ahead`.

    Holds secret keys: it travels in the payload of that other run, over its agents' own channel.
    """

    name: str
    pods: Pods
    mpi: Mpi
    alone: bool
    server: Keys
    agent: Keys
    client: Keys

    def run(self, owner: str) -> str:
        """The run's id, by that of the run with which it is made."""
        return f"{owner}-{self.name}"


@dataclass
class Spec:
    """A run as it was asked for."""

    run: str
    pods: Pods
    mpi: Mpi
    payload: bytes
    detach: bool = False
    direct: bool = False
    owner: Owner | None = None
    attached: Access | None = None
    alone: bool = False
    """Each Pod is a world of its own, which is followed, and may fail, alone."""
    made: Access | None = None
    """Its objects were made ahead, and these are its keys."""
    ahead: tuple[Ahead, ...] = ()
    """What is made together with it."""


@dataclass
class Record:
    """What the follower has learned; the handle shows it. Guarded by ``changed``."""

    state: str = "submitted"
    lines: list[tuple[int | None, int, str]] = field(default_factory=list)
    entries: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    results: list[Any] | None = None
    error: BaseException | None = None
    started: bool = False
    ended: bool = False
    access: Access | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def note(self, **entry: Any) -> None:
        with self.changed:
            self.entries.append((time.time(), entry))
            self.changed.notify_all()

    def begin(self) -> None:
        """The leader has taken the order: from now on the run can do without this process."""
        with self.changed:
            self.started = True
            self.changed.notify_all()

    def enter(self, state: str) -> None:
        with self.changed:
            self.state = state
            self.entries.append((time.time(), {"kind": "state", "state": state}))
            self.changed.notify_all()
