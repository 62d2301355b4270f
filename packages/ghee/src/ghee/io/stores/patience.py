"""Waiting for a store that is away: which errors pass by themselves, and for how long that is believed."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds for which a store that has answered before may be away, unless the user says otherwise."""

FIRST_PATIENCE = 4.0
"""Seconds for a store that has not answered yet: it is more likely a wrong address than a restart."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0

# What the clients say of servers that restart, of connections that break, and of servers that are asked too much.
_PASSING = re.compile(
    r"connection (refused|reset|aborted|closed)|broken pipe|timed? ?out|unreachable|disconnected|end of file|"
    r"temporarily unavailable|max retries exceeded|"
    r"safe ?mode|standbyexception|retriableexception|datatransfererror|datanode connection|all datanodes failed|"
    r"could only be written to 0 of the|blocksnotfound|failed to complete file in time|"
    r"network_connection|slow_down|slowdown|service_unavailable|internal_failure|internal_error|request_timeout|"
    r"request_expired|throttl|curlcode: (6|7|18|28|35|52|55|56)\b|http response code: 50[0234]",
    re.IGNORECASE,
)


def is_passing(error: BaseException) -> bool:
    """Whether an error, or what caused it, is one that waiting mends."""
    while True:
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        if not isinstance(error, FileNotFoundError | PermissionError) and _PASSING.search(str(error)):
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__


def first_line(error: BaseException) -> str:
    """An error in one line: what Java sends carries its whole stack."""
    return str(error).strip().partition("\n")[0][:500]


def pauses(seconds: float) -> Iterator[float]:
    """Pauses between attempts, in seconds: each twice as long, all together at most `seconds`. Pure."""
    pause, left = _FIRST_PAUSE, seconds
    while left > 0:
        yield min(pause, left)
        left -= pause
        pause = min(2 * pause, _LONGEST_PAUSE)


class Patience:
    """One wait for one thing, which may be away several times: every success is a new beginning.

    patience = Patience(120, "hdfs://name:8020/ratings")
    while True:
        try:
            return read()
        except OSError as error:
            patience.wait_or_raise(error)
    """

    def __init__(self, seconds: float, what: str) -> None:
        self._seconds, self._what = seconds, what
        self.succeeded()

    def succeeded(self) -> None:
        """It has answered: from here on all the time is there again."""
        self._pauses = pauses(self._seconds)
        self._since: float | None = None

    def wait_or_raise(self, error: BaseException) -> None:
        """Pause after a failure; raises the error itself where it does not pass, or when the time is over."""
        pause = next(self._pauses, None) if is_passing(error) else None
        if pause is None:
            raise error
        if self._since is None:
            self._since = time.monotonic()
            say(f"{self._what} is away ({first_line(error)}); waiting for up to {self._seconds:.0f} s")
        time.sleep(pause)  # a store that is away tells nobody when it is back

    def back(self) -> None:
        """Say that it is there again, if it was away."""
        if self._since is not None:
            say(f"{self._what} is back after {time.monotonic() - self._since:.0f} s; going on")
        self.succeeded()


def patiently(work: Callable[[], T], seconds: float, what: str) -> T:
    """`work()`, again and again while its store is away, for `seconds` at most. `work` must be safe to repeat."""
    patience = Patience(seconds, what)
    while True:
        try:
            result = work()
        except Exception as error:
            patience.wait_or_raise(error)
            continue
        patience.back()
        return result


def say(text: str) -> None:
    """To whoever watches the run: a rank's standard error is shown with its name."""
    print(f"ghee: {text}", file=sys.stderr, flush=True)
