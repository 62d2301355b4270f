"""The journal of a run: what a later run needs to go on, one record a line, each with its checksum.

    3f8a21c0 {"kind": "run", "version": 2, ...}
    99b0d1e7 {"kind": "checkpoint", "stage": "train", "number": 1, "position": {...}, ...}

A record counts when its line is whole: what was cut off in mid-write is as if it had not been said. The driver holds a
lock on the file while it lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghee.errors import CheckpointError

VERSION = 2
"""Of the records' meaning. A journal of another version is refused."""


def parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The whole records at the beginning of `data`, and how many bytes they take."""
    records, length = [], 0
    for line in data.splitlines(keepends=True):
        checksum, _, text = line.partition(b" ")
        if not line.endswith(b"\n") or checksum != _checksum(text[:-1]):
            break
        records.append(json.loads(text))
        length += len(line)
    return records, length


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return _checksum(text) + b" " + text + b"\n"


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


class Journal:
    """An open journal, locked; `records` is what stands in it. One thread."""

    def __init__(self, path: Path) -> None:
        """Opens or creates it; what is not whole at its end is cut off. Raises CheckpointError if its run is running."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise CheckpointError(f"run {path.parent.name} is running; it can be resumed once it has ended") from None
        self.records, length = parse(path.read_bytes())
        os.ftruncate(self._file, length)
        os.lseek(self._file, 0, os.SEEK_END)

    def append(self, **record: Any) -> None:
        """Add a record; it is on disk when this returns."""
        os.write(self._file, _line(record))
        os.fsync(self._file)
        self.records.append(json.loads(json.dumps(record)))

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind, in their order."""
        return [record for record in self.records if record["kind"] == kind]

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._file)
