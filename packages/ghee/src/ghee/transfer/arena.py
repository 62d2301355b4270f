"""One memfd for batches of any sizes, whose pages are given back so that it holds no more than was in use at once."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

_PAGE = mmap.PAGESIZE
_SEGMENT = 64 << 20
"""Bytes that are mapped at once, at the least; pages that were never written to cost nothing."""


@dataclass(frozen=True)
class Block:
    """`size` bytes (whole pages) at `offset` in the memfd; `segment`: offset and size of what is mapped around it."""

    segment: tuple[int, int]
    offset: int
    size: int
    memory: memoryview


class _Segment:
    """A part of the memfd that is mapped as a whole. For each page: is it in use, is there memory for it."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self.offset, self.size = offset, size
        self.mapping = mmap.mmap(descriptor, size, offset=offset)
        self.used, self.held = bytearray(size // _PAGE), bytearray(size // _PAGE)
        self.free = size // _PAGE

    def spare(self) -> tuple[int, int] | None:
        """The last pages that hold memory and are not in use: the first and the one after the last; None without any."""
        spare = int.from_bytes(self.held, "big") & ~int.from_bytes(self.used, "big")
        if not spare:
            return None
        flags = spare.to_bytes(len(self.held), "big")
        end = flags.rindex(1) + 1
        return flags.rfind(0, 0, end) + 1, end


class Arena:
    """Places of any sizes in one memfd. Not for several threads at once.

    Its budget is the most bytes that were ever in use at once, which the receivers' credit bounds: pages beyond it go back.
    """

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("ghee", os.MFD_CLOEXEC)
        self._segments: list[_Segment] = []
        self._end = 0
        self.used = self.most_used = self.held = 0
        """Pages: in use, in use at most so far, and those that there is memory for."""

    def take(self, size: int) -> Block:
        """A place for `size` bytes. Its pages are its own until `give_back`."""
        pages = max(1, -(-size // _PAGE))
        segment, at = self._find(pages)
        self.held += pages - segment.held.count(1, at, at + pages)
        segment.used[at : at + pages] = segment.held[at : at + pages] = b"\1" * pages
        segment.free -= pages
        self.used += pages
        self.most_used = max(self.most_used, self.used)
        self._keep_to_budget()
        start, length = at * _PAGE, pages * _PAGE
        memory = memoryview(segment.mapping)[start : start + length]
        return Block((segment.offset, segment.size), segment.offset + start, length, memory)

    def _find(self, pages: int) -> tuple[_Segment, int]:
        # The lowest place that is large enough: what was used before is used again, and what is free grows together above.
        wanted = bytes(pages)
        for segment in self._segments:
            if segment.free >= pages and (at := segment.used.find(wanted)) >= 0:
                return segment, at
        size = -(-pages * _PAGE // _SEGMENT) * _SEGMENT
        os.ftruncate(self.descriptor, self._end + size)
        segment = _Segment(self.descriptor, self._end, size)
        self._segments.append(segment)
        self._end += size
        return segment, 0

    def _keep_to_budget(self) -> None:
        for segment in reversed(self._segments):
            while self.held > self.most_used and (spare := segment.spare()) is not None:
                first = max(spare[0], spare[1] - (self.held - self.most_used))
                count = spare[1] - first
                segment.mapping.madvise(mmap.MADV_REMOVE, first * _PAGE, count * _PAGE)
                segment.held[first : spare[1]] = bytes(count)
                self.held -= count

    def give_back(self, block: Block) -> None:
        """Nobody uses the place any more."""
        segment = next(segment for segment in self._segments if segment.offset == block.segment[0])
        at, pages = (block.offset - segment.offset) // _PAGE, block.size // _PAGE
        segment.used[at : at + pages] = bytes(pages)
        segment.free += pages
        self.used -= pages

    def close(self) -> None:
        """Close the memfd; mappings that a batch still refers to stay valid. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self._segments.clear()
