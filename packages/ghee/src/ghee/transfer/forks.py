"""What a child that is forked sees of the batches that lie open in shared memory: a copy as of the fork, which is its own.

The mappings are shared, so without this a child would see in its batches whatever their places are used for next. Copying
before the fork, and in the child only moving the copy to where the batch was, needs nobody to wait for anybody.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from typing import Any, Protocol

_MAYMOVE, _FIXED = 1, 2  # mremap(2)
_PROT_NONE = 0  # mprotect(2)
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class _Leasing(Protocol):
    def leases(self) -> list[Any]: ...


_stores: weakref.WeakSet[Any] = weakref.WeakSet()
_pending = threading.local()
"""The copies for the fork that this thread is about to make."""


def protect(store: _Leasing) -> None:
    """From now on a forked child has copies of what this store has mapped."""
    _stores.add(store)


def _before() -> None:
    leases = [lease for store in list(_stores) for lease in store.leases()]
    _pending.copies = [(lease, _copy(lease)) for lease in leases]


def _copy(lease: Any) -> int | None:
    """Where the copy is; None if there is no memory for it."""
    size = ctypes.sizeof(lease)
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address: int | None = _libc.mmap(None, size, protection, flags, -1, 0)
    if address == _FAILED or address is None:
        return None
    ctypes.memmove(address, ctypes.addressof(lease), size)
    return address


def _in_child() -> None:
    for lease, address in _take_pending():
        size, target = ctypes.sizeof(lease), ctypes.addressof(lease)
        if address is None or _libc.mremap(address, size, size, _MAYMOVE | _FIXED, target) == _FAILED:
            _libc.mprotect(target, size, _PROT_NONE)  # to crash beats to be wrong


def _in_parent() -> None:
    for lease, address in _take_pending():
        if address is not None:
            _libc.munmap(address, ctypes.sizeof(lease))


def _take_pending() -> list[tuple[Any, int | None]]:
    copies: list[tuple[Any, int | None]] = getattr(_pending, "copies", [])
    _pending.copies = []
    return copies


os.register_at_fork(before=_before, after_in_child=_in_child, after_in_parent=_in_parent)
