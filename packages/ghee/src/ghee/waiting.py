"""What a run waits for: said after some seconds, then ever more seldom, so that no run stands still without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ghee.protocol.messages import RankId

START_SECONDS = 15.0
"""After so long a rank that was started and has not joined the run is named: Python and the first imports take less."""

CHECKPOINT_SECONDS = 5.0
"""After so long it is said that ranks wait in a checkpoint for others."""

_NAMED = 5


class Wait:
    """One thing that may be waited for. It is said `first` seconds after it has begun, and again each time twice as late."""

    def __init__(self, first: float) -> None:
        self._first = self._next = first
        self._since: float | None = None

    def since(self, waits: bool, now: float) -> float | None:
        """When the wait began that lasts; None if nothing waits."""
        self._since = None if not waits else now if self._since is None else self._since
        return self._since

    def seconds(self, now: float) -> float:
        """How long it has lasted."""
        return 0.0 if self._since is None else now - self._since

    def is_due(self, since: float | None, now: float) -> bool:
        """Whether it is to be said now."""
        if since is None:
            self._next = self._first
            return False
        if now - since < self._next:
            return False
        self._next *= 2
        return True


def missing_said(missing: Mapping[RankId, tuple[str, float]], ranks: int, now: float, folder: Path) -> str:
    """Of ranks that have not joined: by rank the name of its stage, and when it was started."""
    named = [f"rank {rank.index} of {name!r}" for rank, (name, _) in sorted(missing.items())[:_NAMED]]
    if len(missing) > _NAMED:
        named.append(f"{len(missing) - _NAMED} more")
    waited = now - min(since for _, since in missing.values())
    return (
        f"waiting for {', '.join(named)}: {len(missing)} of {ranks} ranks have not joined the run after {waited:.0f} s. "
        "Where they hang at their start, an import does not return (a network file system that is gone, a package that "
        f"waits for a server): py-spy dump --pid shows which, and {folder / 'logs'} what they have printed"
    )


def checkpoint_said(stage: str, waiting: Sequence[RankId], others: Sequence[RankId], seconds: float) -> str:
    """Of ranks of a loop that wait in a checkpoint, and of those that have not come to it."""
    here, there = (", ".join(str(rank.index) for rank in ranks) for ranks in (waiting, others))
    return (
        f"rank {here} of {stage!r} has waited in ghee.checkpoint (or batches.state) for {seconds:.0f} s, for rank {there} "
        "to call it too. It is for all ranks of a loop, after the same batch: where you have "
        "`if ghee.rank() == 0: ghee.checkpoint(value)`, write ghee.checkpoint(value), for every rank keeps a value of its "
        "own. With a collective beside it (a barrier, the gradients of DDP) both sides wait for ever"
    )
