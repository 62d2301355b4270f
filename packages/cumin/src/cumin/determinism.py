"""What is refused because its result may vary from run to run, with its place in the query and the remedy.

Pure but for `describe`, by which the engine says the type of an expression. Calls are found in our own tokens, so none
escapes because a parser calls it something else; a call whose surroundings cannot be understood is refused.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from sqlglot import exp

from cumin import functions as known
from cumin.analysis import NODE, Node, Query, sources, walk_selects
from cumin.lexer import Token, tokens
from cumin.modes import Catalogue, Determinism, Finding
from cumin.ordering import Keys, total
from cumin.representatives import representatives

# What single-thread makes repeatable: everything that depends on order alone.
_ORDER_RULES = frozenset({"order-sensitive", "float-sum", "limit", "numbering", "distinct-on", "asof-join"})
Describe = Callable[[str], pa.Schema | None]


@dataclass(frozen=True)
class Call:
    """A function call in the tokens: its name (lower case), and where the name and the closing parenthesis are."""

    name: str
    index: int
    close: int
    offset: int


def calls(found: list[Token]) -> list[Call]:
    """Every ``name (`` in the tokens."""
    stack: list[int] = []
    closing: dict[int, int] = {}
    for index, token in enumerate(found):
        if token.kind == "op" and token.text == "(":
            stack.append(index)
        elif token.kind == "op" and token.text == ")" and stack:
            closing[stack.pop()] = index
    return [
        Call(_bare_name(token), index, closing[index + 1], token.start)
        for index, token in enumerate(found)
        if token.kind in ("word", "ident") and index + 1 in closing
    ]


def _bare_name(token: Token) -> str:
    return (token.text[1:-1] if token.kind == "ident" else token.text).lower()


def findings(
    query: Query, *, catalogue: Catalogue, keys: Keys, describe: Describe, udfs: Iterable[str] = ()
) -> list[Finding]:
    """All that may vary in `query`, in the order of their places. `udfs` are the caller's functions, judged elsewhere."""
    found_tokens = tokens(query.text, query.dialect)
    mine = {name.lower() for name in udfs}
    found = by_name(query, catalogue, mine)
    scan = _Scan(query, found_tokens, keys, describe)
    walk_selects(query.tree, scan.select)
    for tree in query.tree.find_all(exp.Query):
        scan.limit(tree)
    scan.unseen(mine)
    found += representatives(query, found_tokens, keys, scan.types)
    return sorted(found + scan.found, key=lambda each: each.offset)


def by_name(query: Query, catalogue: Catalogue, udfs: Iterable[str] = ()) -> list[Finding]:
    """Those of `findings` that need no more than a function's name."""
    return list(_by_name(tokens(query.text, query.dialect), catalogue, {name.lower() for name in udfs}))


def refused(all_findings: Iterable[Finding], how: Determinism) -> list[Finding]:
    """Those that the mode and what the caller vouches for do not let pass."""
    result = []
    for each in all_findings:
        name = each.what.split("(")[0].lower()
        if each.rule in how.allow or name in how.allow:
            continue
        if how.mode == "single-thread" and each.rule in _ORDER_RULES:
            continue
        if each.rule == "float-sum" and (how.mode == "tolerant" or (how.mode == "decimal" and name in known.EXACT_SUMS)):
            continue
        result.append(each)
    return result


_CLOCK_REMEDY = "reads the clock or the session. Declare a parameter and write it, for instance :run_ts."
_HASH_MOD = "For a repeatable split use hash_mod(key, n, seed), which cumin defines in every engine."


def _by_name(found: list[Token], catalogue: Catalogue, mine: set[str]) -> Iterable[Finding]:
    """Functions that are refused wherever they stand."""
    called = {call.index: call for call in calls(found)}
    for index, token in enumerate(found):
        name = _bare_name(token)
        if index not in called:
            after_dot = index > 0 and found[index - 1].text in (".", "AS", "as")
            if token.kind == "word" and name in known.BARE_CLOCK and not after_dot:
                yield Finding("clock", name, token.start, _CLOCK_REMEDY)
            following = found[index + 1].text if index + 1 < len(found) else ""
            typed = token.kind == "word" and name.startswith(("date", "timestamp"))
            if typed and following.strip("'\" ").lower() in known.CLOCK_WORDS and following[:1] in ("'", '"'):
                yield Finding("clock", f"{token.text} {following}", token.start, _CLOCK_REMEDY)
            continue
        what = f"{name}()"
        if name in mine or name == "hash_mod":
            continue
        # With one argument, `age` counts from today; the catalogue does not say it.
        if name in known.CLOCK or name in catalogue.clock or (name == "age" and _arguments(found, called[index]) == 1):
            yield Finding("clock", what, token.start, _CLOCK_REMEDY)
        elif name in known.VOLATILE or name in catalogue.volatile:
            yield Finding("volatile", what, token.start, f"gives another value in every run. {_HASH_MOD}")
        elif (
            name in known.READERS
            or name.startswith(("duckdb_", "pragma_"))
            or (name in catalogue.tables and name not in known.TABLES)
        ):
            yield Finding("undeclared", what, token.start, "reads what is no declared input. Declare it in inputs=.")
        elif name in known.ENGINE_HASH:
            yield Finding("engine-hash", what, token.start, f"changes between versions of the engine. {_HASH_MOD}")
        elif name in known.APPROXIMATE:
            yield Finding("approximate", what, token.start, "is approximate and may vary. Use the exact function.")
        elif name in catalogue.aggregates and not _judged(name):
            yield Finding(
                "unknown-aggregate",
                what,
                token.start,
                f"is an aggregate that cumin does not know to be repeatable. Vouch for it with allow={name!r}.",
            )


def _arguments(found: list[Token], call: Call) -> int:
    """How many arguments a call has."""
    depth, commas = 0, 0
    for token in found[call.index + 2 : call.close]:
        if token.kind == "op":
            depth += (token.text in "([{") - (token.text in ")]}")
            commas += token.text == "," and not depth
    return commas + 1 if call.close > call.index + 2 else 0


def _judged(name: str) -> bool:
    return name in known.SAFE_AGGREGATES | known.FLOAT_SUMS | known.ORDERED | known.NUMBERED


# What sqlglot calls a function whose name it gave up for a class of its own.
_CLASS_NAMES = {"ArrayAgg": "list", "GroupConcat": "string_agg", "ArgMax": "arg_max", "ArgMin": "arg_min",
                "StddevPop": "stddev_pop", "StddevSamp": "stddev_samp", "AnyValue": "any_value"}  # fmt: skip
_SAME = [{"list", "array_agg", "collect_list"}, {"string_agg", "group_concat", "listagg"},
         {"arg_max", "argmax", "max_by"}, {"arg_min", "argmin", "min_by"}, {"avg", "mean"},
         {"stddev", "stddev_samp", "std"}, {"variance", "var_samp"}, {"any_value", "arbitrary", "first"},
         {"first", "first_value"}, {"last", "last_value"}]  # fmt: skip


class _Scan:
    """Goes over the tree; remembers what it found and which calls it has understood."""

    def __init__(self, query: Query, found_tokens: list[Token], keys: Keys, describe: Describe) -> None:
        self.query, self.keys, self.describe = query, keys, describe
        self.found: list[Finding] = []
        self._calls = calls(found_tokens)
        self._tokens = found_tokens
        self._claimed: set[int] = set()

    # -- calls -------------------------------------------------------------------------------------

    def select(self, select: exp.Select) -> None:
        distinct = select.args.get("distinct")
        if distinct is not None and distinct.args.get("on") is not None:
            self._distinct_on(select, distinct.args["on"])
        for join in select.args.get("joins") or []:
            if str(join.args.get("method") or "").upper() in ("ASOF", "POSITIONAL"):
                method = str(join.args["method"]).upper()
                self._add(
                    "asof-join",
                    f"{method} JOIN",
                    self._word(method),
                    "takes any of several equal matches. Number "
                    "them with row_number() over a total order and join on equality.",
                )
        for sample in select.find_all(exp.TableSample):
            if sample.find_ancestor(exp.Select) is select or sample.parent is select:
                self._add("sample", "A sample", self._word("sample"), f"depends on the order of the rows. {_HASH_MOD}")
        for call in select.find_all(exp.Func):
            if call.find_ancestor(exp.Select) is select:
                self._call(call, select)

    def _call(self, node: exp.Func, select: exp.Select) -> None:
        name = self._name(node)
        if name not in known.ORDERED | known.FLOAT_SUMS | known.NUMBERED:
            return
        place = self._claim(name, node)
        if place is None:
            return
        name, offset = place
        window = self._window(node)
        if window is not None and self._windowed(name, offset, window, select):
            return
        if name in known.FLOAT_SUMS:
            self._float_sum(name, offset, node, select)
        elif name in known.ORDERED and window is None:
            self._ordered(name, offset, node, select)

    def _windowed(self, name: str, offset: int, window: exp.Window, select: exp.Select) -> bool:
        """Judge a window function by its order; False where the aggregate in it must be judged as well."""
        spec = window.args.get("spec")
        rows = spec is not None and str(spec.args.get("kind") or "").upper() in ("ROWS", "GROUPS")
        named = self._named_window(window, select)
        order = named.args.get("order") if named is not None else None
        by = [
            *((named.args.get("partition_by") or []) if named is not None else []),
            *(order.expressions if order else []),
        ]
        numbered = name in known.NUMBERED
        if (numbered or rows) and not total(select, by, self.keys, cut_only=False):
            self._add(
                "numbering",
                f"{name}()",
                offset,
                "numbers rows whose order is not total. Add to its ORDER BY columns "
                "that are unique in each PARTITION BY, and declare them: key= of the input.",
            )
        if not numbered and name in known.ORDERED:
            self._add("order-sensitive", f"{name}()", offset, "in a window depends on the order of the rows.")
        return name not in known.FLOAT_SUMS

    def _named_window(self, window: exp.Window, select: exp.Select) -> Node | None:
        alias = window.args.get("alias")
        if alias is None:
            return window
        for each in select.args.get("windows") or []:
            if each.name.lower() == alias.name.lower():
                found: Node = each
                return found
        return None

    def _ordered(self, name: str, offset: int, node: exp.Func, select: exp.Select) -> None:
        if name in known.EXTREMES:
            value, by = node.this, node.args.get("expression")
            parts = by.expressions if isinstance(by, (exp.Tuple, exp.Struct, exp.Anonymous)) else [by]
            if value in [_bare(part) for part in parts]:
                return
            self._add(
                "order-sensitive",
                f"{name}()",
                offset,
                f"takes any of several rows with the same value. Add the result to what is compared: {name}(x, (y, x)).",
            )
            return
        argument = _argument(node)
        within = node.parent if isinstance(node.parent, exp.WithinGroup) else None
        order = argument if isinstance(argument, exp.Order) else None
        if within is not None:
            order = within.args.get("expression")
        inner = argument.this if isinstance(argument, exp.Order) else argument
        if isinstance(inner, exp.Distinct) and len(inner.expressions) == 1:
            inner = inner.expressions[0]
        if order is not None and name != "mode":
            by = [each.this if isinstance(each, exp.Ordered) else each for each in order.expressions]
            # Rows that tie have equal values where the value itself is in the order.
            if inner in by or total_sources(select, by, self.keys):
                return
        remedy = (
            "takes any of several equally frequent values. Group by the value and take the first of ORDER BY count(*) "
            "DESC, value."
            if name == "mode"
            else f"depends on the order of the rows. Write {name}(x ORDER BY …), with the value itself or a key last."
        )
        self._add("order-sensitive", f"{name}()", offset, remedy)

    def _float_sum(self, name: str, offset: int, node: exp.Func, select: exp.Select) -> None:
        argument = _argument(node)
        kinds = self.types(argument, select) if argument is not None else []  # COLUMNS(*) is one call over several
        if name in known.EXACT_SUMS and kinds and all(_exact(kind, name, self.query.dialect) for kind in kinds):
            return
        inexact = [kind for kind in kinds if not _exact(kind, name, self.query.dialect)] or kinds
        which = f"its argument is {inexact[0]}" if inexact else "its argument's type is not known"
        self._add(
            "float-sum",
            f"{name}()",
            offset,
            f"adds up in an order that varies, and rounds ({which}). Cast to "
            "DECIMAL(p, s), or choose the mode decimal, single-thread or tolerant.",
        )

    def types(self, argument: Node, select: exp.Select) -> list[pa.DataType]:
        """The engine's types of an expression inside its SELECT; none where the engine cannot say."""
        if isinstance(argument, exp.Distinct):
            argument = argument.expressions[0]
        if isinstance(argument, exp.Order):
            argument = argument.this
        probe = exp.Select(expressions=[exp.alias_(argument.copy(), "probe")])
        for name in ("from_", "from", "joins", "laterals"):
            if select.args.get(name) is not None:
                value = select.args[name]
                probe.set(name, [each.copy() for each in value] if isinstance(value, list) else value.copy())
        at: Node | None = select
        while at is not None:
            clause = at.args.get("with_") or at.args.get("with")
            if isinstance(clause, exp.With):
                name = "with_" if "with_" in at.args else "with"
                inner = probe.args.get(name)
                merged = clause.copy()
                if inner is not None:
                    merged.set("expressions", merged.expressions + inner.expressions)
                probe.set(name, merged)
            at = at.parent
        try:
            schema = self.describe(probe.sql(dialect=self.query.dialect))
        except ValueError:  # sqlglot cannot write it
            return []
        return [] if schema is None else list(schema.types)

    def _distinct_on(self, select: exp.Select, on: Node) -> None:
        order = select.args.get("order")
        by = [*on.expressions, *(order.expressions if order else [])]
        if order is None or not total(select, by, self.keys, cut_only=True):
            self._add(
                "distinct-on",
                "DISTINCT ON",
                self._word("distinct"),
                "keeps any of several rows. Add an ORDER BY whose columns are unique (a declared key of the input).",
            )

    def limit(self, tree: Node) -> None:
        """LIMIT, OFFSET and FETCH need a total order."""
        cut = [name for name in ("limit", "offset") if tree.args.get(name) is not None]
        if not cut:
            return
        order = tree.args.get("order")
        inner = tree.this if isinstance(tree, exp.Subquery) else tree
        if not total(inner, [] if order is None else order.expressions, self.keys, cut_only=True):
            word = "fetch" if isinstance(tree.args.get("limit"), exp.Fetch) else cut[0]
            what = "has no ORDER BY" if order is None else "has an ORDER BY that is not total"
            self._add(
                "limit",
                word.upper(),
                self._word(word),
                f"{what}: which rows stay may vary. Order by columns that are "
                "unique: the GROUP BY columns, all columns that come out, or a declared key= of the input.",
            )

    def unseen(self, mine: set[str]) -> None:
        """Calls in the tokens that the tree did not show: refused, because nothing is known about them."""
        for call in self._calls:
            watched = call.name in known.ORDERED | known.FLOAT_SUMS | known.NUMBERED
            if watched and call.index not in self._claimed and call.name not in mine:
                self._add(
                    "not-understood",
                    f"{call.name}()",
                    call.offset,
                    "stands where cumin cannot judge it. Write it in "
                    f"the SELECT list of a common table expression, or vouch for it with allow={call.name!r}.",
                )

    # -- places ------------------------------------------------------------------------------------

    def _add(self, rule: str, what: str, offset: int, remedy: str) -> None:
        self.found.append(Finding(rule, what, offset, remedy))

    def _name(self, node: exp.Func) -> str:
        if isinstance(node, (exp.Anonymous, exp.AnonymousAggFunc)):
            return str(node.name).lower()
        kind = type(node).__name__
        return _CLASS_NAMES.get(kind) or str(node.sql_name()).lower()

    def _claim(self, name: str, node: exp.Func) -> tuple[str, int] | None:
        """The call in the tokens that the node stands for, marked as understood."""
        names = {name}.union(*(group for group in _SAME if name in group))
        start = node.meta.get("start")
        fitting = [call for call in self._calls if call.name in names and call.index not in self._claimed]
        if not fitting:
            return None  # sqlglot made one call into two (avg into sum and count, say)
        exact = [call for call in fitting if call.offset == start]
        chosen = (exact or fitting)[0]
        self._claimed.add(chosen.index)
        return chosen.name, chosen.offset

    def _window(self, node: Node) -> exp.Window | None:
        at = node.parent
        inner: Node = node
        while isinstance(at, (exp.IgnoreNulls, exp.RespectNulls, exp.Filter, exp.WithinGroup)):
            inner, at = at, at.parent
        return at if isinstance(at, exp.Window) and at.this is inner else None

    def _word(self, word: str) -> int:
        for token in self._tokens:
            if token.kind == "word" and token.text.lower() == word.lower():
                return token.start
        samples = [token.start for token in self._tokens if token.text.lower() == "tablesample"]
        return samples[0] if word == "sample" and samples else 0


def _bare(part: Any) -> Any:
    """A part of a struct without its name; what is no tree as it is."""
    return part.unalias() if hasattr(part, "unalias") else part


def total_sources(select: exp.Select, by: list[Node], keys: Keys) -> bool:
    """Whether `by` orders the rows that go into the SELECT's aggregates: the groups are of no help there."""
    before = exp.Select(expressions=[exp.Star()])
    for name in ("from_", "from", "joins", "with_", "with"):
        if select.args.get(name) is not None:
            before.args[name] = select.args[name]  # shared on purpose: the parents must stay those of the query
    return bool(sources(before)) and total(before, by, keys, cut_only=False)


def _exact(kind: pa.DataType, name: str, dialect: str) -> bool:
    if pa.types.is_decimal(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return True
    if not pa.types.is_integer(kind):
        return False
    # Spark averages integers as doubles: exact up to 2**53 only.
    return not (dialect == "spark" and name != "sum" and kind.bit_width > 32)


def _argument(node: exp.Func) -> Node | None:
    """The first argument of a call. Calls whose name sqlglot does not know, and some that older releases of it know
    by name only, keep all arguments in a list."""
    if isinstance(node.this, NODE):
        return node.this
    return node.expressions[0] if node.expressions else None
