"""What CSV and JSON lines share: ranges of bytes that begin and end between two records, and streams over them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pyarrow as pa

from ghee.io.plan import FileRef, Piece, Unit

BLOCK = 1 << 20
# pyarrow parses block by block, and a record must fit into one.
PARSE_BLOCK = 8 << 20
_COMPRESSED = (".gz", ".bz2", ".zst")


def compressed(path: str) -> bool:
    return path.lower().endswith(_COMPRESSED)


@contextmanager
def open_plain(filesystem: Any, path: str) -> Iterator[Any]:
    """A stream of the file's bytes, decompressed by its suffix."""
    with filesystem.open_input_stream(path, compression="detect" if compressed(path) else None) as stream:
        yield stream


def head(filesystem: Any, path: str, size: int) -> tuple[bytes, bool]:
    """The first bytes, decompressed, and whether that is all of it."""
    with open_plain(filesystem, path) as stream:
        data = stream.read(size)
        return data, not stream.read(1)


def units(file: FileRef, start: int, cuts: list[int], stop: int) -> tuple[Unit, ...]:
    edges = [start, *cuts, stop]
    return tuple(Unit(a, b, None, b - a) for a, b in pairwise(edges) if b > a)


def cut_points(
    stream: Any, start: int, stop: int, every: int, next_record: Callable[[Any, int, int], int | None]
) -> list[int]:
    """Positions about `every` bytes apart at which a record begins; `next_record(stream, at, stop)` finds the next."""
    points: list[int] = []
    at = start + every
    while at < stop:
        found = next_record(stream, at, stop)
        if found is None or found >= stop:
            break
        points.append(found)
        at = found + every
    return points


class Range(io.RawIOBase):
    """Bytes `start` to `stop` of a stream, as a file to read; pyarrow's parsers read files to their end."""

    def __init__(self, stream: Any, start: int, stop: int) -> None:
        self._stream = stream
        self._left = stop - start
        stream.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        data: bytes = self._stream.read(wanted)
        self._left -= len(data)
        return data


@contextmanager
def open_piece(filesystem: Any, piece: Piece) -> Iterator[Any]:
    """What pyarrow's parsers read: the piece's bytes, or the whole of a compressed file."""
    path = piece.file.path
    if compressed(path):
        with open_plain(filesystem, path) as stream:
            yield stream
        return
    with (
        filesystem.open_input_file(path) as stream,
        pa.PythonFile(Range(stream, piece.start, piece.stop), mode="r") as file,
    ):
        yield file
