"""What client, agents and ranks say to each other: pure functions, no sockets.

A message is a JSON header of at most 64 KiB and a body of raw bytes. Nothing in a message is ever unpickled here: bodies
that hold pickled code are handed on as bytes, and only a rank (or the client, for results) unpickles them.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import Any

import cloudpickle

PROTOCOL = 1
HEADER_LIMIT = 64 * 1024
CHUNK = 4 * 1024 * 1024
PORT = 7171
Header = dict[str, Any]


class ProtocolError(Exception):
    """What arrived is not a message of this protocol."""


def encode(header: Header, body: bytes = b"") -> list[bytes]:
    return [json.dumps(header, separators=(",", ":")).encode(), body]


def decode(frames: list[bytes]) -> tuple[Header, bytes]:
    """The header and body of a message; raises ProtocolError for anything else."""
    if len(frames) != 2:
        raise ProtocolError(f"a message has 2 frames, not {len(frames)}")
    if len(frames[0]) > HEADER_LIMIT:
        raise ProtocolError(f"a header has at most {HEADER_LIMIT} bytes, not {len(frames[0])}")
    try:
        header = json.loads(frames[0])
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a header is JSON: {error}") from None
    if not isinstance(header, dict):
        raise ProtocolError(f"a header is a JSON object, not {type(header).__name__}")
    return header, frames[1]


def facts() -> dict[str, str]:
    """The versions that must agree between the process that pickles and the process that unpickles."""
    try:
        version = importlib.metadata.version("swimmy")
    except importlib.metadata.PackageNotFoundError:  # its sources are on the path, and it is not installed
        version = "of unknown version"
    return {
        "protocol": str(PROTOCOL),
        "Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "swimmy": version,
        "cloudpickle": cloudpickle.__version__,
    }


def differences(here: dict[str, str], there: dict[str, str]) -> list[str]:
    """One text per version that differs, naming both; empty when code pickled here can run there.

    Python must agree in its minor version, since bytecode travels; cloudpickle and swimmy in theirs, since neither promises
    more.
    """

    def shortened(name: str, version: str) -> str:
        return ".".join(version.split(".")[:2]) if name in ("swimmy", "cloudpickle") else version

    found = []
    for name in sorted(here.keys() | there.keys()):
        mine, other = here.get(name, "none"), there.get(name, "none")
        if shortened(name, mine) != shortened(name, other):
            found.append(f"{name} {mine} here, {other} there")
    return found
