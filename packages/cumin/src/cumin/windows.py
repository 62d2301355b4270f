"""Which partitions of an input a partition of the output reads: its own, and so many before it. Pure."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from cumin.errors import ConfigError
from cumin.inputs.base import Table
from cumin.partitions import looks_like_a_date, plain_kind


class Windows:
    """The partitions `keys` of an input, in the order of `column`. An input without that column is always read whole."""

    def __init__(self, table: Table, keys: Sequence[str], column: str) -> None:
        self.moves = column in table.partition_columns
        self._all = list(keys)
        if not self.moves:
            return
        index = table.partition_columns.index(column)
        self._column, self._kind = column, table.partition_kinds[index]
        values = [(table.typed(key)[index], key) for key in keys]
        self._null = [key for value, key in values if value is None]
        known = sorted((value, key) for value, key in values if value is not None)
        self._values = [value for value, _ in known]
        self._keys = [key for _, key in known]
        self._distinct = sorted(set(self._values))

    def steps(self, name: str, back: int | timedelta) -> int:
        """A look-back of the input `name` in days, whole numbers or places. Raises ConfigError if its unit is not sure."""
        if isinstance(back, timedelta):
            if self.moves and plain_kind(self._kind) != "date":
                raise ConfigError(
                    f"lookback[{name!r}] is in days, and {self._column!r} is of the type {self._kind}. If these are dates, "
                    f'say how they are written: cumin.hive(…, partition={{"{self._column}": "%Y%m%d"}}).'
                )
            return back.days
        if not self.moves or not back:
            return back
        if self._kind == "int" and self._distinct and all(map(looks_like_a_date, self._distinct)):
            raise ConfigError(
                f"The partitions {self._column!r} of {name!r} are whole numbers that look like dates, and {back} less "
                f"than {self._distinct[-1]} may be none. Say how they are written, "
                f'cumin.hive(…, partition={{"{self._column}": "%Y%m%d"}}), and lookback={{"{name}": timedelta(days=…)}}.'
            )
        if "%" in self._kind and not {"%d", "%j"} & set(re.findall("%.", self._kind)):
            raise ConfigError(
                f"lookback[{name!r}]={back} over {self._column!r}, which has no days: give a time, timedelta(days=31)."
            )
        return back

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
