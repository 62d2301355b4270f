"""Store for processes of one host: bytes in shared memory that has no name, so that nothing can be left behind.

The sender writes a batch once into its arena, a memfd, and sends the batch's place; the receiver maps it. A memfd lives as
long as a process refers to it: after `kill -9` of everything the kernel frees it, and no size of /dev/shm limits it.
A place is used again, with its pages, as soon as nothing at the receiver refers to the batch any more.

A process that a receiver forks (`multiprocessing`, `os.fork`) would see in its batches what is written to their places
later. So what lies open at that moment is copied before a fork, and the child finds the copy where the batch was.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ghee.codec import Buffer, Encoded
from ghee.transfer import forks
from ghee.transfer.arena import Arena, Block
from ghee.transfer.contract import Parcel
from ghee.transfer.frames import FrameStore
from ghee.transfer.memory import Parts, copy, lay_out, split

_SMALL = 1 << 16
"""Bytes below which a batch travels in its message: a place of its own would save little and cost pages.

Chosen, not tuned: no benchmark of ours compares other sizes yet."""


@dataclass
class _Lent:
    """A batch in the arena; `users` are the outbox and the receivers that it was lent to."""

    block: Block
    users: int = 1


@dataclass(frozen=True)
class _Note:
    """Where a batch lies: `size` bytes at `offset` in the memfd `descriptor` of process `pid`, within the mapped
    segment; `parts` are its buffers' places in it."""

    pid: int
    descriptor: int
    segment: tuple[int, int]
    offset: int
    size: int
    parts: Parts
    private: bool


class SharedStore:
    """An arena of one memfd, and the mappings of the arenas of others."""

    def __init__(self) -> None:
        self._small = FrameStore()
        self._pid = os.getpid()
        self._arena = Arena()
        self._taking = threading.Lock()  # the function's thread lays batches down, and so does the transfer thread
        self._batches: dict[int, _Lent] = {}
        self._lent: dict[str, Counter[int]] = defaultdict(Counter)
        self._sources: dict[tuple[int, int], int] = {}
        self._source_of: dict[str, tuple[int, int]] = {}
        self._mapped: dict[tuple[tuple[int, int], tuple[int, int]], mmap.mmap] = {}
        self._freed: deque[tuple[str, int]] = deque()
        self._leases: dict[int, weakref.ref[Any]] = {}
        self._numbers = itertools.count()
        self._closed = False
        forks.protect(self)

    # ── the sender ───────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, encoded: Encoded, receivers: int) -> Parcel:
        """Write the buffers into the arena."""
        parts, size = lay_out(buffer.nbytes for buffer in encoded.buffers)
        if size < _SMALL:
            return self._small.put(encoded, receivers)
        with self._taking:
            block = self._arena.take(size)
            self._batches[block.offset] = _Lent(block)
        for target, source in zip(split(block.memory, parts), encoded.buffers, strict=True):
            copy(memoryview(target), source)
        note = _Note(self._pid, self._arena.descriptor, block.segment, block.offset, block.size, parts, receivers > 1)
        return Parcel(None, encoded.header, encoded.rows, encoded.size, place=note)

    def pack(self, parcel: Parcel, to: str) -> tuple[object, Sequence[Buffer]]:
        """The batch's place; small ones travel whole."""
        if not isinstance(parcel.place, _Note):
            return self._small.pack(parcel, to)
        self._batches[parcel.place.offset].users += 1
        self._lent[to][parcel.place.offset] += 1
        return parcel.place, ()

    def drop(self, parcel: Parcel) -> None:
        """The outbox needs it no more."""
        if isinstance(parcel.place, _Note):
            self._release(parcel.place.offset)

    def give_back(self, receiver: str, places: Iterable[object]) -> None:
        """A receiver has freed these places."""
        lent = self._lent[receiver]
        for offset in places:
            assert isinstance(offset, int)
            if lent[offset]:
                lent[offset] -= 1
                self._release(offset)

    def peer_gone(self, address: str) -> None:
        """What was lent to it is free; what it has lent stays, and its other memory is let go of."""
        for offset, times in self._lent.pop(address, Counter()).items():
            for _ in range(times):
                self._release(offset)
        source = self._source_of.pop(address, None)
        if source is not None and (descriptor := self._sources.pop(source, None)) is not None:
            os.close(descriptor)
            for key in [key for key in self._mapped if key[0] == source]:
                del self._mapped[key]

    def _release(self, offset: int) -> None:
        batch = self._batches[offset]
        batch.users -= 1
        if batch.users == 0:
            with self._taking:
                del self._batches[offset]
                self._arena.give_back(batch.block)

    # ── the receiver ─────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, sender: str, note: object, frames: Sequence[Buffer]) -> list[Buffer]:
        """Map the batch. Where several ranks get the same batch the mapping is copy-on-write."""
        if not isinstance(note, _Note):
            return self._small.open(sender, note, frames)
        memory, at = self._map(sender, note)
        lease = (ctypes.c_char * note.size).from_buffer(memory, at)
        number = next(self._numbers)

        def free(_: object, sender: str = sender, offset: int = note.offset) -> None:
            del self._leases[number]
            self._freed.append((sender, offset))

        self._leases[number] = weakref.ref(lease, free)
        return split(memoryview(lease).cast("B"), note.parts)

    def _map(self, sender: str, note: _Note) -> tuple[mmap.mmap, int]:
        """The mapping in which the batch lies, and where."""
        source = (note.pid, note.descriptor)
        if source not in self._sources:
            self._sources[source] = _open(*source)
            self._source_of[sender] = source
        descriptor = self._sources[source]
        if note.private:
            return mmap.mmap(descriptor, note.size, mmap.MAP_PRIVATE, offset=note.offset), 0
        key = (source, note.segment)
        start, size = note.segment
        if key not in self._mapped:
            self._mapped[key] = mmap.mmap(descriptor, size, offset=start)
        return self._mapped[key], note.offset - start

    def leases(self) -> list[Any]:
        """The mapped memory of the batches that lie open in this process."""
        return [lease for reference in list(self._leases.values()) if (lease := reference()) is not None]

    def freed(self) -> Iterable[tuple[str, list[object]]]:
        """The places that nothing here refers to any more, by sender."""
        by_sender: dict[str, list[object]] = defaultdict(list)
        while self._freed:
            sender, offset = self._freed.popleft()
            by_sender[sender].append(offset)
        return by_sender.items()

    def close(self) -> None:
        """Close the memfds; mappings that a batch still refers to stay valid."""
        if not self._closed:
            self._closed = True
            self._arena.close()
            for descriptor in self._sources.values():
                os.close(descriptor)
            self._sources.clear()
            self._batches.clear()
            self._mapped.clear()


def _open(process: int, descriptor: int) -> int:
    """A descriptor of another process, opened here. Raises OSError if the process has died, ValueError if it has not."""
    try:
        return os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if _lives(process):
            raise ValueError(
                f"a batch should lie in descriptor {descriptor} of process {process}, which lives and has it not: {error}"
            ) from error
        raise


_EXITING = 0x4  # PF_EXITING of Linux: set before a process that dies closes its files


def _lives(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            state, *fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return state not in (b"Z", b"X") and not int(fields[5]) & _EXITING  # flags are field 9 of proc(5), state is field 3
