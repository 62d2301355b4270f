"""Carrier between processes by ZeroMQ. The only file of ghee that imports zmq.

Every process has one PULL socket, its inbox, and one PUSH socket for each inbox it has written to: a message has one
addressee, and the order between two processes is kept. Nothing is queued round-robin, and no high-water mark drops or
blocks: what may be sent is bounded by credit (ghee.protocol), and a process leaves only when the driver has heard that
all it sent has arrived.

A TCP connection may break and come back, and ZeroMQ then loses what was under way without a word. So over TCP every
message has a number and is kept until it has arrived (ghee.protocol.channel); a lost connection is replaced by a new one.
A Unix socket between two living processes does not break.

Every socket speaks CURVE with keys made for the run, on Unix sockets too: who does not hold the run's secret key
cannot finish the handshake, and nothing of his is ever read (docs/protocol.md, "Closed by default").
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import zmq
import zmq.utils.z85

from ghee.codec import Buffer
from ghee.errors import TransferError
from ghee.protocol.channel import Incoming, Outgoing
from ghee.transfer.contract import Message
from ghee.transfer.memory import allocate, copy

_ZAP = "inproc://zeromq.zap.01"
_LARGE = 1 << 16
_CLOSE_SECONDS = 1.0

_PREFIX = struct.Struct("<c8sQI")
"""What stands before each message over TCP: kind, channel, number, and how many counts of pieces follow: one for each frame,
none if no frame was cut. The sender's address comes last."""

_MESSAGE, _ACKNOWLEDGEMENT = b"m", b"a"

PIECE_BYTES = 16 << 20
"""Frames that are larger go over TCP in pieces of so many bytes: libzmq can then refuse every larger one, from whomever it
comes, before it takes memory for it."""

BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted: all ranks of a large run may connect at once."""

LOOK_SECONDS = 0.1
"""How often an endpoint looks whether one of its TCP connections was lost."""

PAUSE_SECONDS = 0.02
"""After so long without a message, senders are told what has arrived."""

HANDSHAKE_SECONDS = 10
"""Who has not proved by then that he belongs to the run is shut out: connections that say nothing do not pile up."""

HEARTBEAT_SECONDS, SILENCE_SECONDS = 5, 30
"""A TCP connection whose peer does not answer pings for `SILENCE_SECONDS` counts as lost: a cut cable says nothing."""


@dataclass(frozen=True)
class Keys:
    """A run's key pair (CURVE, Z85 text). Every process of the run holds both halves: to hold the secret is to belong."""

    public: bytes
    secret: bytes

    @staticmethod
    def make() -> Keys:
        """New keys, for one run."""
        return Keys(*zmq.curve_keypair())


@dataclass
class _Out:
    """A connection to an inbox. `monitor` says when it was lost; `channel` names what is sent over it, whatever connection
    it is sent over. Both only over TCP."""

    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes] | None = None
    channel: bytes = b""
    sent: Outgoing[Sequence[Buffer]] = field(default_factory=Outgoing)


class ZmqEndpoint:
    """An inbox at `address` and connections to others."""

    def __init__(self, bind: str, keys: Keys) -> None:
        """`bind` is `ipc:///path` or `tcp://host:*`; all endpoints that talk with each other have one of the two.

        `address` may be set to another one under which the same inbox is reached, before anything is sent.
        """
        self._keys = keys
        self._is_tcp = bind.startswith("tcp:")
        self._member = zmq.utils.z85.decode(keys.public)
        self._context = zmq.Context(io_threads=1)
        self._context.max_sockets = 65535
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind(_ZAP)
        self._inbox = self._socket(zmq.PULL)
        self._inbox.curve_server = True
        self._inbox.zap_domain = b"ghee"
        self._inbox.backlog = BACKLOG
        self._inbox.bind(bind)
        endpoint = self._inbox.last_endpoint
        assert isinstance(endpoint, bytes)
        self.address = endpoint.decode()
        self._outs: dict[str, _Out] = {}
        self._channels: dict[bytes, _Out] = {}
        self._incoming: dict[bytes, tuple[str, Incoming]] = {}
        self._owed: set[bytes] = set()
        self._numbers = itertools.count(int.from_bytes(os.urandom(6), "little") << 16)
        self._looked_at = 0.0
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
        socket.handshake_ivl = int(HANDSHAKE_SECONDS * 1000)
        if self._is_tcp:
            socket.maxmsgsize = PIECE_BYTES + 1024  # what CURVE adds is less
            socket.heartbeat_timeout = int(SILENCE_SECONDS * 1000)
            socket.heartbeat_ivl = int(HEARTBEAT_SECONDS * 1000)
        return socket

    def send(self, to: str, frames: Sequence[Buffer]) -> None:
        """Queue a message; never blocks."""
        out = self._outs.get(to) or self._connect(to)
        if not self._is_tcp:
            _send(out.socket, frames)
            return
        number = out.sent.add(frames)
        self._send_numbered(out, number, frames)

    def _connect(self, to: str) -> _Out:
        if to.startswith("tcp:") is not self._is_tcp:
            raise TransferError(f"{self.address} cannot send to {to}: one run's endpoints are all tcp:// or all ipc://")
        channel = next(self._numbers).to_bytes(8, "little")
        out = self._outs[to] = self._channels[channel] = _Out(self._socket(zmq.PUSH), channel=channel)
        self._open(out, to)
        return out

    def _open(self, out: _Out, to: str) -> None:
        out.socket.curve_serverkey = self._keys.public
        if self._is_tcp:
            out.monitor = out.socket.get_monitor_socket(zmq.Event.DISCONNECTED)
        out.socket.connect(to)

    def _send_numbered(self, out: _Out, number: int, frames: Sequence[Buffer]) -> None:
        pieces, counts = _cut(frames)
        prefix = _PREFIX.pack(_MESSAGE, out.channel, number, len(counts)) + struct.pack(f"<{len(counts)}I", *counts)
        _send(out.socket, [prefix + self.address.encode(), *pieces])

    def receive(self, timeout: float | None) -> list[Message]:
        """Wait for messages, for `wake` or for `timeout` seconds; return all that are there."""
        if not self._is_tcp:
            return self._receive(timeout)[0]
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._mend()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            longest = PAUSE_SECONDS if self._owed else LOOK_SECONDS
            received, was_woken = self._receive(longest if left is None else min(left, longest))
            messages = [message for frames in received if (message := self._take(frames)) is not None]
            self._acknowledge(is_pause=not received)
            if messages or was_woken or (deadline is not None and time.monotonic() >= deadline):
                return messages

    def _receive(self, timeout: float | None) -> tuple[list[Message], bool]:
        """The messages that are there, and whether somebody called `wake`."""
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
        return messages, self._event in ready

    # ── over TCP: numbers, acknowledgements, new connections ─────────────────────────────────────────────────────

    def _take(self, frames: Message) -> Message | None:
        """The message without its number, if it is the next of its channel."""
        try:
            prefix = bytes(frames[0])
            kind, channel, number, count = _PREFIX.unpack_from(prefix)
            counts = struct.unpack_from(f"<{count}I", prefix, _PREFIX.size)
            address = prefix[_PREFIX.size + 4 * count :].decode("ascii")
            if kind == _ACKNOWLEDGEMENT:
                if channel in self._channels:
                    self._channels[channel].sent.arrived(number)
                return None
            _, incoming = self._incoming.setdefault(channel, (address, Incoming()))
            is_next = incoming.take(number, sum(frame_size(frame) for frame in frames))
            if incoming.is_owed:
                self._owed.add(channel)
            return _join(frames[1:], counts) if is_next else None
        except (struct.error, ValueError) as error:
            raise TransferError(
                f"a message of {len(frames)} frames has come over TCP that no process sends: {error}"
            ) from error

    def _acknowledge(self, is_pause: bool) -> None:
        for channel in list(self._owed):
            address, incoming = self._incoming[channel]
            if is_pause or incoming.is_due:
                self._owed.remove(channel)
                prefix = _PREFIX.pack(_ACKNOWLEDGEMENT, channel, incoming.tell(), 0) + self.address.encode()
                _send((self._outs.get(address) or self._connect(address)).socket, [prefix])

    def _mend(self) -> None:
        """Replace the connections that were lost, and send again over the new ones what may have been lost with them."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        for address, out in list(self._outs.items()):
            if not _was_lost(out):
                continue
            self._close_out(out, 0)
            out.socket = self._socket(zmq.PUSH)
            self._open(out, address)
            for number, frames in out.sent.again():
                self._send_numbered(out, number, frames)
            for channel, (other, incoming) in self._incoming.items():
                if other == address:
                    incoming.owe()  # what it was told may have been lost as well
                    self._owed.add(channel)

    @staticmethod
    def _close_out(out: _Out, linger: int) -> None:
        if out.monitor is not None:
            out.socket.disable_monitor()
            out.monitor.close(0)
            out.monitor = None
        out.socket.close(linger)

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
            del self._channels[out.channel]
            self._close_out(out, 0)
        for channel in [channel for channel, (sender, _) in self._incoming.items() if sender == address]:
            del self._incoming[channel]
            self._owed.discard(channel)

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
            matters = not self._is_tcp or out.sent.kept  # and not only acknowledgements, for which nobody waits
            self._close_out(out, int(max(0.0, deadline - time.monotonic()) * 1000) if matters else 0)
        self._inbox.close(0)
        self._zap.close(0)
        self._context.term()
        os.close(self._event)


def _send(socket: zmq.Socket[bytes], frames: Sequence[Buffer]) -> None:
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        large = len(frame) >= _LARGE if isinstance(frame, bytes) else frame_size(frame) >= _LARGE
        socket.send(frame, zmq.SNDMORE if number < last else 0, copy=not large)


def _cut(frames: Sequence[Buffer]) -> tuple[Sequence[Buffer], Sequence[int]]:
    """The frames in pieces, and of how many pieces each consists; no counts if none was cut."""
    if all(frame_size(frame) <= PIECE_BYTES for frame in frames):
        return frames, ()
    pieces: list[Buffer] = []
    counts = []
    for frame in frames:
        view = memoryview(frame)
        starts = range(0, max(1, len(view)), PIECE_BYTES)
        pieces += [view[start : start + PIECE_BYTES] for start in starts]
        counts.append(len(starts))
    return pieces, counts


def _join(pieces: Message, counts: Sequence[int]) -> Message:
    """The frames that were cut. Raises ValueError if they are not there."""
    if not counts:
        return pieces
    if sum(counts) != len(pieces):
        raise ValueError(f"{len(pieces)} pieces where {sum(counts)} were announced")
    left = iter(pieces)
    return [_whole([next(left) for _ in range(count)]) for count in counts]


def _whole(pieces: Message) -> Buffer:
    if len(pieces) == 1:
        return pieces[0]
    whole, at = allocate(sum(frame_size(piece) for piece in pieces)), 0
    for piece in pieces:
        copy(whole[at : at + frame_size(piece)], piece)
        at += frame_size(piece)
    return whole


def _was_lost(out: _Out) -> bool:
    lost = False
    while out.monitor is not None and out.monitor.poll(0):
        out.monitor.recv_multipart()  # what it says is what it was asked for; zmq.utils.monitor would import asyncio
        lost = True
    return lost


def frame_size(frame: Buffer) -> int:
    """The bytes of a frame."""
    return frame.nbytes if isinstance(frame, memoryview) else len(frame)
