"""The agent's side of its ranks: a Unix socket in a 0700 folder, over which each rank reports and gets its word to start.

A rank opens two connections: ``control`` (one JSON object a line, both ways) and ``log`` (whatever the rank prints).
Open MPI's mpirun comes over it too, by ``swimmy.agent.rsh``: it says which daemon it wants on which host.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swimmy.agent.processes import Lines
from swimmy.channel import Loop

Report = dict[str, Any]
_REPORT_LIMIT = 1024 * 1024
"""An exception travels with its traceback and, where it can be, pickled: more than a log line has."""


class Ranks:
    """Accepts ranks and hands each of their reports, with the rank's number, to ``on_report``."""

    def __init__(
        self,
        loop: Loop,
        path: Path,
        on_report: Callable[[int, Report], None],
        on_log: Callable[[int, str], None],
        on_daemon: Callable[[str, str], None],
    ) -> None:
        self._loop, self._on_report, self._on_log, self._on_daemon = loop, on_report, on_log, on_daemon
        self._controls: dict[int, socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        os.chmod(path, 0o600)
        self._listener.listen(256)
        self._listener.setblocking(False)
        loop.watch(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        who: dict[str, Any] = {}

        def line(text: str) -> None:
            if not who:
                who.update(json.loads(text))
                if who["connection"] == "control":
                    lines.limit = _REPORT_LIMIT
                    self._controls[who["rank"]] = connection
                elif who["connection"] == "rsh":
                    self._on_daemon(who["host"], who["text"])
            elif who["connection"] == "log":
                self._on_log(who["rank"], text)
            else:
                self._on_report(who["rank"], json.loads(text))

        def end() -> None:
            connection.close()
            if who.get("connection") == "control" and self._controls.get(who["rank"]) is connection:
                del self._controls[who["rank"]]
                self._on_report(who["rank"], {"report": "gone"})

        lines = Lines(self._loop, connection.fileno(), line, end)

    def tell(self, rank: int, message: Report) -> None:
        """Sends a line to the rank; one that has ended meanwhile is passed over, since its end is reported by itself."""
        connection = self._controls.get(rank)
        if connection is None:
            return
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def close(self) -> None:
        self._loop.forget(self._listener)
        self._listener.close()
