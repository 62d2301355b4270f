"""What a dataset is made of, as data; and the forms of it that enter ids and manifests. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from cumin.engines.base import Engine
from cumin.errors import ConfigError
from cumin.inputs.base import Input
from cumin.layout import Layout
from cumin.modes import Determinism
from cumin.udfs import Udf

# The rules by which a recipe becomes rows: what a query means, how inputs are read, how partitions are chosen and
# checked. It enters every build id, so that what was stored under other rules is never a hit. Bump it, here and nowhere
# else, with every change after which the same recipe could give other rows or another order of rows, be they right
# this time, and with every change of the form itself; say below what changed. tests/cumin/test_recipe_version.py
# fails where the form has changed and this has not.
#
# 1  as first released; ids did not hold a version of the rules
# 2  ORDER BY counts; rows outside the planned partitions, types that drift and `[ ] * ?` in names are refused or right;
#    functions by all that they reach; a common table expression with its input's name on Spark
# 3  avg(DISTINCT x) over decimals counts the rounded values; what of several equal rows the engine picks is refused
RECIPE_VERSION = 3

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_DAYS = re.compile(r"\s*(\d+)\s*days?\s*")


@dataclass(frozen=True)
class Recipe:
    """A query, its parameters, its inputs, and how its rows are to lie.

    `lookback` makes a build incremental: it declares that a partition of the output depends on the same partition of
    each input (and of so many days, or whole numbers, or places in order before it; a timedelta is days, for dates only),
    and on nothing else of them. `partitions` limits the output to these values (a pair is a range, both ends in).
    """

    name: str
    sql: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Input]
    engine: Engine
    partition_by: tuple[str, ...] = ()
    order_key: tuple[str, ...] = ()
    determinism: Determinism = field(default_factory=Determinism)
    udfs: Mapping[str, Udf] = field(default_factory=dict)
    salt: str | None = None
    layout: Layout = field(default_factory=Layout)
    lookback: Mapping[str, int | timedelta] | None = None
    partitions: tuple[Any, ...] | None = None
    source_file: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if not _NAME.fullmatch(self.name):
            problems.append(
                f"The name {self.name!r}: allowed are letters, digits, '_', '-' and '.', a letter or digit first."
            )
        folded: dict[str, str] = {}
        for name in self.inputs:
            other = folded.setdefault(name.lower(), name)
            if other != name:
                problems.append(
                    f"The inputs {other!r} and {name!r} differ only in case, which SQL does not see; rename one."
                )
        problems += self._lookback_problems()
        if problems:
            raise ConfigError(problems)

    def _lookback_problems(self) -> list[str]:
        if self.lookback is None:
            return (
                [] if self.partitions is None else ["partitions= needs lookback=: only an incremental build can be limited."]
            )
        problems = []
        if len(self.partition_by) != 1:
            problems.append("An incremental build (lookback=) needs partition_by= with exactly one column.")
        for name, days in self.lookback.items():
            if name not in self.inputs:
                problems.append(f"lookback names {name!r}, which is no input. Inputs: {', '.join(self.inputs)}.")
            if isinstance(days, timedelta) and days >= timedelta(0) and not days % timedelta(days=1):
                continue
            if not isinstance(days, int) or isinstance(days, bool) or days < 0:
                problems.append(
                    f"lookback[{name!r}] is {days!r}; allowed: a whole number of partitions or a timedelta of whole days "
                    "(in a file: 6 days), 0 or more."
                )
        return problems


def lookback_to_json(lookback: Mapping[str, int | timedelta]) -> dict[str, int | str]:
    """As a manifest keeps it: a time as ``6 days``."""
    return {name: f"{each.days} days" if isinstance(each, timedelta) else each for name, each in lookback.items()}


def lookback_from(value: Any) -> Any:
    """The inverse, for values of a file: ``6 days`` becomes a timedelta. What is neither is left for `Recipe` to refuse."""
    found = _DAYS.fullmatch(value) if isinstance(value, str) else None
    return timedelta(days=int(found[1])) if found else value


def names(value: str | Sequence[str]) -> tuple[str, ...]:
    """One column name, or several."""
    return (value,) if isinstance(value, str) else tuple(value)


_KINDS = {"bool": bool, "int": int, "float": float, "decimal": Decimal, "str": str, "datetime": datetime, "date": date}


def param_to_json(value: Any) -> Any:
    """A parameter as a manifest keeps it: its type beside it."""
    if isinstance(value, (list, tuple)):
        return {"type": "list", "value": [param_to_json(item) for item in value]}
    for name, kind in _KINDS.items():
        if type(value) is kind or (name in ("datetime", "date") and isinstance(value, kind)):
            text = value.isoformat() if isinstance(value, date) else value
            return {"type": name, "value": str(text) if name in ("decimal", "float") else text}
    raise ConfigError(f"A {type(value).__qualname__} is no parameter.")


def param_from_json(data: Mapping[str, Any]) -> Any:
    """The inverse of `param_to_json`."""
    kind, value = data["type"], data["value"]
    if kind == "list":
        return [param_from_json(item) for item in value]
    if kind in ("datetime", "date"):
        return _KINDS[kind].fromisoformat(value)  # type: ignore[attr-defined]
    return _KINDS[kind](value)


def parse_param(text: str, like: Any, name: str) -> Any:
    """A parameter from the command line, in the type of the value that it replaces. Raises ConfigError."""
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(like, (int, float, Decimal, str)):
            return type(like)(text)
        if isinstance(like, (datetime, date)):
            return type(like).fromisoformat(text)
        if isinstance(like, list) and like:
            return [parse_param(item.strip(), like[0], name) for item in text.split(",")]
    except (ValueError, KeyError, ArithmeticError) as error:
        raise ConfigError(
            f"-p {name}={text}: write a value of the type {type(like).__name__}, as in the dataset file."
        ) from error
    raise ConfigError(f"-p {name}={text}: no type to read it by; give it a value in the dataset file.")
