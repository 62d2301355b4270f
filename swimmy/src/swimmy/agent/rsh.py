"""What Open MPI's mpirun runs in the place of ssh: asks this Pod's agent to have its daemon run on another Pod.

Called as ``swimmy-rsh HOST WORD…``, the words meant for a shell. It stays until the agent closes the connection, because
mpirun takes the end of its ssh for the end of the daemon.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from swimmy.inside import SOCKET


def main() -> None:
    if len(sys.argv) < 3 or SOCKET not in os.environ:
        raise SystemExit("swimmy-rsh HOST WORD…: called by mpirun, below an agent of swimmy")
    host, *words = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(os.environ[SOCKET])
    request = {"connection": "rsh", "host": host.rpartition("@")[2], "text": " ".join(words)}
    connection.sendall(json.dumps(request).encode() + b"\n")
    connection.recv(1)
