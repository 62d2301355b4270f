"""Every rank as a thread of this process, so that a debugger stops in the user's code."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from ghee.launch.contract import Death, World
from ghee.protocol.messages import RankId
from ghee.ranks.runner import run_rank
from ghee.transfer.contract import Endpoint, Store
from ghee.transfer.inproc import CopyStore, Exchange
from ghee.transfer.member import Member

_CLOSE_SECONDS = 5.0


class InlineLauncher:
    """Threads and queues. MPI's COMM_WORLD is this process's; `ghee.rank()` and `ghee.size()` are the rank's own."""

    def __init__(self) -> None:
        self.cores: int | None = len(os.sched_getaffinity(0))
        self._exchange = Exchange()
        self._threads: list[threading.Thread] = []
        self._members: list[Member] = []
        self._driver = ""

    def check(self, worlds: Sequence[World]) -> None:
        """Threads always fit."""

    def endpoint(self) -> Endpoint:
        """The driver's queue."""
        endpoint = self._exchange.endpoint()
        self._driver = endpoint.address
        return endpoint

    def member(self) -> tuple[Endpoint, Store]:
        """A queue for one more thread."""
        return self._exchange.endpoint(), CopyStore()

    def start(self, worlds: Sequence[World]) -> None:
        """Start a thread for each rank."""
        for world in worlds:
            for number, rank in enumerate(world.ranks):
                member = Member(rank, world.name, *self.member(), self._driver)
                self._members.append(member)
                self._threads.append(threading.Thread(
                    target=self._run, args=(member, world, number), name=f"{world.name} {rank.index}", daemon=True,
                ))  # fmt: skip
                self._threads[-1].start()

    def _run(self, member: Member, world: World, number: int) -> None:
        try:
            run_rank(member, number, world.size, inline=True)
        finally:
            member.close()

    def joined(self, rank: RankId, pid: int) -> None:
        """Nothing to watch."""

    def deaths(self) -> list[Death]:
        """Threads do not die without saying why."""
        return []

    def stop(self, seconds: float) -> None:
        """Wait for the threads; a function that does not return cannot be killed in a thread."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Stop the threads, those too that had not joined yet when the run ended."""
        for member in self._members:
            member.stop()
        self.stop(_CLOSE_SECONDS)
        self._threads.clear()
