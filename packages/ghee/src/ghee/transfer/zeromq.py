"""Carrier between processes by ZeroMQ. The only file of ghee that imports zmq.

Every process has one PULL socket, its inbox, and one PUSH socket for each inbox it has written to: a message has one
addressee, and the order between two processes is kept. Nothing is queued round-robin, and no high-water mark drops or
blocks: what may be sent is bounded by credit (ghee.protocol), and a process leaves only when the driver has heard that
all it sent has arrived.

Every socket speaks CURVE with keys made for the run, on Unix sockets too: who does not hold the run's secret key
cannot finish the handshake, and nothing of his is ever read (docs/protocol.md, "Closed by default").
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import zmq
import zmq.utils.z85

from ghee.codec import Buffer
from ghee.transfer.contract import Message

_ZAP = "inproc://zeromq.zap.01"
_LARGE = 1 << 16
_CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class Keys:
    """A run's key pair (CURVE, Z85 text). Every process of the run holds both halves: to hold the secret is to belong."""

    public: bytes
    secret: bytes

    @staticmethod
    def make() -> Keys:
        """New keys, for one run."""
        return Keys(*zmq.curve_keypair())


class ZmqEndpoint:
    """An inbox at `address` and connections to others."""

    def __init__(self, bind: str, keys: Keys) -> None:
        """`bind` is `ipc:///path` or `tcp://host:*`."""
        self._keys = keys
        self._member = zmq.utils.z85.decode(keys.public)
        self._context = zmq.Context(io_threads=1)
        self._context.max_sockets = 65535
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind(_ZAP)
        self._inbox = self._socket(zmq.PULL)
        self._inbox.curve_server = True
        self._inbox.zap_domain = b"ghee"
        self._inbox.bind(bind)
        endpoint = self._inbox.last_endpoint
        assert isinstance(endpoint, bytes)
        self.address = endpoint.decode()
        self._outs: dict[str, zmq.Socket[bytes]] = {}
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        for source in (self._inbox, self._zap, self._event):
            self._poller.register(source, zmq.POLLIN)
        self._closed = False

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.sndhwm = socket.rcvhwm = 0
        socket.linger = int(_CLOSE_SECONDS * 1000)
        socket.curve_publickey = self._keys.public
        socket.curve_secretkey = self._keys.secret
        return socket

    def send(self, to: str, frames: Sequence[Buffer]) -> None:
        """Queue a message; never blocks."""
        out = self._outs.get(to)
        if out is None:
            out = self._outs[to] = self._socket(zmq.PUSH)
            out.curve_serverkey = self._keys.public
            out.connect(to)
        last = len(frames) - 1
        for number, frame in enumerate(frames):
            large = len(frame) >= _LARGE if isinstance(frame, bytes) else frame_size(frame) >= _LARGE
            out.send(frame, zmq.SNDMORE if number < last else 0, copy=not large)

    def receive(self, timeout: float | None) -> list[Message]:
        """Wait for messages, for `wake` or for `timeout` seconds; return all that are there."""
        ready = dict(self._poller.poll(None if timeout is None else int(timeout * 1000)))
        if self._event in ready:
            os.eventfd_read(self._event)
        if self._zap in ready:
            self._admit()
        messages: list[Message] = []
        if self._inbox in ready:
            try:
                while len(messages) < 1000:
                    frames = self._inbox.recv_multipart(zmq.NOBLOCK, copy=False)
                    messages.append([frame.buffer for frame in frames])
            except zmq.Again:
                pass
        return messages

    def _admit(self) -> None:
        """Answer who asks to connect (RFC 27, ZAP): only who holds the run's own key."""
        while self._zap.poll(0):
            version, request, _domain, _address, _identity, mechanism, *credentials = self._zap.recv_multipart()
            member = mechanism == b"CURVE" and credentials == [self._member]
            answer = (b"200", b"OK") if member else (b"400", b"this key does not belong to the run")
            self._zap.send_multipart([version, request, *answer, b"", b""])

    def forget(self, address: str) -> None:
        """The endpoint at this address is gone."""
        out = self._outs.pop(address, None)
        if out is not None:
            out.close(0)

    def wake(self) -> None:
        """Let `receive` return. From any thread."""
        if not self._closed:
            os.eventfd_write(self._event, 1)

    def close(self) -> None:
        """Send what is queued (for a second at most) and let go of everything."""
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + _CLOSE_SECONDS
        for out in self._outs.values():
            out.close(int(max(0.0, deadline - time.monotonic()) * 1000))
        self._inbox.close(0)
        self._zap.close(0)
        self._context.term()
        os.close(self._event)


def frame_size(frame: Buffer) -> int:
    """The bytes of a frame."""
    return frame.nbytes if isinstance(frame, memoryview) else len(frame)
