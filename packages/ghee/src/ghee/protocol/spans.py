"""Sets of whole numbers that fill up nearly in order: kept as spans, so memory counts the gaps and not the numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Set


class Spans(Set[int]):
    """Numbers, each with the rows that it stands for; of a span only the sum of its rows is known."""

    __slots__ = ("_count", "_firsts", "_lasts", "_rows")

    def __init__(self, numbers: Iterable[int] | Mapping[int, int] = ()) -> None:
        """A mapping gives the rows of each number; without, they are 0."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._rows: list[int] = []
        self._count = 0
        if isinstance(numbers, Spans):
            self._firsts, self._lasts, self._rows = numbers._firsts[:], numbers._lasts[:], numbers._rows[:]
            self._count = numbers._count
            return
        rows = numbers if isinstance(numbers, Mapping) else {}
        for number in numbers:
            self.add(number, rows.get(number, 0))

    def add(self, number: int, rows: int = 0) -> None:
        """Add a number; one that is there stays as it is."""
        at = bisect_right(self._firsts, number)
        if at and number <= self._lasts[at - 1]:
            return
        self._count += 1
        before = at > 0 and self._lasts[at - 1] == number - 1
        after = at < len(self._firsts) and self._firsts[at] == number + 1
        if before and after:
            self._lasts[at - 1] = self._lasts.pop(at)
            self._rows[at - 1] += rows + self._rows.pop(at)
            del self._firsts[at]
        elif before:
            self._lasts[at - 1] = number
            self._rows[at - 1] += rows
        elif after:
            self._firsts[at] = number
            self._rows[at] += rows
        else:
            self._firsts.insert(at, number)
            self._lasts.insert(at, number)
            self._rows.insert(at, rows)

    @property
    def rows(self) -> int:
        """Of all numbers together."""
        return sum(self._rows)

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """The first number, the last, and the rows of each span."""
        return list(zip(self._firsts, self._lasts, self._rows, strict=True))

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int, int]]) -> Spans:
        """The inverse of `spans`."""
        made = cls()
        for first, last, rows in sorted(spans):
            made._firsts.append(first)
            made._lasts.append(last)
            made._rows.append(rows)
            made._count += last - first + 1
        return made

    def common(self, other: Spans) -> Spans:
        """What is in both, but for spans that overlap with neither in the other: the rows of a part are not known."""
        found = {span[:2]: span for span in self.spans if other._holds(span)}
        return Spans.of((found | {span[:2]: span for span in other.spans if self._holds(span)}).values())

    def _holds(self, span: tuple[int, int, int]) -> bool:
        at = bisect_right(self._firsts, span[0])
        return at > 0 and span[1] <= self._lasts[at - 1]

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        at = bisect_right(self._firsts, number)
        return at > 0 and number <= self._lasts[at - 1]

    def __iter__(self) -> Iterator[int]:
        for first, last in zip(self._firsts, self._lasts, strict=True):
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Spans):
            return self.spans == other.spans
        return Set.__eq__(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Spans.of({self.spans})"
