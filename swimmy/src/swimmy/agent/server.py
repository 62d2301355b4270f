"""The agent: answers requests, keeps its lease, ends its ranks, says why it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swimmy.agent.journal import Journal
from swimmy.agent.leader import Leader
from swimmy.agent.local import Local, Refused
from swimmy.channel import Keys, Listener, Loop
from swimmy.lease import Lease
from swimmy.patience import AWAY
from swimmy.protocol import CHUNK, Header, facts

LEASE_LOST = 85
_LOOK = 5.0  # seconds between two looks whether the API server is back
# What only a client asks of the leader: it renews the leader's lease, which the leader's own reading of its journal must
# not.
_CLIENT = frozenset({"hello", "start", "follow", "fetch", "peers"})


@dataclass(frozen=True)
class Settings:
    """What an agent is told by its Pod. ``boot``, ``lease``, ``grace`` and ``keep`` in seconds; ``folder`` is writable and
    private.
    """

    run: str
    index: int
    address: str
    port: int
    boot: float
    lease: float
    grace: float
    keep: float
    folder: Path
    server: Keys
    agent: Keys
    allowed: tuple[str, ...]
    termination: Path = Path("/dev/termination-log")
    api: tuple[str, int] | None = None
    """Where the cluster's API server listens, as every Pod is told."""


@dataclass
class _Waiting:
    sender: bytes
    number: int
    journal: Journal
    after: int
    until: float
    head: Callable[[], Header]


class Agent:
    """One agent. ``serve()`` returns its exit code."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loop = Loop()
        self.local = Local(self.loop, settings.folder, settings.address)
        addresses = [settings.address]
        if not settings.address.startswith("127."):
            addresses.append("127.0.0.1")  # a port-forward arrives from the Pod's own loopback
        self.listener = Listener(settings.server, settings.allowed, addresses, settings.port)
        self.loop.watch(self.listener.socket, self._requests)
        # Nobody speaks with it before all Pods run, which may take far longer than a lease: until then the Job's own
        # time limit is what ends a run whose client has died.
        self.lease = Lease(settings.boot, time.monotonic())
        self._met = False
        self.leader: Leader | None = None
        self._waiting: list[_Waiting] = []
        self._ending: tuple[int, str] | None = None
        self._away = 0.0
        self._was_away = False
        signal.signal(signal.SIGTERM, lambda *_: self._end(143, "the Pod was told to end"))
        signal.signal(signal.SIGINT, lambda *_: self._end(130, "interrupted"))

    # -- requests -------------------------------------------------------------------------------------------------

    def _requests(self) -> None:
        while (received := self.listener.receive()) is not None:
            sender, header, body = received
            operation = header.get("op")
            handler = getattr(self, f"_op_{operation}", None) if isinstance(operation, str) else None
            number = header.get("id", 0)
            if self.leader is None or operation in _CLIENT:
                self._renew(time.monotonic())
            try:
                if handler is None:
                    raise Refused(f"there is no request {operation!r}")
                answer = handler(sender, header, body)
            except Refused as error:
                answer = {"error": str(error)}
            except (KeyError, TypeError, ValueError, OSError) as error:
                answer = {"error": f"{operation}: {type(error).__name__}: {error}"}
            if answer is not None:
                self.listener.reply(sender, {**answer, "id": number})

    def _renew(self, now: float) -> None:
        if not self._met:
            self._met = True
            self.lease = Lease(self.settings.lease, now)
        self.lease.renew(now)

    def _op_hello(self, sender: bytes, header: Header, body: bytes) -> Header:
        return {
            "facts": facts(),
            "run": self.settings.run,
            "index": self.settings.index,
            "payload": self.local.payload,
            "started": self.leader is not None,
        }

    def _op_put(self, sender: bytes, header: Header, body: bytes) -> Header:
        return {"have": self.local.put(header["digest"], header["offset"], header["total"], body)}

    def _op_start(self, sender: bytes, header: Header, body: bytes) -> Header:
        if self.local.payload != header["digest"]:
            raise Refused("the payload is not here yet")
        if self.leader is None:
            if header["detach"]:
                self.lease = Lease(None, time.monotonic())
            self.leader = Leader(
                self.loop, self.settings.agent, self.settings.server.public, header, self._piece, self.settings.lease
            )
        return {"state": self.leader.state}

    def _piece(self, offset: int) -> bytes:
        with open(self.local.folder / "payload", "rb") as file:
            file.seek(offset)
            return file.read(CHUNK)

    def _op_peers(self, sender: bytes, header: Header, body: bytes) -> Header:
        self._lead().replace(header["peers"])
        return {}

    def _op_launch(self, sender: bytes, header: Header, body: bytes) -> Header:
        self.local.launch(header)
        return {}

    def _op_proxy(self, sender: bytes, header: Header, body: bytes) -> Header:
        self.local.proxy(header["argv"], header.get("variables", {}))
        return {}

    def _op_go(self, sender: bytes, header: Header, body: bytes) -> Header:
        self.local.go()
        return {}

    def _op_read(self, sender: bytes, header: Header, body: bytes) -> None:
        self._later(sender, header, self.local.journal, dict)

    def _op_follow(self, sender: bytes, header: Header, body: bytes) -> None:
        leader = self._lead()
        self._later(sender, header, leader.journal, lambda: {"state": leader.state})

    def _op_result(self, sender: bytes, header: Header, body: bytes) -> None:
        piece = self.local.fetch(header["rank"], header["offset"], header["count"])
        self.listener.reply(sender, {"id": header["id"]}, piece)

    def _op_fetch(self, sender: bytes, header: Header, body: bytes) -> None:
        def arrived(reply: Header, piece: bytes) -> None:
            self.listener.reply(sender, {**reply, "id": header["id"]}, piece)

        self._lead().fetch(header["rank"], header["offset"], arrived)

    def _op_end(self, sender: bytes, header: Header, body: bytes) -> Header:
        """Ends the ranks; the agent stays, for what it still has to say."""
        self.local.processes.signal_all(signal.SIGKILL)
        return {}

    def _op_stop(self, sender: bytes, header: Header, body: bytes) -> Header:
        self._end(header["code"], header["reason"])
        return {}

    def _lead(self) -> Leader:
        if self.leader is None:
            raise Refused("no run was started here")
        return self.leader

    def _later(self, sender: bytes, header: Header, journal: Journal, head: Callable[[], Header]) -> None:
        """Answers when the journal has something newer, or after the time that the asker wants to wait."""
        until = time.monotonic() + min(float(header["wait"]), 60.0)
        self._waiting.append(_Waiting(sender, header["id"], journal, int(header["after"]), until, head))

    def _answer_waiting(self, now: float) -> None:
        still = []
        for each in self._waiting:
            if each.journal.last <= each.after and now < each.until:
                still.append(each)
                continue
            body = json.dumps(each.journal.read(each.after)).encode()
            self.listener.reply(each.sender, {**each.head(), "id": each.number}, body)
        self._waiting = still

    # -- life and end ---------------------------------------------------------------------------------------------

    def _end(self, code: int, reason: str) -> None:
        if self._ending is None:
            self._ending = (code, reason)

    def serve(self) -> int:
        while self._ending is None:
            self.loop.turn(0.25)
            now = time.monotonic()
            if self.leader is not None:
                self.leader.tick(now)
                self._keep_result(now)
            self._answer_waiting(now)
            sys.stdout.flush()
            if self.lease.lost(now) and not self._is_cut_off(now):
                self._end(LEASE_LOST, f"nobody renewed the lease of {self.lease.seconds:g} s")
        return self._finish(*self._ending)

    def _is_cut_off(self, now: float) -> bool:
        """Whether the API server is away, so that nobody can renew a lease through it: the run goes on meanwhile, and a
        lease longer, in which a client comes back. But not for ever: a network may be closed to it.
        """
        if self._away >= AWAY or self.settings.api is None:
            return False
        try:
            socket.create_connection(self.settings.api, timeout=1).close()
        except OSError:
            self._away += _LOOK
            self._was_away = True
            self.lease.extend(_LOOK, now)
            return True
        was, self._was_away = self._was_away, False
        if was:
            self.lease.extend(self.settings.lease, now)
        return was

    def _keep_result(self, now: float) -> None:
        """A detached run that has ended holds its Pods for its result only so long."""
        assert self.leader is not None
        if self.lease.seconds is None and self.leader.state in ("done", "failed"):
            self.lease = Lease(self.settings.keep, now)

    def _finish(self, code: int, reason: str) -> int:
        if self.leader is not None:
            self.leader.stop(code, reason)
        self.local.processes.signal_all(signal.SIGTERM)
        deadline = time.monotonic() + self.settings.grace
        while self.local.processes.signal_all(0) and time.monotonic() < deadline:
            self.loop.turn(0.05)
            self._answer_waiting(time.monotonic() + 3600)
            self.local.processes.reap()
        while self.local.processes.signal_all(signal.SIGKILL):
            self.local.processes.reap()
        self._answer_waiting(float("inf"))
        try:
            self.settings.termination.write_text(json.dumps({"code": code, "reason": reason}))
        except OSError:  # not in a container: there is no such file, and the exit code says enough
            pass
        if self.leader is not None:
            self.leader.close()
        self.local.close()
        self.listener.close()
        return code


def settings_from_environment() -> Settings:
    """Settings as the Pod's environment and its mounted Secret give them."""
    keys = Path(os.environ["SWIMMY_KEYS"])

    def key(name: str) -> str:
        return (keys / name).read_text().strip()

    api = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    return Settings(
        run=os.environ["SWIMMY_RUN"],
        index=int(os.environ["JOB_COMPLETION_INDEX"]),
        address=os.environ["SWIMMY_ADDRESS"],
        port=int(os.environ["SWIMMY_PORT"]),
        boot=float(os.environ["SWIMMY_BOOT"]),
        lease=float(os.environ["SWIMMY_LEASE"]),
        grace=float(os.environ["SWIMMY_GRACE"]),
        keep=float(os.environ["SWIMMY_KEEP"]),
        folder=Path(os.environ["SWIMMY_FOLDER"]),
        server=Keys(key("server-public"), key("server-secret")),
        agent=Keys(key("agent-public"), key("agent-secret")),
        allowed=(key("client-public"), key("agent-public")),
        api=(api[0], int(api[1])) if api[0] and api[1] else None,
    )
