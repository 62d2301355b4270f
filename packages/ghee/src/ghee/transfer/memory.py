"""Where the buffers of a batch lie beside each other: each at an address that is a multiple of 64 bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy

from ghee.codec import Buffer

ALIGNMENT = 64
"""Bytes: what Arrow recommends, a cache line, and the widest register of today's processors."""

Parts = tuple[tuple[int, int], ...]
"""Where each buffer begins in the whole, and its bytes."""


def lay_out(sizes: Iterable[int]) -> tuple[Parts, int]:
    """The places of buffers of so many bytes one after the other, and the bytes of the whole."""
    parts, end = [], 0
    for size in sizes:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        parts.append((start, size))
        end = start + size
    return tuple(parts), end


def split(whole: memoryview, parts: Parts) -> list[Buffer]:
    """The buffers that were laid out in `whole`. Raises ValueError if they are not in it."""
    if any(start < 0 or size < 0 or start + size > whole.nbytes for start, size in parts):
        raise ValueError(f"buffers at {parts} where {whole.nbytes} bytes have come")
    return [whole[start : start + size] for start, size in parts]


def allocate(size: int) -> memoryview:
    """New memory of so many bytes, which hold anything."""
    memory: Any = numpy.empty(size + ALIGNMENT, numpy.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memoryview(memory[start : start + size])


def is_aligned(buffer: Buffer) -> bool:
    """Whether the buffer begins where one may."""
    return address_of(buffer) % ALIGNMENT == 0


def address_of(buffer: Buffer) -> int:
    """Where a buffer begins."""
    return int(numpy.frombuffer(buffer, numpy.uint8).ctypes.data)


def copy(target: memoryview, source: Buffer) -> None:
    """Copy bytes of the same number."""
    # numpy lets go of the interpreter lock while it copies, so that the transfer thread is not held up.
    numpy.copyto(numpy.frombuffer(target, numpy.uint8), numpy.frombuffer(source, numpy.uint8))


def aligned_copy(buffers: Sequence[Buffer]) -> list[Buffer]:
    """Copies of buffers, in memory of their own."""
    parts, size = lay_out(memoryview(buffer).nbytes for buffer in buffers)
    copies = split(allocate(size), parts)
    for target, source in zip(copies, buffers, strict=True):
        copy(memoryview(target), source)
    return copies
