"""What a rank's process on this machine is begun with. It is imported by every rank: it imports little."""

from __future__ import annotations

from dataclasses import dataclass

from ghee.transfer.contract import Store
from ghee.transfer.frames import FrameStore
from ghee.transfer.shm import SharedStore
from ghee.transfer.zeromq import Keys


@dataclass(frozen=True)
class Bootstrap:
    """What a rank's process needs to join; it lies in the run's folder, readable for this user only."""

    driver: str
    driver_pid: int
    keys: Keys
    folder: str
    path: list[str]
    carrier: str


def make_store(carrier: str) -> Store:
    """The store of a carrier: "shm" or "tcp"."""
    return SharedStore() if carrier == "shm" else FrameStore()
