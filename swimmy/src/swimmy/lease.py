"""A lease: a permission to go on that its holder must renew. Pure: the time is an argument."""

from __future__ import annotations


class Lease:
    """Runs out ``seconds`` after the last renewal; ``None`` never does (a detached run)."""

    def __init__(self, seconds: float | None, now: float) -> None:
        self.seconds = seconds
        self._renewed = now

    def renew(self, now: float) -> None:
        self._renewed = max(self._renewed, now)

    def extend(self, seconds: float, now: float) -> None:
        """It runs out in so many seconds, if it would sooner."""
        if self.seconds is not None:
            self._renewed = max(self._renewed, now + seconds - self.seconds)

    def left(self, now: float) -> float:
        """Seconds until it runs out; infinite where it never does."""
        if self.seconds is None:
            return float("inf")
        return self._renewed + self.seconds - now

    def lost(self, now: float) -> bool:
        return self.left(now) <= 0
