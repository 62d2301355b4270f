"""An API server of a page: answers lists and watches of Pods from a script, over real HTTP, with every fault that one
may show.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Handler = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; what it answers is decided by the server's ``script``."""

    protocol_version = "HTTP/1.1"
    server: FakeApi

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        split = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(split.query).items()}
        self.server.asked.append(self.query)
        self.server.script(self)

    do_POST = do_PATCH = do_DELETE = do_GET

    def cut(self) -> None:
        """Ends the connection without a word."""
        self.close_connection = True
        self.connection.close()

    def reply(self, status: int, body: Any, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, *pieces: bytes, whole: bool = True) -> None:
        """A chunked answer; ``whole=False`` breaks the connection in the middle of it."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
        if whole:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True
            self.connection.close()

    def hang(self) -> None:
        """Sends nothing more until the server is closed, or the client goes."""
        self.close_connection = True
        self.server.released.wait(20)

    def log_message(self, *_: Any) -> None:
        pass


class FakeApi(ThreadingHTTPServer):
    """A context manager; ``asked`` holds the query of each request, in order."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, script: Handler, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.script = script
        self.asked: list[dict[str, str]] = []
        self.released = threading.Event()
        self._connections: list[socket.socket] = []
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
                    "current-context": "c",
                }
            )
        )
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def __enter__(self) -> FakeApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.shutdown()
        self._thread.join()
        for connection in self._connections:  # a client may keep one open for its next request, and a thread waits for that
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


def pod(name: str, version: int, phase: str = "Running") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version)},
        "status": {"phase": phase},
    }


def line(kind: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def pods(version: int, *items: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "PodList", "metadata": {"resourceVersion": str(version)}, "items": list(items)}
