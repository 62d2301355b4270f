"""Strangers at every socket of a live run: nothing of theirs is read, nobody falls over, the run ends right."""

from __future__ import annotations

import os
import pickle
import queue
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

import ghee
from ghee.errors import TransferError
from ghee.launch.inline import InlineLauncher
from ghee.launch.local import LocalLauncher
from ghee.protocol import messages as m
from ghee.protocol.delivery import Once
from ghee.protocol.messages import RankId
from ghee.transfer import zeromq
from ghee.transfer.wire import Arrived, Instructions, Report
from ghee.transfer.zeromq import Keys, ZmqEndpoint

CONNECTIONS = int(os.environ.get("GHEE_HOSTILE_CONNECTIONS", "50000"))
"""To all four sockets of a run together, over each of two carriers. 400,000 are 100,000 to each."""

SILENT = 50
"""Connections to each socket that say nothing, all the time."""

SLACK = 64 << 20
"""Bytes by which a process may grow meanwhile: a hundred thousand frames say that they are larger than that."""


def sockets_of(pids: Iterable[int]) -> set[str]:
    """The inodes of the sockets that these processes hold."""
    inodes = set()
    for pid in pids:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            try:
                inodes.add(os.readlink(f"/proc/{pid}/fd/{entry}").removeprefix("socket:[").rstrip("]"))
            except OSError:  # the listing's own
                continue
    return inodes


def listening(inodes: set[str], folder: str) -> list[str]:
    """The addresses at which these sockets listen, over TCP, and those in the run's folder."""
    found = [f"ipc://{path}" for path in map(str, Path(folder).iterdir()) if Path(path).is_socket()]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and inode in inodes:
            found.append(f"tcp://127.0.0.1:{int(local.partition(':')[2], 16)}")
    return found


def peak_memory(pid: int) -> int:
    """The most that a process ever had in memory, in bytes."""
    return next(
        int(line.split()[1]) << 10 for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line
    )


@pytest.mark.parametrize("carrier", ["shm", "tcp"])
def test_a_run_under_attack_ends_right(carrier: str, tmp_path: Path, running: Callable[[], dict[int, str]]) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        number = 0
        while tokens.get():
            yield {"id": np.full(20_000, number)}
            number += 1

    tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
    poisoned = tmp_path / "poisoned"
    poison = hostile.poison_of(poisoned)
    (tmp_path / "logs").mkdir()
    launcher = LocalLauncher(tmp_path / "logs", carrier=carrier)
    pipeline = ghee.read(rows()).map(lambda batch: batch).loop(lambda batches: [int(batch["id"][0]) for batch in batches])
    run = ghee.run(pipeline, on=launcher, wait=False)
    try:
        tokens.put(True)
        while run.report.first_batch is None:
            assert not run.wait(0.05), "the run has ended before it began"
        started = running()
        ranks = [
            pid for pid, command in started.items() if "-m ghee.launch.process" in command and "-launcher" not in command
        ]
        victims = [*ranks, os.getpid()]
        mpi = sockets_of(started.keys() - set(ranks))  # what ranks have inherited from mpiexec is not ours
        addresses = listening(sockets_of(victims) - mpi, launcher._folder)
        assert len(addresses) == 4, (
            "driver, source, map and loop"
        )  # the source is a rank in a thread of the driver's process
        attack = hostile.Attack(poison, hostile.record_session(launcher._keys, poison))
        before = {pid: peak_memory(pid) for pid in victims}
        others, knocking = Keys.make(), list[zmq.Socket[bytes]]()
        with ExitStack() as silent:
            for address in addresses * SILENT:
                silent.enter_context(hostile.connect(address))
            knocking += hostile.knock(addresses, None, b"", b"", poison)
            knocking += hostile.knock(addresses, others.public, others.secret, launcher._keys.public, poison)
            knocking += hostile.knock(addresses, launcher._keys.public, others.secret, launcher._keys.public, poison)
            knocking += hostile.knock(addresses, others.public, others.secret, others.public, poison)
            for number in range(CONNECTIONS):
                if number % 500 == 0:
                    tokens.put(True)
                hostile.throw(addresses[number // len(attack.kinds) % len(addresses)], attack.make(number))
            grown = {pid: peak_memory(pid) - before[pid] for pid in victims}
            tokens.put(False)
            result = run.result
    finally:
        tokens.put(False)
        run.cancel()
    for push in knocking:
        push.close(0)
    zmq.Context.instance().term()
    assert Counter(result) == Counter(range(1 + CONNECTIONS // 500))
    assert run.report.balanced
    assert not run.report.restarts
    assert max(grown.values()) < SLACK
    assert not poisoned.exists(), "what a stranger sent was unpickled"
    pickle.loads(poison)
    assert poisoned.exists(), "the poison is none"


# ── who holds the key, and has a bug ─────────────────────────────────────────────────────────────────────────────

MAP = RankId(1, 0)
BATCH = Arrived((0, 0, 0), 1, 8, 0, None, False, b"", RankId(0, 0), "nowhere", (), [])

DRIVER, MAP_RANK = "driver", "map rank"

MISTAKES: dict[str, tuple[str, list[bytes], str]] = {
    "noise for the driver": (DRIVER, [b"noise"], r"1 frames, the first of 5 bytes, is no Report"),
    "an empty frame": (DRIVER, [b""], r"the first of 0 bytes, is no Report"),
    "another object for the driver": (DRIVER, [pickle.dumps(["Report"])], r"a message is a list; only Report"),
    "a report again": (DRIVER, [pickle.dumps(Report(MAP, [], None, 0))], r"report number 0 for the second time"),
    "a report too early": (DRIVER, [pickle.dumps(Report(MAP, [], None, 99_999))], r"number 99999 where \d+ was to come"),
    "a report of nobody": (DRIVER, [pickle.dumps(Report(RankId(7, 0), [], None, 0))], r"which is no rank of this run"),
    "noise for a rank": (MAP_RANK, [b"noise", b"x" * 100_000], r"2 frames, the first of 5 bytes, is no list or Instr"),
    "a batch without its frames": (MAP_RANK, [pickle.dumps([(BATCH, 1)])], r"a list has come that does not fit"),
    "what is no batch": (MAP_RANK, [pickle.dumps([1, 2])], r"a list has come that does not fit"),
    "a batch again": (
        MAP_RANK,
        [pickle.dumps([(BATCH._replace(note=(0,)), 1)]), b""],
        r"has sent batch \(0, 0, 0\) as number 0 of its epoch, which came before",
    ),
    "a batch that is not here": (
        MAP_RANK,
        [pickle.dumps(Instructions([m.Discard(MAP, (0, 9, 9, 0))], {}))],
        r"an? Instructions has come that does not fit",
    ),
    "what no rank is told": (
        MAP_RANK,
        [pickle.dumps(Instructions([m.Joined(MAP, "", 0)], {}))],  # type: ignore[list-item]
        r"no rank is told Joined",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_member_that_sends_what_it_must_not_fails_the_run_with_the_reason(mistake: str) -> None:
    """It holds the key, so it is read; what it says is checked all the same."""

    def rows() -> Iterator[dict[str, Any]]:
        while tokens.get():
            yield {"id": np.arange(10)}

    tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
    launcher = InlineLauncher()
    run = ghee.run(ghee.read(rows()).map(lambda batch: batch).loop(list), on=launcher, wait=False)
    member, _ = launcher.member()
    try:
        tokens.put(True)
        while run.report.first_batch is None:
            assert not run.wait(0.01), "the run has ended before it began"
        to, frames, reason = MISTAKES[mistake]
        member.send(launcher._driver if to is DRIVER else launcher._members[0]._endpoint.address, frames)
        tokens.put(False)  # it cannot end without whom the message was sent to
        with pytest.raises(TransferError, match=reason):
            run.result  # noqa: B018
    finally:
        member.close()
        tokens.put(False)
        run.cancel()


def test_over_tcp_what_has_no_number_is_refused_with_the_reason() -> None:
    keys = Keys.make()
    victim, context = ZmqEndpoint("tcp://127.0.0.1:*", keys), zmq.Context()
    push = context.socket(zmq.PUSH)
    push.curve_publickey, push.curve_secretkey, push.curve_serverkey = keys.public, keys.secret, keys.public
    push.connect(victim.address)
    prefix = zeromq._PREFIX.pack(b"m", b"channel.", 0, 2)
    try:
        for message in ([b"short"], [b""], [prefix], [prefix + b"\xff" * 8 + b"tcp://x"], [prefix + b"\xff" * 9]):
            push.send_multipart(message)
            with pytest.raises(TransferError, match="that no process sends"):
                victim.receive(10.0)
    finally:
        context.destroy(0)
        victim.close()


@given(st.permutations(range(30)), st.lists(st.integers(0, 29)))
def test_each_place_is_taken_once_in_any_order(order: list[int], again: list[int]) -> None:
    once, seen = Once(), set[int]()
    for number in [*order[:15], *again, *order[15:], *again]:
        assert once.is_new(number) == (number not in seen)
        seen.add(number)
    assert once.next == 30
    assert not once._early
