"""What a stranger may send to a listening socket: noise, ZMTP that is cut off, too long, of another kind, or recorded."""

from __future__ import annotations

import pickle
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from ghee.transfer.zeromq import Keys, ZmqEndpoint


class Poison:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def greeting(mechanism: bytes, major: int = 3) -> bytes:
    """The first 64 bytes of ZMTP 3 (RFC 23), or the shorter ones of ZMTP 2."""
    signature = b"\xff" + bytes(8) + b"\x7f" + bytes([major])
    return signature + (b"\x00" + mechanism.ljust(20, b"\0") + bytes(32) if major == 3 else b"\x08")


def frame(body: bytes, *, command: bool = False, more: bool = False, length: int | None = None) -> bytes:
    """A frame; `length` is what it says of itself, where that is not true."""
    size = len(body) if length is None else length
    flags = (4 if command else 0) | (1 if more else 0)
    return bytes([flags | 2]) + size.to_bytes(8, "big") + body if size > 255 else bytes([flags, size]) + body


class Attack:
    """Makes what one connection sends. Each kind puts the poison where it would be read if the kind were let in."""

    def __init__(self, poison: bytes, recorded: bytes, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.poison, self.recorded = poison, recorded
        self.kinds: list[Callable[[], bytes]] = [
            lambda: self.random.randbytes(self.random.randrange(1, 300)),
            lambda: frame(poison),
            lambda: bytes([1, 0]) + frame(poison),  # ZMTP 1 has no greeting and no security
            lambda: greeting(b"", 2) + frame(b"") + frame(poison),
            lambda: greeting(b"NULL") + self._ready() + frame(poison),
            lambda: greeting(b"PLAIN") + frame(b"\x05HELLO\x01a\x01b", command=True) + frame(poison),
            lambda: greeting(b"CURVE")[: self.random.randrange(64)],
            lambda: greeting(b"CURVE") + frame(poison),
            lambda: greeting(b"CURVE") + self._ready() + frame(poison),
            lambda: greeting(b"CURVE") + self._hello() + frame(poison),
            lambda: greeting(b"CURVE") + self._hello()[: self.random.randrange(200)],
            lambda: greeting(b"CURVE") + frame(b"\x08INITIATE" + self.random.randbytes(300), command=True),
            lambda: greeting(b"CURVE") + self._hello() + frame(b"\x08INITIATE" + poison, command=True),
            lambda: greeting(b"CURVE") + frame(b"\x07MESSAGE" + self.random.randbytes(60) + poison, command=True),
            lambda: greeting(b"CURVE") + frame(poison, length=1 << self.random.randrange(24, 64)),
            lambda: greeting(b"CURVE") + frame(b"\x05HELLO", command=True, length=(1 << 63) - 1),
            lambda: greeting(b"CURVE") + frame(poison, more=True) * 5,
            lambda: recorded,
            lambda: recorded[: self.random.randrange(len(recorded))],
            self._changed,
        ]

    def make(self, number: int) -> bytes:
        """What connection `number` sends."""
        return self.kinds[number % len(self.kinds)]()

    @staticmethod
    def _ready() -> bytes:
        return frame(b"\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH", command=True)

    def _hello(self) -> bytes:
        return frame(b"\x05HELLO\x01\x00" + bytes(72) + self.random.randbytes(32 + 8 + 80), command=True)

    def _changed(self) -> bytes:
        changed = bytearray(self.recorded)
        changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
        return bytes(changed)


def connect(address: str) -> socket.socket:
    """A plain socket to an endpoint's address."""
    if address.startswith("ipc://"):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(address.removeprefix("ipc://"))
        return stranger
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)))


def throw(address: str, content: bytes) -> None:
    """Send it over a connection of its own. The other side may shut the door at any byte."""
    with connect(address) as stranger:
        try:
            stranger.sendall(content)
        except (BrokenPipeError, ConnectionResetError):
            pass


def record_session(keys: Keys, message: bytes) -> bytes:
    """All bytes with which a member of the run connects to an endpoint and sends a message, as seen on the way."""
    inbox, sender = ZmqEndpoint("tcp://127.0.0.1:*", keys), ZmqEndpoint("tcp://127.0.0.1:*", keys)
    seen = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_tap, args=(listening, inbox.address, seen))
        thread.start()
        sender.send(f"tcp://127.0.0.1:{listening.getsockname()[1]}", [message])
        while not inbox.receive(1.0):
            pass
        sender.close()
        thread.join()
    inbox.close()
    return bytes(seen)


def _tap(listening: socket.socket, target: str, seen: bytearray) -> None:
    member, _ = listening.accept()
    with member, connect(target) as inbox:
        back = threading.Thread(target=_pump, args=(inbox, member))
        back.start()
        while data := member.recv(1 << 16):
            seen += data
            inbox.sendall(data)
        inbox.shutdown(socket.SHUT_RDWR)
        back.join()


def _pump(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(1 << 16):
            other.sendall(data)
    except OSError:
        pass


def knock(
    addresses: list[str], public: bytes | None, secret: bytes, server: bytes, message: bytes
) -> list[zmq.Socket[bytes]]:
    """Connect as a ZeroMQ peer with these keys, or none, and send; the sockets try again until they are closed."""
    sockets = []
    for address in addresses:
        push = zmq.Context.instance().socket(zmq.PUSH)
        push.linger = 0
        if public is not None:
            push.curve_publickey, push.curve_secretkey, push.curve_serverkey = public, secret, server
        push.connect(address)
        push.send(message)
        sockets.append(push)
    return sockets


def poison_of(path: Path) -> bytes:
    """A pickle that makes a file."""
    return pickle.dumps(Poison(path))
