"""When a request that the API server did not answer is made again, and when it is given up. Pure: times are arguments.

An API server is restarted, upgraded, overloaded, or behind a network that is cut for a while; a run does not need it
meanwhile, for its data goes from Pod to Pod. So requests are made again, with pauses that double and have chance in them
(so that many clients do not come back at one moment), and with at least the pause that the server asks for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

BUSY = frozenset({429, 500, 502, 503, 504})
"""Answers of a server that may do the same request a moment later."""

UNMET = 10.0
"""Seconds in which a server is asked again that has never answered: it may be starting, or it is the wrong one."""

AWAY = 300.0
"""Seconds in which a server is asked again that has answered before."""

LONGEST = 5.0
"""Seconds of the longest pause of ours: what was lost while the server was away is found as soon as it is back."""

_LONGEST_ASKED = 60.0


def pause(failures: int, asked: float | None = None) -> float:
    """Seconds to wait after so many failures in a row; ``asked`` is what the server wants (Retry-After)."""
    own = min(LONGEST, 0.1 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)
    return own if asked is None else max(own, min(asked, _LONGEST_ASKED))


@dataclass(frozen=True)
class Patience:
    """How long a thread asks again: ``seconds`` after the first failure, and no longer than ``is_over`` lets it."""

    seconds: float
    is_over: Callable[[], bool] = lambda: False

    def next_pause(self, passed: float, failures: int, asked: float | None = None) -> float | None:
        """Seconds until the next try, when the first failure was ``passed`` seconds ago; None: it is given up."""
        wait = pause(failures, asked)
        return None if passed + wait > self.seconds or self.is_over() else wait
