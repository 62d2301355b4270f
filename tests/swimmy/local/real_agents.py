"""Real agents as processes of this machine, and a client that talks to the leading one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from swimmy.channel import Caller, Keys, Loop, new_context
from swimmy.protocol import facts

PORT = 7171


class Agents:
    """Agents with one run's keys, one at each of ``hosts``; ``inside(index)`` is put before the command of an agent."""

    def __init__(
        self,
        folder: Path,
        hosts: Sequence[str],
        lease: float,
        inside: Callable[[int], list[str]] = lambda _: [],
        boot: float = 60,
    ) -> None:
        self.folder = folder
        self.server, agent, self.client = Keys.new(), Keys.new(), Keys.new()
        keys = folder / "keys"
        keys.mkdir()
        for name, pair in (("server", self.server), ("agent", agent)):
            (keys / f"{name}-public").write_text(pair.public)
            (keys / f"{name}-secret").write_text(pair.secret)
        (keys / "client-public").write_text(self.client.public)
        self.addresses = [f"{host}:{PORT}" for host in hosts]
        self.processes = []
        for index, address in enumerate(self.addresses):
            environment = {
                **os.environ, "SWIMMY_KEYS": str(keys), "SWIMMY_RUN": "run-1", "JOB_COMPLETION_INDEX": str(index),
                "SWIMMY_ADDRESS": address.partition(":")[0], "SWIMMY_PORT": str(PORT), "SWIMMY_LEASE": str(lease),
                "SWIMMY_BOOT": str(boot), "SWIMMY_GRACE": "1", "SWIMMY_KEEP": "1",
                "SWIMMY_FOLDER": str(folder / f"agent-{index}"),
            }  # fmt: skip
            self.processes.append(subprocess.Popen([*inside(index), sys.executable, "-m", "swimmy.agent"], env=environment))
        self.context, self.loop = new_context(), Loop()
        self.caller = Caller(self.context, self.client, self.server.public, self.addresses[0])
        self.loop.watch(self.caller.socket, self.caller.receive)

    def call(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        answers: list[Any] = []
        self.caller.call(header, body, lambda *answer: answers.append(answer))
        while not answers:
            self.loop.turn(1)
            assert answers or self.processes[0].poll() is None, "the leading agent has ended"
        return answers[0]  # type: ignore[no-any-return]

    def start(self, function: Callable[..., Any], *, ranks: int = 1, mpi: str = "none", detach: bool = False) -> None:
        payload = cloudpickle.dumps((function, (), {}))
        digest = hashlib.sha256(payload).hexdigest()
        assert self.call({"op": "put", "digest": digest, "offset": 0, "total": len(payload)}, payload)[0]["have"]
        asked = {"replicas": len(self.addresses), "ranks_per_pod": ranks, "mpi": mpi, "per_pod": False, "facts": facts()}
        peers = {str(index): address for index, address in enumerate(self.addresses)}
        answer, _ = self.call({
            "op": "start", "digest": digest, "total": len(payload), "detach": detach, "silent_after": 20, "start_after": 20,
            "restarts": 0, "peers": peers, "asked": asked,
        })  # fmt: skip
        assert "error" not in answer

    def follow(self, until: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        while not any(until(entry) for entry in entries):
            after = entries[-1]["seq"] if entries else 0
            _, body = self.call({"op": "follow", "after": after, "wait": 2})
            entries += json.loads(body)
        return entries

    def close(self) -> None:
        self.caller.close()
        self.context.term()
        for process in self.processes:
            process.terminate()  # an agent that is killed leaves its ranks and MPI's daemons behind
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def cause(entry: dict[str, Any]) -> bool:
    """Whether an entry of the run's journal says why it failed."""
    return bool(entry["kind"] == "cause")
