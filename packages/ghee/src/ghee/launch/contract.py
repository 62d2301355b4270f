"""What the driver asks of a launcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ghee.protocol.messages import Cause, RankId
from ghee.transfer.contract import Endpoint, Store


@dataclass(frozen=True)
class World:
    """An MPI world to start: `size` ranks of a stage, the first of them with this `first` index in the stage."""

    stage: int
    name: str
    replica: int
    first: int
    size: int
    life: int = 0

    @property
    def ranks(self) -> list[RankId]:
        """The ranks of the world."""
        return [RankId(self.stage, self.first + number, self.life) for number in range(self.size)]


@dataclass(frozen=True)
class Death:
    """A rank's process is gone, though nobody stopped it. `reason` is a sentence for the user; `cause` decides."""

    rank: RankId
    reason: str
    cause: Cause


class Launcher(Protocol):
    """Starts ranks, says which died, stops them. Used by the driver's thread alone.

    `cores`: those of the one machine that all ranks share, None where they have machines of their own.
    """

    cores: int | None

    def check(self, worlds: Sequence[World]) -> None:
        """Raise MachineError if the worlds cannot run here; warn if they will run badly."""

    def endpoint(self) -> Endpoint:
        """The driver's own endpoint."""

    def member(self) -> tuple[Endpoint, Store]:
        """Endpoint and store for a rank that runs in a thread of the driver's process."""

    def start(self, worlds: Sequence[World]) -> None:
        """Start every world; returns before they have joined."""

    def joined(self, rank: RankId, pid: int) -> None:
        """A rank has joined from this process."""

    def deaths(self) -> list[Death]:
        """Ranks that died since the last call. Raises what a thread of the launcher's own has ended by."""

    def stop(self, seconds: float) -> None:
        """Wait until the ranks, which were told to stop, are gone; kill what is left after `seconds`."""

    def close(self) -> None:
        """Kill what still runs and remove what was put down for the run. May be called twice."""
