"""TCP connections that break, really: nothing is lost, nothing comes twice, whatever was under way."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import socket
import stat
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ghee
from ghee.launch.local import LocalLauncher
from ghee.transfer import zeromq
from ghee.transfer.zeromq import Keys, ZmqEndpoint

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

LIMIT = 20.0


class Cutter:
    """A TCP proxy before an inbox that breaks its first connections: connection i after `cuts[i]` bytes.

    `silent`: it does not close them, it only passes nothing on any more, as a cable that was pulled out.
    """

    def __init__(self, target: str, cuts: list[int], silent: bool = False) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target, self._cuts = (host, int(port)), list(cuts)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self._silent, self._kept = silent, contextlib.ExitStack()
        self._stop, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="cutter")
        self._thread.start()
        self.cut = 0

    def _run(self) -> None:
        while self._listening in select.select([self._listening, self._stop], [], [])[0]:
            client, _ = self._listening.accept()
            with contextlib.ExitStack() as stack:
                stack.enter_context(client)
                server = stack.enter_context(socket.create_connection(self._target))
                left = self._cuts.pop(0) if self._cuts else None
                self.cut += left is not None
                self._pass_on(client, server, left)
                if self._silent:
                    self._kept.push(stack.pop_all())

    def _pass_on(self, client: socket.socket, server: socket.socket, left: int | None) -> None:
        others = {client: server, server: client}
        while True:
            ready = select.select([client, server, self._stop], [], [])[0]
            if self._stop in ready:
                return
            for one in ready:
                data = one.recv(1 << 16 if left is None else min(1 << 16, max(1, left)))
                if not data or (left is not None and left <= 0):
                    return
                if one is client and left is not None:
                    left -= len(data)
                others[one].sendall(data)

    def close(self) -> None:
        """Break what is there, and listen no more."""
        self._end.close()
        self._thread.join()
        self._kept.close()
        self._stop.close()
        self._listening.close()


@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
@pytest.mark.parametrize("cuts", [[0], [30], [700], [2_000, 5_000_000], [100_000, 100_000, 100_000, 3_000_000], [9_000_000]])
def test_every_message_arrives_once_over_a_connection_that_is_cut(
    monkeypatch: pytest.MonkeyPatch, cuts: list[int], silent: bool
) -> None:
    """Cut before, in and after the handshake; between messages and within one; within a message of several frames."""
    if silent:
        monkeypatch.setattr("ghee.transfer.zeromq.HEARTBEAT_SECONDS", 0.2)
        monkeypatch.setattr("ghee.transfer.zeromq.SILENCE_SECONDS", 0.5)
    keys = Keys.make()
    sender, receiver = ZmqEndpoint("tcp://127.0.0.1:*", keys), ZmqEndpoint("tcp://127.0.0.1:*", keys)
    cutter = Cutter(receiver.address, cuts, silent)
    try:
        for number in range(100):
            large = np.full(200_000, number, np.uint8)
            sender.send(cutter.address, [b"%d" % number, memoryview(large), b"x", memoryview(large)])
        seen: list[int] = []
        deadline = time.monotonic() + LIMIT
        while len(seen) < 100 or sender._outs[cutter.address].sent.kept:
            assert time.monotonic() < deadline, f"{len(seen)} messages have arrived"
            for first, one, _, other in receiver.receive(0.01):
                seen.append(int(bytes(first)))
                assert bytes(one) == bytes(other) == bytes([seen[-1]]) * 200_000
            assert sender.receive(0.01) == []
        assert seen == list(range(100))
        assert cutter.cut == len(cuts)
    finally:
        cutter.close()
        sender.close()
        receiver.close()


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
@settings(deadline=None)
def test_frames_that_are_too_large_go_in_pieces(frames: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ghee.transfer.zeromq.PIECE_BYTES", 7)
        pieces, counts = zeromq._cut(frames)
    assert all(len(piece) <= 7 for piece in pieces)
    assert [bytes(frame) for frame in zeromq._join(list(pieces), counts)] == frames
    if counts:
        with pytest.raises(ValueError, match="were announced"):
            zeromq._join(list(pieces)[1:], counts)


def test_a_frame_of_any_size_passes_and_a_larger_piece_is_never_read() -> None:
    """What a stranger says of the length of his frames is refused when it is more than a piece: nothing is taken for it."""
    keys = Keys.make()
    sender, receiver = ZmqEndpoint("tcp://127.0.0.1:*", keys), ZmqEndpoint("tcp://127.0.0.1:*", keys)
    large = np.arange(6_000_001)
    try:
        assert receiver._inbox.maxmsgsize < 2 * zeromq.PIECE_BYTES < large.nbytes
        sender.send(receiver.address, [b"large", memoryview(large).cast("B"), b""])
        received: list[Any] = []
        while not received:
            received = receiver.receive(10.0)
        assert bytes(received[0][0]) == b"large"
        assert (np.frombuffer(received[0][1], large.dtype) == large).all()
        assert len(received[0][2]) == 0
    finally:
        sender.close()
        receiver.close()


def reset_connections() -> int:
    """Break every TCP connection of this process, as a firewall would: what is under way is thrown away. How many."""
    count = 0
    libc = ctypes.CDLL(None)
    for entry in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(entry))
        except OSError:  # the listing's own
            continue
        if not stat.S_ISSOCK(os.stat(copy).st_mode):
            os.close(copy)
            continue
        with socket.socket(fileno=copy) as connection:
            if connection.family == socket.AF_INET and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0:
                nowhere = ctypes.create_string_buffer(16)  # AF_UNSPEC: the kernel sends RST and drops what is queued
                count += libc.connect(connection.fileno(), nowhere, 16) == 0
    return count


class Breaking:
    """Passes batches on, and breaks all connections of its rank after every 10th."""

    def __init__(self, marks: str) -> None:
        self.marks, self.calls = Path(marks), 0

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        yield batch
        if self.calls % 10 == 0 and reset_connections():
            (self.marks / f"{os.getpid()}-{self.calls}").touch()


def test_a_run_whose_connections_break_again_and_again_loses_nothing(tmp_path: Path) -> None:
    def make(number: Any) -> Any:
        return {"id": np.full(1, number), "x": np.full(30_000, number)}

    def take(batches: Any) -> list[int]:
        breaking, seen = Breaking(str(marks)), []
        for batch in batches:
            assert (batch["x"] == batch["id"][0]).all()
            seen += [int(kept["id"][0]) for kept in breaking(batch)]
        return seen

    marks, logs = tmp_path / "marks", tmp_path / "logs"
    marks.mkdir()
    logs.mkdir()
    breaking = functools.partial(Breaking, str(marks))
    pipeline = ghee.read(list(range(100))).map(make).map(breaking, name="breaking").loop(take)
    run = ghee.run(pipeline, on=LocalLauncher(logs, carrier="tcp"))
    assert Counter(run.result) == Counter(range(100))
    assert run.report.balanced
    assert not run.report.restarts
    assert len(list(marks.iterdir())) >= 5, "connections were not broken"  # one that is not up again yet cannot be broken
