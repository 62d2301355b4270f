"""Calls into librdkafka that may outlast the time limit they were given, or never come back (librdkafka#5456)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Call(Generic[T]):
    """One call, under way in a thread of its own: a thread that is inside of librdkafka cannot be ended, only left."""

    def __init__(self, step: Callable[[], T]) -> None:
        self._step = step
        self._answer: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ghee kafka call", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer.append(self._step())
        except BaseException as error:
            self._error = error

    def is_done(self, seconds: float) -> bool:
        """Whether it has come back; waits for so long."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def answer(self) -> T:
        """What it returned, once it is done. Raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._answer[0]
