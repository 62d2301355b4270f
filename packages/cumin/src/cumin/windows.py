"""Which partitions of an input a partition of the output reads: its own, and so many before it. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from cumin.inputs.base import Table


class Windows:
    """The partitions `keys` of an input, in the order of `column`. An input without that column is always read whole."""

    def __init__(self, table: Table, keys: Sequence[str], column: str) -> None:
        self.moves = column in table.partition_columns
        self._all = list(keys)
        if not self.moves:
            return
        index = table.partition_columns.index(column)
        values = [(table.typed(key)[index], key) for key in keys]
        self._null = [key for value, key in values if value is None]
        known = sorted((value, key) for value, key in values if value is not None)
        self._values = [value for value, _ in known]
        self._keys = [key for _, key in known]
        self._distinct = sorted(set(self._values))

    def before(self, value: Any, back: int) -> list[str]:
        """The partitions of `value` and of `back` days, whole numbers or (of text) values before it."""
        if not self.moves:
            return self._all
        if value is None:
            return self._null
        start = bisect_left(self._values, self._low(value, back))
        return sorted(self._keys[start : bisect_right(self._values, value)])

    def _low(self, value: Any, back: int) -> Any:
        if isinstance(value, date):
            return value - timedelta(days=back)
        if isinstance(value, int) and not isinstance(value, bool):
            return value - back
        here = bisect_right(self._distinct, value)
        return self._distinct[max(0, here - 1 - back)] if here else value
