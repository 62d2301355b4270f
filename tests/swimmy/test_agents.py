"""Real agents as processes of this machine, each with a loopback address of its own: what needs no Kubernetes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from real_agents import Agents, cause

from swimmy.agent.ranks import Ranks
from swimmy.channel import Caller, Keys, Loop


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Callable[..., Agents]]:
    made: list[Agents] = []

    def make(count: int = 1, lease: float = 30, boot: float = 60) -> Agents:
        network = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}"
        made.append(Agents(tmp_path, [f"{network}.{index + 1}" for index in range(count)], lease, boot=boot))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_ranks_run_and_their_results_are_fetched(agents: Any) -> None:
    run = agents(2)
    run.start(lambda: __import__("swimmy").rank() * 10, ranks=2)
    entries = run.follow(lambda entry: entry["kind"] == "done" and entry["rank"] == 3)
    while {entry["rank"] for entry in entries if entry["kind"] == "done"} != {0, 1, 2, 3}:
        entries += run.follow(lambda entry: entry["kind"] == "done")
    assert [cloudpickle.loads(run.call({"op": "fetch", "rank": rank, "offset": 0})[1]) for rank in range(4)] == [
        0,
        10,
        20,
        30,
    ]
    run.call({"op": "stop", "code": 0, "reason": "done"})
    assert [process.wait(20) for process in run.processes] == [0, 0]


def test_without_a_client_the_agents_end_their_ranks_and_themselves(agents: Any) -> None:
    def wait() -> None:
        import os
        import signal

        print(os.getpid(), flush=True)
        signal.pause()

    run = agents(2, lease=8)  # long enough that a loaded machine starts an agent within it
    run.start(wait)
    entries = run.follow(lambda entry: entry["kind"] == "log")
    rank = int(next(entry["text"] for entry in entries if entry["kind"] == "log"))
    os.kill(rank, 0)
    assert [process.wait(60) for process in run.processes] == [85, 85]  # nobody asks any more
    with pytest.raises(ProcessLookupError):
        os.kill(rank, 0)


def test_an_agent_waits_for_its_client_longer_than_a_lease(agents: Any) -> None:
    """Pods that run wait for others that do not fit on any machine yet."""
    run = agents(lease=0.5)
    with pytest.raises(subprocess.TimeoutExpired):
        run.processes[0].wait(4)
    assert run.call({"op": "hello"})[0]["run"] == "run-1"
    assert run.processes[0].wait(20) == 85  # the lease begins with the first word


def test_an_agent_does_not_wait_for_its_client_for_ever(agents: Any) -> None:
    assert agents(boot=1).processes[0].wait(20) == 85


def test_a_detached_run_goes_on_without_a_client_and_keeps_its_result_for_a_while(agents: Any, tmp_path: Path) -> None:
    pipes = [tmp_path / "0", tmp_path / "1"]
    for pipe in pipes:
        os.mkfifo(pipe)

    def work() -> str:
        import swimmy

        return pipes[swimmy.rank()].read_text()  # waits for the writer

    run = agents(2, lease=8)
    run.start(work, detach=True)
    run.follow(lambda entry: entry["kind"] == "world")
    with pytest.raises(subprocess.TimeoutExpired):
        run.processes[0].wait(12)  # longer than a lease
    for pipe in pipes:
        pipe.write_text("go on")
    assert [process.wait(60) for process in run.processes] == [85, 85]  # nobody came for it within `keep`


def test_sigterm_ends_ranks_and_agent(agents: Any) -> None:
    run = agents()
    run.start(lambda: __import__("signal").pause())
    run.follow(lambda entry: entry["kind"] == "world")
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.processes[0].wait(20) == 143


def test_mpi_ranks_report_to_the_agent_of_their_own_pod(agents: Any) -> None:
    """mpiexec would give every rank the leading Pod's environment, and with it that agent's socket."""
    run = agents(3)
    run.start(lambda: __import__("os").environ["JOB_COMPLETION_INDEX"], ranks=2, mpi="mpich")
    entries: list[Any] = []
    while {entry["rank"] for entry in entries if entry["kind"] == "done"} != set(range(6)):
        entries += run.follow(lambda entry: entry["kind"] in ("done", "cause"))
        assert not any(cause(entry) for entry in entries), entries
    got = [cloudpickle.loads(run.call({"op": "fetch", "rank": rank, "offset": 0})[1]) for rank in range(6)]
    assert got == ["0", "0", "1", "1", "2", "2"]


def test_mpi_that_cannot_come_up_is_a_failure(agents: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "nothing-of-the-kind")
    run = agents()
    run.start(lambda: 1, ranks=2, mpi="mpich")
    found = next(entry for entry in run.follow(cause) if cause(entry))
    assert found["cause"] in ("exit", "launch", "killed")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"op": "proxy", "argv": ["/bin/sh", "-c", "touch /tmp/owned"]}, "nothing else"),
        ({"op": "proxy", "argv": ["hydra_pmi_proxy"]}, "nothing else"),
        ({"op": "proxy", "argv": []}, "nothing else"),
        ({"op": "launch", "mpi": "lam"}, "cannot launch 'lam'"),
        ({"op": "no such thing"}, "there is no request"),
        ({"op": ["a"]}, "there is no request"),
        ({"op": "put"}, "KeyError"),
        ({"op": "follow", "after": 0, "wait": 1}, "no run was started"),
        ({"op": "start", "digest": "x"}, "payload is not here"),
    ],
)
def test_what_an_agent_refuses(agents: Any, request_: dict[str, Any], words: str) -> None:
    run = agents()
    answer, _ = run.call(request_)
    assert words in answer["error"]
    assert run.call({"op": "hello"})[0]["run"] == "run-1"  # it goes on


@pytest.mark.parametrize("whose", ["client", "server"])
def test_who_does_not_hold_the_key_is_not_heard(agents: Any, whose: str) -> None:
    run = agents()
    other = Keys.new()
    if whose == "client":  # it knows the server, and nobody allowed it
        wrong = Caller(run.context, other, run.server.public, run.addresses[0])
    else:
        wrong = Caller(run.context, run.client, other.public, run.addresses[0])
    try:
        run.loop.watch(wrong.socket, wrong.receive)
        heard: list[Any] = []
        wrong.call({"op": "stop", "code": 1, "reason": "an intruder"}, then=lambda *answer: heard.append(answer))
        for _ in range(20):
            assert run.call({"op": "hello"})[0]["run"] == "run-1"
            run.loop.turn(0.05)
        assert heard == []
        assert run.processes[0].poll() is None
    finally:
        wrong.socket.close(linger=0)


def test_a_payload_that_was_changed_on_its_way_is_refused(agents: Any) -> None:
    run = agents()
    digest = hashlib.sha256(b"what was sent").hexdigest()
    assert run.call({"op": "put", "digest": digest, "offset": 0, "total": 13}, b"what was ")[0]["have"] == 9
    assert run.call({"op": "put", "digest": digest, "offset": 0, "total": 13}, b"what was ")[0]["have"] == 9  # from anew
    assert run.call({"op": "put", "digest": digest, "offset": 4, "total": 13}, b"x")[0]["have"] == 9  # not where it ends
    assert "digest" in run.call({"op": "put", "digest": digest, "offset": 9, "total": 13}, b"SENT")[0]["error"]
    assert run.call({"op": "hello"})[0]["payload"] is None


def test_orphans_are_reaped_and_no_process_outlives_its_agent(agents: Any) -> None:
    def leave_orphans() -> int:
        import subprocess

        script = "import os, signal\npid = os.fork()\nif pid == 0:\n    os.closerange(1, 3)\n    signal.pause()\nprint(pid)"
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        return int(done.stdout)

    run = agents()
    run.start(leave_orphans)
    run.follow(lambda entry: entry["kind"] == "done")
    orphan = cloudpickle.loads(run.call({"op": "fetch", "rank": 0, "offset": 0})[1])
    agent = run.processes[0].pid
    assert str(orphan) in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()  # it came to the agent
    run.call({"op": "stop", "code": 0, "reason": "done"})
    assert run.processes[0].wait(20) == 0
    assert not Path(f"/proc/{orphan}").exists()


def test_a_long_report_that_arrives_in_pieces_is_one_report(tmp_path: Path) -> None:
    """A report holds a traceback and a pickled exception: it is longer than a log line may be."""
    loop, reports = Loop(), []
    ranks = Ranks(loop, tmp_path / "socket", lambda rank, report: reports.append((rank, report)), print, print)
    text = json.dumps({"report": "failed", "traceback": "x" * 50_000}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as rank:
        rank.connect(str(tmp_path / "socket"))
        rank.sendall(b'{"connection": "control", "rank": 3}\n')
        for piece in (text[:20_000], text[20_000:40_000], text[40_000:]):
            loop.turn(1)
            rank.sendall(piece)
        while not reports:
            loop.turn(1)
    assert reports == [(3, {"report": "failed", "traceback": "x" * 50_000})]
    loop.turn(1)
    ranks.close()
