"""Encrypted connections between client and agents: the only file that imports zmq.

Every connection is CURVE: both ends prove a key that was made for this run before a byte of a message is looked at, and the
listener takes only the keys of its list (never ``CURVE_ALLOW_ANY``, which encrypts but admits everybody).
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.auth.thread

from swimmy.protocol import CHUNK, Header, ProtocolError, decode, encode

_HEARTBEAT = 5_000  # milliseconds between ZMTP pings; a half-open connection is noticed after three of them


@dataclass(frozen=True)
class Keys:
    """A CURVE key pair in Z85 text."""

    public: str
    secret: str

    @staticmethod
    def new() -> Keys:
        public, secret = zmq.curve_keypair()
        return Keys(public.decode(), secret.decode())


class _Allowed:
    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = frozenset(key.encode() for key in keys)

    def callback(self, domain: str, key: bytes) -> bool:
        return key in self._keys


class Listener:
    """The agent's side: a ROUTER that only holders of an allowed key can reach."""

    def __init__(self, keys: Keys, allowed: Iterable[str], addresses: Iterable[str], port: int) -> None:
        self.context = zmq.Context()
        self._authenticator = zmq.auth.thread.ThreadAuthenticator(self.context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", credentials_provider=_Allowed(allowed))
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.curve_server = True
        self.socket.curve_publickey = keys.public.encode()
        self.socket.curve_secretkey = keys.secret.encode()
        self.socket.setsockopt(zmq.MAXMSGSIZE, 2 * CHUNK)
        self.socket.setsockopt(zmq.LINGER, 500)
        _heartbeats(self.socket)
        self.port = port
        for address in addresses:
            if self.port == 0:
                self.port = self.socket.bind_to_random_port(f"tcp://{address}")
            else:
                self.socket.bind(f"tcp://{address}:{self.port}")

    def receive(self) -> tuple[bytes, Header, bytes] | None:
        """The next request and who sent it, or None when there is none; what is no message is passed over."""
        while True:
            try:
                sender, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            try:
                header, body = decode(frames)
            except ProtocolError:
                continue
            return sender, header, body

    def reply(self, sender: bytes, header: Header, body: bytes = b"") -> None:
        self.socket.send_multipart([sender, *encode(header, body)])

    def close(self) -> None:
        self._authenticator.stop()
        self.socket.close()
        self.context.term()


class Caller:
    """The calling side: requests go out with a number, and replies come back to the function given with the request."""

    def __init__(self, context: zmq.Context[Any], keys: Keys, server: str, address: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.curve_publickey = keys.public.encode()
        self.socket.curve_secretkey = keys.secret.encode()
        self.socket.curve_serverkey = server.encode()
        self.socket.setsockopt(zmq.MAXMSGSIZE, 2 * CHUNK)
        self.socket.setsockopt(zmq.LINGER, 500)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        _heartbeats(self.socket)
        self.socket.connect(f"tcp://{address}")
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Callable[[Header, bytes], None]] = {}

    def call(self, header: Header, body: bytes = b"", then: Callable[[Header, bytes], None] | None = None) -> None:
        number = next(self._numbers)
        if then is not None:
            self._waiting[number] = then
        self.socket.send_multipart(encode({**header, "id": number}, body))

    def receive(self) -> None:
        """Hands every reply that has arrived to the function that waits for it."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            header, body = decode(frames)
            then = self._waiting.pop(header.get("id", 0), None)
            if then is not None:
                then(header, body)

    def close(self) -> None:
        self._waiting.clear()
        self.socket.close(linger=500)


def _heartbeats(socket: zmq.Socket[Any]) -> None:
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT)
    socket.setsockopt(zmq.IPV6, 1)


class Loop:
    """Waits for sockets, file descriptors and times, and calls the function registered for each. One thread."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._functions: dict[Any, Callable[[], object]] = {}

    def watch(self, source: Any, function: Callable[[], object]) -> None:
        """Calls the function whenever the zmq socket, or the object with a ``fileno``, can be read."""
        key = source if isinstance(source, zmq.Socket) else source.fileno()
        self._functions[key] = function
        self._poller.register(key, zmq.POLLIN)

    def forget(self, source: Any) -> None:
        key = source if isinstance(source, zmq.Socket) else source.fileno()
        if self._functions.pop(key, None) is not None:
            self._poller.unregister(key)

    def turn(self, seconds: float) -> None:
        """Waits at most so long, then calls what is due. A zmq socket's function must read until nothing is left."""
        for key, _ in self._poller.poll(max(0, int(seconds * 1000))):
            function = self._functions.get(key)
            if function is not None:
                function()


class Waker:
    """Ends a Loop's wait from another thread."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        return self._read.fileno()

    def wake(self) -> None:
        """Does nothing once the waker is closed."""
        with self._lock:
            if self._closed:
                return
            try:
                self._write.send(b"x")
            except BlockingIOError:
                pass  # already awake many times over

    def drain(self) -> None:
        try:
            while self._read.recv(4096):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._read.close()
            self._write.close()


def new_context() -> zmq.Context[Any]:
    return zmq.Context()
