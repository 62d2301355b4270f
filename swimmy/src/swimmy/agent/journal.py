"""The numbered record of what happened: a reader who was cut off goes on after the last number it saw, and misses
nothing.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import islice
from typing import Any

Entry = dict[str, Any]


class Journal:
    """Entries with rising numbers. Log lines beyond ``log_bytes`` are dropped, the oldest first, and a read says how
    many were.
    """

    def __init__(self, log_bytes: int = 16 * 1024 * 1024) -> None:
        self._entries: list[tuple[int, int, Entry]] = []
        self._log_bytes = log_bytes
        self._logged = 0
        self._next = 1

    @property
    def last(self) -> int:
        """The number of the newest entry."""
        return self._next - 1

    def append(self, entry: Entry) -> int:
        number, size = self._next, len(json.dumps(entry))
        self._next += 1
        self._entries.append((number, size, entry))
        if entry["kind"] == "log":
            self._logged += size
            if self._logged > self._log_bytes:
                self._shrink()
        return number

    def _shrink(self) -> None:
        kept: list[tuple[int, int, Entry]] = []
        # Down to three quarters, so that the walk over all entries is rare.
        excess = self._logged - self._log_bytes * 3 // 4
        for number, size, entry in self._entries:
            if entry["kind"] == "log" and excess > 0:
                excess -= size
                self._logged -= size
            else:
                kept.append((number, size, entry))
        self._entries = kept

    def read(self, after: int, limit: int = 1024 * 1024) -> list[Entry]:
        """Entries after that number, each with its number as ``seq``, of about ``limit`` bytes in all."""
        found: list[Entry] = []
        taken = 0
        start = bisect_right(self._entries, after, key=lambda each: each[0])
        for number, size, entry in islice(self._entries, start, None):
            found.append({**entry, "seq": number})
            taken += size
            if taken >= limit:
                break
        return found
