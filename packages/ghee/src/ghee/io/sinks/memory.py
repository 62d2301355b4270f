"""Sinks in the driver's process: batches as they are, to a list or a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ghee.io.contract import PartFile


class CallbackSink:
    """Calls a function with every batch, in the driver. What it raises ends the run. A failed run cannot be undone."""

    hosted = True

    def __init__(self, call: Callable[[Any], object]) -> None:
        self._call = call

    def prepare(self) -> None:
        """Nothing to prepare."""

    def writer(self, rank: int) -> _MemoryWriter:
        del rank
        return _MemoryWriter(self._call)

    def publish(self, parts: Sequence[PartFile]) -> None:
        """The function has had every batch already."""

    def abort(self) -> None:
        """What the function was given stays given."""


class ListSink(CallbackSink):
    """Appends every batch to the user's list; a run that fails leaves in it what had arrived."""

    def __init__(self, target: list[Any]) -> None:
        super().__init__(target.append)


class _MemoryWriter:
    def __init__(self, call: Callable[[Any], object]) -> None:
        self._call: Callable[[Any], object] | None = call

    def write(self, batch: object) -> None:
        if self._call is None:
            raise RuntimeError("the writer is closed")
        self._call(batch)

    def close(self) -> list[PartFile]:
        self._call = None
        return []

    def abort(self) -> None:
        self._call = None
