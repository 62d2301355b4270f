"""The source of a Python iterable: its items are the batches, as they are, read in the driver's process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ghee.errors import PipelineError, SourceError
from ghee.io.contract import Split


class IterableSource:
    """A list, a generator, or a function without arguments that returns an iterable (called once per epoch).

    A None among the items is a SourceError: no batch, and no rows that could be counted as dropped.
    """

    hosted = True

    def __init__(self, items: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        self._items = items
        self._taken = False

    def splits(self) -> list[Split]:
        return [Split(0, (), None)]

    def order(self, splits: Sequence[Split], epoch: int) -> list[Split]:
        del epoch
        return sorted(splits, key=lambda split: split.index)

    def read(self, split: Split, *, epoch: int) -> Iterator[Any]:
        del split
        if callable(self._items) and not isinstance(self._items, Iterable):
            items = self._items()
            if not isinstance(items, Iterable):
                raise PipelineError(
                    f"{_name(self._items)} returned {type(items).__name__}; "
                    "a source's function returns an iterable of batches."
                )
            return self._batches(items)
        assert isinstance(self._items, Iterable)
        if self._once() and self._taken:
            raise PipelineError(f"The iterator was read already, so there is nothing for epoch {epoch}. {_ADVICE}")
        self._taken = True
        return self._batches(self._items)

    def _batches(self, items: Iterable[Any]) -> Iterator[Any]:
        for number, item in enumerate(items):
            if item is None:  # what it stands for has no rows that could be counted as dropped
                raise SourceError(
                    f"{_name(self._items)} gave None as item {number}, and the items of a source are batches. Leave it out, "
                    "as in [batch for batch in batches if batch is not None]."
                )
            yield item

    def check_epochs(self, epochs: int) -> None:
        if epochs > 1 and self._once():
            raise PipelineError(f"{_name(self._items)} can be read once, and epochs={epochs}. {_ADVICE}")

    @property
    def read_once(self) -> bool:
        """Whether it can be read a single time only."""
        return self._once()

    def _once(self) -> bool:
        return isinstance(self._items, Iterator)


_ADVICE = "Give a list, or a function that returns a fresh iterator: read(lambda: make_batches())."


def _name(items: object) -> str:
    name = getattr(items, "__qualname__", None) or getattr(items, "__name__", None)
    return f"{type(items).__name__} {name}" if name else f"The {type(items).__name__}"
