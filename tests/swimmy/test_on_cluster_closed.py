"""What a Pod shows to its network: the agent's port, MPI's ports, and nothing to those without the run's key."""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import pytest

import swimmy
from swimmy.channel import Caller, Keys, Loop, new_context
from swimmy.protocol import PORT

pytestmark = pytest.mark.usefixtures("nothing_left")


def wait_forever() -> None:
    import signal

    signal.pause()


@pytest.mark.parametrize("kind", ["none", "mpich"])
def test_a_port_scan_finds_the_agent_and_mpi(place: Any, kube: Any, kind: Any) -> None:
    with swimmy.submit(
        wait_forever, pods=place.pods(replicas=2), mpi=swimmy.mpi(2, kind=kind), cluster=place.cluster, reach="direct"
    ) as handle:
        assert handle.wait_state("running", timeout=90) == "running"
        for pod in handle.pods():
            found = {port for port in range(1, 65536) if _is_open(pod.address, port)}
            owners = {port: _owner(kube, handle.id, pod.replica, port) for port in found - {PORT}}
            assert PORT in found
            assert set(owners.values()) <= ({"mpiexec", "hydra_pmi_proxy", "swimmy.inside"} if kind == "mpich" else set())


def _is_open(address: str | None, port: int) -> bool:
    with socket.socket() as tried:
        tried.settimeout(5)
        return tried.connect_ex((address, port)) == 0


def _owner(kube: Any, run: str, index: int, port: int) -> str:
    """The program of the Pod that listens at this port."""
    script = """
import os, sys
from pathlib import Path
run, index, port = sys.argv[1:]
wanted = {f"SWIMMY_RUN={run}".encode(), f"JOB_COMPLETION_INDEX={index}".encode()}
for folder in Path("/proc").glob("[0-9]*"):
    try:
        if not wanted <= set((folder / "environ").read_bytes().split(b"\\0")):
            continue
        lines = [line.split() for line in (folder / "net/tcp").read_text().splitlines()[1:]]
        inodes = {f"socket:[{line[9]}]" for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == int(port)}
        if inodes & {os.readlink(each) for each in (folder / "fd").iterdir()}:
            words = (folder / "cmdline").read_bytes().decode().split(chr(0))
            print("swimmy.inside" if "swimmy.inside" in words and "python" in words[0] else os.path.basename(words[0]))
            break
    except OSError:
        continue
"""
    return str(kube.run_inside(sys.executable, "-c", script, run, str(index), str(port))).strip()


@pytest.mark.parametrize("whose", ["another client key", "another server key", "no key"])
def test_who_does_not_hold_the_key_is_not_heard(place: Any, kube: Any, whose: str) -> None:
    with swimmy.submit(wait_forever, pods=place.pods(), cluster=place.cluster, reach="direct") as handle:
        assert handle.wait_state("running", timeout=90) == "running"
        address = f"{handle.pods()[0].address}:{PORT}"
        access = handle._record.access
        assert access is not None
        context, loop = new_context(), Loop()
        answers: list[Any] = []
        right = Caller(context, access.client, access.server, address)
        if whose == "another client key":
            wrong = Caller(context, Keys.new(), access.server, address)
        elif whose == "another server key":
            wrong = Caller(context, access.client, Keys.new().public, address)
        else:
            wrong = _plain(context, address)
        try:
            loop.watch(right.socket, right.receive)
            loop.watch(wrong.socket, wrong.receive)
            wrong.call({"op": "stop", "code": 1, "reason": "an intruder"}, then=lambda *answer: answers.append("wrong"))
            until = time.monotonic() + 5
            while time.monotonic() < until:  # long enough for many tries of the wrong one
                arrived: list[Any] = []
                right.call({"op": "hello"}, then=lambda *answer, arrived=arrived: arrived.append(answer))
                while not arrived:
                    loop.turn(0.5)
            assert answers == []
            assert handle.state == "running"
        finally:
            right.close()
            wrong.socket.close(linger=0)
            context.term()


def _plain(context: Any, address: str) -> Any:
    import zmq

    class Plain(Caller):
        def __init__(self) -> None:
            super().__init__(context, Keys.new(), Keys.new().public, address)
            self.socket.close(linger=0)
            self.socket = context.socket(zmq.DEALER)
            self.socket.connect(f"tcp://{address}")

    return Plain()
