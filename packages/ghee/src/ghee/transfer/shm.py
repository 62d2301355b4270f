"""Store for processes of one host: bytes in shared memory that has no name, so that nothing can be left behind.

The sender writes a batch once into a slot of a memfd and sends the slot's place; the receiver maps it. A memfd lives as
long as a process refers to it: after `kill -9` of everything the kernel frees it, and no size of /dev/shm limits it.
Slots are used again, with their pages in place, as soon as nothing at the receiver refers to the batch any more.
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

import numpy

from ghee.codec import Buffer, Encoded
from ghee.transfer.contract import Parcel
from ghee.transfer.frames import FrameStore

_SMALL = 1 << 16
"""Bytes below which a batch travels in its message: a slot of its own would save little and cost a descriptor of memory.

Chosen, not tuned: no benchmark of ours compares other sizes yet."""
_ALIGN = 64
_PAGE = mmap.PAGESIZE


@dataclass
class _Slot:
    """`users` are the outbox and the receivers that it was lent to; `has_pages`: it has been written to."""

    offset: int
    memory: mmap.mmap
    users: int = 0
    has_pages: bool = False


@dataclass(frozen=True)
class _Note:
    """Where a batch lies: slot of the memfd `descriptor` of process `pid`; `ends` are its buffers' places in it."""

    pid: int
    descriptor: int
    offset: int
    capacity: int
    parts: tuple[tuple[int, int], ...]
    private: bool


class SharedStore:
    """Slots of one memfd, and the mappings of the slots of others."""

    def __init__(self) -> None:
        self._small = FrameStore()
        self._pid = os.getpid()
        self._memory = os.memfd_create("ghee", os.MFD_CLOEXEC)
        self._end = 0
        self._taking = threading.Lock()  # the function's thread lays batches down, and so does the transfer thread
        self._free: dict[int, list[_Slot]] = defaultdict(list)
        self._slots: dict[int, _Slot] = {}
        self._lent: dict[str, Counter[int]] = defaultdict(Counter)
        self._sources: dict[tuple[int, int], int] = {}
        self._mapped: dict[tuple[int, int, int], mmap.mmap] = {}
        self._freed: deque[tuple[str, int]] = deque()
        self._leases: dict[int, weakref.ref[Any]] = {}
        self._numbers = itertools.count()

    # ── the sender ───────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, encoded: Encoded, receivers: int) -> Parcel:
        """Write the buffers into a slot."""
        if sum(buffer.nbytes for buffer in encoded.buffers) < _SMALL:
            return self._small.put(encoded, receivers)
        parts, size = [], 0
        for buffer in encoded.buffers:
            size = -(-size // _ALIGN) * _ALIGN
            parts.append((size, buffer.nbytes))
            size += buffer.nbytes
        slot = self._take(size)
        slot.users, slot.has_pages = 1, True
        for (start, length), buffer in zip(parts, encoded.buffers, strict=True):
            _copy(slot.memory, start, buffer, length)
        note = _Note(self._pid, self._memory, slot.offset, len(slot.memory), tuple(parts), receivers > 1)
        return Parcel(None, encoded.header, encoded.rows, encoded.size, place=note)

    def _take(self, size: int) -> _Slot:
        capacity = max(_SMALL, 1 << (size - 1).bit_length())  # untouched pages cost nothing
        with self._taking:
            free = self._free[capacity]
            if free:
                return free.pop()
            self._give_pages_back(capacity)
            offset, self._end = self._end, self._end + capacity
            os.ftruncate(self._memory, self._end)
            slot = _Slot(offset, mmap.mmap(self._memory, capacity, offset=offset))
            self._slots[offset] = slot
            return slot

    def _give_pages_back(self, size: int) -> None:
        """Free slots of other sizes keep their pages for the next of their size; a new size takes as many from them."""
        for slots in list(self._free.values()):
            for slot in list(slots):
                if size <= 0:
                    return
                if slot.has_pages:
                    slot.memory.madvise(mmap.MADV_REMOVE)
                    slot.has_pages = False
                    size -= len(slot.memory)

    def pack(self, parcel: Parcel, to: str) -> tuple[object, Sequence[Buffer]]:
        """The slot's place; small batches travel whole."""
        if not isinstance(parcel.place, _Note):
            return self._small.pack(parcel, to)
        self._slots[parcel.place.offset].users += 1
        self._lent[to][parcel.place.offset] += 1
        return parcel.place, ()

    def drop(self, parcel: Parcel) -> None:
        """The outbox needs it no more."""
        if isinstance(parcel.place, _Note):
            self._release(parcel.place.offset)

    def give_back(self, receiver: str, places: Iterable[object]) -> None:
        """A receiver has freed these slots."""
        lent = self._lent[receiver]
        for offset in places:
            assert isinstance(offset, int)
            if lent[offset]:
                lent[offset] -= 1
                self._release(offset)

    def peer_gone(self, address: str) -> None:
        """What was lent to it is free."""
        for offset, times in self._lent.pop(address, Counter()).items():
            for _ in range(times):
                self._release(offset)

    def _release(self, offset: int) -> None:
        slot = self._slots[offset]
        slot.users -= 1
        if slot.users == 0:
            self._free[len(slot.memory)].append(slot)

    # ── the receiver ─────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, sender: str, note: object, frames: Sequence[Buffer]) -> list[Buffer]:
        """Map the slot. Where several ranks get the same batch the mapping is copy-on-write."""
        if not isinstance(note, _Note):
            return self._small.open(sender, note, frames)
        lease = (ctypes.c_char * note.capacity).from_buffer(self._map(note))
        number = next(self._numbers)

        def free(_: object, sender: str = sender, offset: int = note.offset) -> None:
            del self._leases[number]
            self._freed.append((sender, offset))

        self._leases[number] = weakref.ref(lease, free)
        whole = memoryview(lease).cast("B")
        return [whole[start : start + length] for start, length in note.parts]

    def _map(self, note: _Note) -> mmap.mmap:
        source = (note.pid, note.descriptor)
        if source not in self._sources:
            self._sources[source] = _open(*source)
        descriptor = self._sources[source]
        if note.private:
            return mmap.mmap(descriptor, note.capacity, mmap.MAP_PRIVATE, offset=note.offset)
        key = (*source, note.offset)
        if key not in self._mapped:
            self._mapped[key] = mmap.mmap(descriptor, note.capacity, offset=note.offset)
        return self._mapped[key]

    def freed(self) -> Iterable[tuple[str, list[object]]]:
        """The slots that nothing here refers to any more, by sender."""
        by_sender: dict[str, list[object]] = defaultdict(list)
        while self._freed:
            sender, offset = self._freed.popleft()
            by_sender[sender].append(offset)
        return by_sender.items()

    def close(self) -> None:
        """Close the memfds; mappings that a batch still refers to stay valid."""
        if self._memory >= 0:
            os.close(self._memory)
            for descriptor in self._sources.values():
                os.close(descriptor)
            self._memory = -1
            self._slots.clear()
            self._free.clear()
            self._mapped.clear()


def _copy(target: mmap.mmap, start: int, source: memoryview, length: int) -> None:
    # numpy lets go of the interpreter lock while it copies, so that the transfer thread is not held up.
    numpy.copyto(numpy.frombuffer(target, numpy.uint8, length, start), numpy.frombuffer(source, numpy.uint8))


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
