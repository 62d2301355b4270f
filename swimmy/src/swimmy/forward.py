"""A port of this machine that leads to a Pod's, through the API server. No Kubernetes client in here."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import TYPE_CHECKING

from websocket import WebSocketException

from swimmy.errors import shortly

if TYPE_CHECKING:
    from swimmy.kubernetes import Cluster

_FORWARD_PAUSE = 0.3


class Forward:
    """Listens on a port of the loopback interface and carries each connection to the Pod through the API server.

    Anybody on this machine can connect to it, and gets no further than anybody in the cluster would: the agent asks for a
    key.
    """

    def __init__(self, cluster: Cluster, pod: str, port: int) -> None:
        self._cluster, self._pod, self._port = cluster, pod, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.trouble: str | None = None
        self._closed = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._accept, name=f"forward to {pod}", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                with connection:
                    carried = not self._closed and self._carry(connection)
            except (WebSocketException, OSError) as error:
                self.trouble, carried = shortly(error), False
            # The agent may not listen yet; each try is a request, so the next one waits (and ends the wait when closed).
            if not carried and self._ended.wait(_FORWARD_PAUSE):
                return

    def _carry(self, connection: socket.socket) -> bool:
        """Carries bytes until either end closes; whether any came from the Pod."""
        far = self._cluster.open_forward(self._pod, self._port)
        carried = False
        greeted: set[int] = set()  # each channel begins with the port's number
        try:
            while not self._closed:
                if not far.sock.pending() and not select.select([connection, far.sock], [], [], 0.5)[0]:
                    continue
                if far.sock.pending() or select.select([far.sock], [], [], 0)[0]:
                    data = far.recv()
                    if not data:
                        return carried
                    channel, data = data[0], data[1:]
                    if channel not in greeted:
                        greeted.add(channel)
                    elif channel == 1:
                        self.trouble = data.decode(errors="replace").strip()
                        return carried
                    else:
                        connection.sendall(data)
                        carried = True
                if select.select([connection], [], [], 0)[0]:
                    data = connection.recv(256 * 1024)
                    if not data:
                        return carried
                    far.send_binary(b"\0" + data)
            return carried
        finally:
            far.close(timeout=1)
            far.shutdown()  # close() does nothing after the other end's close, and leaves the socket open

    def close(self) -> None:
        self._closed = True
        self._ended.set()
        with contextlib.suppress(OSError), socket.create_connection(self._listener.getsockname(), timeout=1):
            pass  # wakes the thread that waits for a connection
        self._listener.close()
        self._thread.join()
