"""What is over of one epoch: splits, and of the others batches of the source. Ranges: memory counts what is under way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ghee.protocol.spans import Spans


class Taken:
    """Grows root by root; a split takes the place of its roots when it was read to its end and all of them are there."""

    def __init__(self, splits: Iterable[int] = (), roots: Mapping[int, Spans] | None = None) -> None:
        """`roots`: by the place of a split, the batches of it with their rows."""
        self.splits = Spans(splits)
        self.roots = {split: Spans(of) for split, of in (roots or {}).items()}
        self._batches: dict[int, int] = {}

    def add(self, split: int, seq: int, rows: int) -> None:
        """A root of so many rows is over."""
        if split not in self.splits:
            if split not in self.roots:
                self.roots[split] = Spans()
            self.roots[split].add(seq, rows)
            self._close(split)

    def read(self, split: int, batches: int) -> None:
        """A split was read to its end, and has so many batches."""
        if split not in self.splits:
            self._batches[split] = batches
            self._close(split)

    def _close(self, split: int) -> None:
        if len(self.roots.get(split, ())) == self._batches.get(split):
            self.splits.add(split)
            self.roots.pop(split, None)
            del self._batches[split]

    def has(self, split: int, seq: int) -> bool:
        """Whether a root is over."""
        return split in self.splits or seq in self.roots.get(split, ())
