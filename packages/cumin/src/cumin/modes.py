"""How strict a build is, what an engine says of its functions, and what was found in a query: data, without a parser.

Modes: `strict` refuses all that `cumin.determinism` finds. `decimal` runs float sums and averages over decimals
(rewritten by `cumin.decimals`). `single-thread` runs on one thread, where order does not vary, and lets order-sensitive
results pass. `tolerant` lets float sums pass and rounds floats before the content id is taken, which then says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from cumin.errors import ConfigError
from cumin.lexer import position

MODES = ("strict", "decimal", "single-thread", "tolerant")


@dataclass(frozen=True)
class Determinism:
    """How strict a build is. `digits`: significant digits in `tolerant`; `scale`: decimal places in `decimal`;
    `allow`: function names and rules that the caller vouches for. All of it enters the build id."""

    mode: str = "strict"
    digits: int = 9
    scale: int = 6
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.mode not in MODES:
            problems.append(f"The determinism mode {self.mode!r} is not known. Allowed: {', '.join(MODES)}.")
        if not 1 <= self.digits <= 15:
            problems.append(f"digits={self.digits}: a double has 15 sure significant digits; allowed: 1 to 15.")
        if not 0 <= self.scale <= 18:
            problems.append(f"scale={self.scale}: allowed: 0 to 18 decimal places.")
        if problems:
            raise ConfigError(problems)

    def form(self) -> dict[str, object]:
        """What enters the build id."""
        form: dict[str, object] = {"mode": self.mode, "allow": sorted(self.allow)}
        if self.mode == "tolerant":
            form["digits"] = self.digits
        if self.mode == "decimal":
            form["scale"] = self.scale
        return form


@dataclass(frozen=True)
class Finding:
    """One thing that may vary: the rule, what it is, its offset in the query, and what to do."""

    rule: str
    what: str
    offset: int
    remedy: str

    def sentence(self, text: str) -> str:
        """The finding for people: its place in the query's text, what varies, the remedy."""
        return f"{position(text, self.offset)}: {self.what} {self.remedy}"

    def to_json(self) -> list[Any]:
        """As a plan's cache keeps it: the arguments, in order."""
        return [self.rule, self.what, self.offset, self.remedy]


@dataclass(frozen=True)
class Catalogue:
    """What the engine knows, in lower case: its volatile functions, its aggregates, its functions that are constant in one
    query only, and its functions that stand for a table."""

    volatile: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()
    clock: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()

    def without(self, names: Iterable[str]) -> "Catalogue":
        """The catalogue without these aggregates: functions of the caller's hide them."""
        return replace(self, aggregates=self.aggregates - set(names))
