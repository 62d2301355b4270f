"""Source order: which batch comes next, when batches come to be in any order on many ranks."""

from __future__ import annotations

from collections.abc import Mapping

from ghee.protocol.messages import BatchId
from ghee.protocol.position import Position


class Sequence:
    """Names the batches of one epoch in source order, as far as they are known.

    `counts[prefix]` says how many children a name has: an epoch its splits, a split its batches, a batch the outputs of
    the function it went through. A name is passed over as soon as its parent is known to have no such child.
    """

    def __init__(self, epoch: int, splits: int, depth: int, taken: Position | None = None) -> None:
        """`depth` is the number of functions that the batches have passed through; `taken` is passed over."""
        self._counts: dict[BatchId, int] = {(epoch,): splits}
        self._taken = taken or Position()
        self._passed: set[BatchId] = set()
        self._next: list[int] = [epoch, 0, 0] + [0] * depth

    def counted(self, prefix: BatchId, children: int) -> None:
        """The number of children of a name has become known."""
        gone = prefix[1] in self._taken.splits if len(prefix) == 2 else self._taken.has_root(prefix)
        if len(prefix) < len(self._next) and not gone:
            self._counts[prefix] = children

    def next(self, ready: Mapping[BatchId, object]) -> BatchId | None:
        """The name that comes next, if it is ready. The caller takes it and calls `taken`."""
        while True:
            name = tuple(self._next)
            if name in ready:
                return name
            if name in self._taken.batches or name in self._passed:
                self._passed.discard(name)
                self.taken()
                continue
            if not self._pass_over():
                return None

    def passed(self, name: BatchId) -> None:
        """A name is not to be waited for, though nobody has counted it as taken before."""
        self._passed.add(name)

    def taken(self) -> None:
        """The name that `next` returned was taken."""
        self._next[-1] += 1

    def _pass_over(self) -> bool:
        for level in range(len(self._next) - 1, 1, -1):
            prefix = tuple(self._next[:level])
            children = 0 if self._was_taken(prefix) else self._counts.get(prefix)
            if children is not None and self._next[level] >= children:
                self._counts.pop(prefix, None)
                self._next[level - 1] += 1
                self._next[level:] = [0] * (len(self._next) - level)
                return True
        return False

    def _was_taken(self, prefix: BatchId) -> bool:
        """Whether a split, or a root of a split that is not taken as a whole, is to be passed over."""
        if len(prefix) == 2:
            return prefix[1] in self._taken.splits
        return len(prefix) == 3 and prefix[2] in self._taken.roots.get(prefix[1], ())
