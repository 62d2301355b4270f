"""The leading agent's edges: connections to all agents (its own too, like any other), and the run's journal for the client.

What to do is decided by ``world.py``; this file carries it out and keeps the time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from swimmy.agent.journal import Journal
from swimmy.agent.world import Action, Asked, Entry, Failure, Record, Tell, World, first_cause
from swimmy.channel import Caller, Keys, Loop, new_context
from swimmy.protocol import CHUNK, Header

GRACE = 1.0  # seconds in which further failures may arrive that explain the first one better
_AGAIN = 2.0  # seconds after which an unanswered greeting is repeated: the agent may have started after the first
_READ_WAIT = 2.0  # seconds that an agent may hold back an answer when there is nothing to tell


class Peer:
    """The conversation with one agent: greeting, payload, then reading its journal until the run ends."""

    def __init__(self, leader: Leader, index: int, address: str) -> None:
        self.leader, self.index = leader, index
        self.caller = Caller(leader.context, leader.keys, leader.server_key, address)
        leader.loop.watch(self.caller.socket, self.caller.receive)
        self.heard = time.monotonic()
        self.greeted = 0.0
        self.answered = False
        self.facts: dict[str, str] = {}
        self._after = 0

    def greet(self) -> None:
        self.greeted = time.monotonic()
        self.caller.call({"op": "hello"}, then=self._hello)

    def _hello(self, header: Header, _: bytes) -> None:
        self.heard = time.monotonic()
        if self.answered:
            return
        self.answered = True
        self.facts = header["facts"]
        self._put(header, b"", 0 if header["payload"] != self.leader.digest else self.leader.total)

    def _put(self, header: Header, _: bytes, have: int | None = None) -> None:
        """Sends the payload piece by piece: the next when the last has arrived, so that no memory fills on the way."""
        self.heard = time.monotonic()
        if "error" in header:
            self.leader.act([Failure(0, self.index, None, "launch", {"code": None, "text": header["error"]})])
            return
        have = header["have"] if have is None else have
        if have < self.leader.total:
            piece = self.leader.piece(have)
            request = {"op": "put", "digest": self.leader.digest, "offset": have, "total": self.leader.total}
            self.caller.call(request, piece, self._put)
            return
        self.leader.act(self.leader.world.ready(self.index, self.facts))
        self._read()

    def _read(self) -> None:
        self.caller.call({"op": "read", "after": self._after, "wait": self.leader.read_wait}, then=self._entries)

    def _entries(self, header: Header, body: bytes) -> None:
        self.heard = time.monotonic()
        for entry in header_entries(body):
            self._after = entry["seq"]
            self.leader.act(self.leader.world.entry(self.index, entry))
        self._read()

    def close(self) -> None:
        self.leader.loop.forget(self.caller.socket)
        self.caller.close()


def header_entries(body: bytes) -> list[Entry]:
    """The entries in a reply's body."""
    entries: list[Entry] = json.loads(body)
    return entries


class Leader:
    """A run in progress. ``piece(offset)`` gives at most CHUNK bytes of the payload."""

    def __init__(
        self,
        loop: Loop,
        keys: Keys,
        server_key: str,
        request: Header,
        piece: Callable[[int], bytes],
        lease: float,
    ) -> None:
        # Reading is what renews an agent's lease: several times within it.
        self.read_wait = min(_READ_WAIT, lease / 4)
        self.loop, self.keys, self.server_key, self.piece = loop, keys, server_key, piece
        self.context = new_context()
        self.journal = Journal()
        self.digest, self.total = request["digest"], request["total"]
        asked = request["asked"]
        addresses = {int(index): address for index, address in request["peers"].items()}
        hosts = {index: address.rpartition(":")[0] for index, address in addresses.items()}
        self.world = World(Asked(**asked), hosts)
        self._silent_after, self._start_after = request["silent_after"], request["start_after"]
        self.restarts_left: dict[int, int] = dict.fromkeys(addresses, int(request["restarts"]))
        self.failure: Failure | None = None
        self._failures: dict[int, tuple[float, list[Failure]]] = {}
        self.peers: dict[int, Peer] = {}
        for index, address in sorted(addresses.items()):
            self._add(index, address)

    def _add(self, index: int, address: str) -> None:
        peer = self.peers[index] = Peer(self, index, address)
        peer.greet()

    @property
    def state(self) -> str:
        if self.failure is not None:
            return "failed"
        return "running" if self.world.state == "failed" else self.world.state  # failed, but the grace is not over

    def replace(self, peers: dict[str, str]) -> None:
        """Takes new addresses of agents whose Pods were replaced (``world="pod"``)."""
        for name, address in peers.items():
            index = int(name)
            self.peers.pop(index).close()
            self._failures.pop(index, None)
            self.world.replace(index, address.rpartition(":")[0])
            self._add(index, address)
            self.journal.append({"kind": "replaced", "index": index, "address": address})

    def act(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Tell):
                self.tell(action.index, action.message)
            elif isinstance(action, Record):
                self.journal.append(action.entry)
            else:
                _, failures = self._failures.setdefault(action.group, (time.monotonic() + GRACE, []))
                failures.append(action)

    def tell(self, index: int, message: Header) -> None:
        def answered(header: Header, _: bytes) -> None:
            if "error" in header:
                self.act([Failure(self.world.group_of(index).number, index, None, "launch",
                                  {"code": None, "text": header["error"]})])  # fmt: skip

        self.peers[index].caller.call(message, then=answered)

    def tick(self, now: float) -> None:
        """Repeats greetings, notices silence, and settles what failed once the grace is over."""
        for peer in list(self.peers.values()):
            if not peer.answered and now - peer.greeted > _AGAIN:
                peer.greet()
            limit = self._silent_after if peer.answered else self._start_after
            if now - peer.heard > limit and self.world.group_of(peer.index).state not in ("failed", "done"):
                self.act(self.world.silent(peer.index, now - peer.heard))
        for group, (deadline, failures) in list(self._failures.items()):
            if now >= deadline:
                del self._failures[group]
                self._settle(group, failures)

    def _settle(self, group: int, failures: list[Failure]) -> None:
        cause = first_cause(failures)
        members = self.world.groups[group].members
        if self.world.asked.per_pod and self.restarts_left[group] > 0:
            self.restarts_left[group] -= 1
            self.journal.append({**cause.entry(), "kind": "lost"})
            # Its Job makes a new Pod for the index when this one ends with a failure.
            self.tell(group, {"op": "stop", "code": 1, "reason": cause.cause})
            return
        if self.failure is None:
            self.failure = cause
            self.journal.append({**cause.entry(), "others": len(failures) - 1})
            for index in self.peers:
                self.tell(index, {"op": "end"})
        else:
            self.journal.append({**cause.entry(), "kind": "consequence", "members": list(members)})

    def fetch(self, number: int, offset: int, then: Callable[[Header, bytes], None]) -> None:
        """A piece of a rank's result, from the agent that has it."""
        per_pod = self.world.asked.ranks_per_pod
        if self.world.asked.per_pod:
            index, rank = divmod(number, per_pod)
        else:
            index, rank = self.world.groups[0].joined[number]["index"], number
        self.peers[index].caller.call({"op": "result", "rank": rank, "offset": offset, "count": CHUNK}, then=then)

    def stop(self, code: int, reason: str) -> None:
        """Tells every other agent to end its Pod; the leader's own is the first."""
        for index, peer in self.peers.items():
            if index:
                peer.caller.call({"op": "stop", "code": code, "reason": reason})

    def close(self) -> None:
        for peer in self.peers.values():
            peer.close()
        self.context.term()
