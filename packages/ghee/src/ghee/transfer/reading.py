"""What comes from processes that hold the run's key: read, and checked for what a process of the run would never send.

A peer that has proved to hold the key is trusted not to be hostile, and not trusted to be free of bugs: what cannot be
right fails the run with a TransferError that says what was got from whom.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TypeVar

from ghee.codec import Buffer
from ghee.errors import TransferError
from ghee.protocol.messages import RankId

Kind = TypeVar("Kind")


def read(frames: Sequence[Buffer], *kinds: type[Kind]) -> Kind:
    """The object in the first frame of a message, of one of these kinds. Raises TransferError."""
    allowed = " or ".join(kind.__name__ for kind in kinds)
    try:
        message = pickle.loads(frames[0])
    except Exception as error:  # unpickling garbage raises whatever it likes
        raise TransferError(
            f"a message of {len(frames)} frames, the first of {len(frames[0])} bytes, is no {allowed}: {error!r}"
        ) from error
    if not isinstance(message, kinds):
        raise TransferError(f"a message is a {type(message).__name__}; only {allowed} may be sent here")
    return message


class Numbers:
    """The numbers of the messages of each rank: each comes once and in order, for the carrier keeps both."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """`sizes`: the number of ranks that each stage may have."""
        self._sizes = sizes
        self._next: dict[RankId, int] = {}

    def check(self, rank: RankId, number: int) -> None:
        """Raise TransferError if it is not the next of the rank's, or there is no such rank."""
        if not (0 <= rank.stage < len(self._sizes) and 0 <= rank.index < self._sizes[rank.stage]):
            raise TransferError(f"a report has come from {rank}, which is no rank of this run")
        expected = self._next.get(rank, 0)
        if number != expected:
            what = "for the second time" if number < expected else f"where {expected} was to come"
            raise TransferError(f"{rank} has sent its report number {number} {what}: each comes once, in order")
        self._next[rank] = expected + 1
