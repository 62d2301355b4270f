"""What the engine picks for itself where rows are equal and yet can be told apart, and rows without an order of their own.

Pure but for the engine's types. ``'a'`` and ``'A'`` are one group under COLLATE NOCASE, 0.0 and -0.0 are one under GROUP BY;
which of them stands for the group varies.
"""

from collections.abc import Callable

import pyarrow as pa
from sqlglot import exp

from cumin.analysis import Node, Query
from cumin.lexer import Token
from cumin.modes import Finding
from cumin.ordering import Keys, group_expressions, text

Types = Callable[[Node, exp.Select], list[pa.DataType]]

_COLLATE = ("takes texts that differ for equal, and which of them comes out varies. Group, compare and sort by lower(x) or "
            "another function of the text.")  # fmt: skip
_ARRAY = "depends on the order of the rows. Write list(x ORDER BY …), with the value itself or a key last."
_SUMMARIZE = "is approximate and may vary. Write the aggregates that are meant."
_USING_KEY = (
    "keeps any of several rows with one key. Write the recursion without it, and take a row by a total order after it."
)
_ZERO = (
    "by floating point puts 0.0 and -0.0 into one, and which of them goes on varies. Cast to DECIMAL(p, s), or let it come "
    "out of the whole query as it is."
)


def representatives(query: Query, found_tokens: list[Token], keys: Keys, types: Types) -> list[Finding]:
    """The findings, each at the word that it is about."""
    return [*_by_word(query, found_tokens), *_zeros(query, found_tokens, keys, types)]


def _by_word(query: Query, found_tokens: list[Token]) -> list[Finding]:
    tree, found = query.tree, []
    harmless = sum(_compares(each) for each in tree.find_all(exp.Collate))
    collations = _places(found_tokens, "collate")
    if len(collations) > harmless:
        found.append(Finding("collation", "COLLATE", collations[0], _COLLATE))
    arrays = [each for each in tree.find_all(exp.Array) if each.expressions and isinstance(each.expressions[0], exp.Query)]
    found += [Finding("order-sensitive", "ARRAY(SELECT …)", _first(found_tokens, "array"), _ARRAY) for _ in arrays[:1]]
    if tree.find(exp.Summarize) is not None:
        found.append(Finding("approximate", "SUMMARIZE", _first(found_tokens, "summarize"), _SUMMARIZE))
    if any(each.args.get("key_expressions") for each in tree.find_all(exp.CTE)):
        found.append(Finding("using-key", "USING KEY", _first(found_tokens, "using"), _USING_KEY))
    return found


def _compares(node: Node) -> bool:
    """Whether a collation only compares, or sorts: of that, no text comes out."""
    return isinstance(node.parent, (exp.Ordered, exp.Binary)) and isinstance(node.parent, (exp.Ordered, exp.Predicate))


def _zeros(query: Query, found_tokens: list[Token], keys: Keys, types: Types) -> list[Finding]:
    """Floating point in GROUP BY, DISTINCT and UNION where the sign of a zero can be seen: in an expression over it, or in a
    query that reads the result. At the end it cannot: a content id knows one zero."""
    for select in query.tree.find_all(exp.Select):
        last = _is_last(select)
        group = select.args.get("group")
        if group is not None:
            grouped = group_expressions(select, keys)
            for node in grouped if grouped is not None else _perhaps_grouped(select):
                if _float(types(node, select)) and not (last and grouped is not None and _comes_out_bare(select, node)):
                    return [Finding("signed-zero", "GROUP BY", _first(found_tokens, "group"), _ZERO)]
        if select.args.get("distinct") is not None and not last and _float(_outputs(select, types)):
            return [Finding("signed-zero", "DISTINCT", _first(found_tokens, "distinct"), _ZERO)]
    for each in query.tree.find_all(exp.SetOperation):
        if each.args.get("distinct") and not _is_last(each) and any(_float(_outputs(s, types)) for s in _branches(each)):
            word = type(each).__name__
            return [Finding("signed-zero", word.upper(), _first(found_tokens, word.lower()), _ZERO)]
    return []


def _perhaps_grouped(select: exp.Select) -> list[Node]:
    """All that a GROUP BY with an alias that hides a column, or with GROUPING SETS, may group by."""
    named = {each.name.lower() for each in select.args["group"].find_all(exp.Column)}
    return [
        *select.args["group"].find_all(exp.Column),
        *(each.unalias() for each in select.selects if each.alias_or_name.lower() in named),
    ]


def _is_last(node: Node) -> bool:
    """Whether what comes out of a query is what comes out of the whole."""
    at = node.parent
    while at is not None:
        if not isinstance(at, exp.SetOperation) and not (isinstance(at, exp.Subquery) and at.parent is None):
            return False
        if isinstance(at, exp.SetOperation) and at.args.get("distinct"):
            return False
        at = at.parent
    return True


def _branches(node: Node) -> list[exp.Select]:
    return [each for each in (node.left, node.right) if isinstance(each, exp.Select)]


def _outputs(select: exp.Select, types: Types) -> list[pa.DataType]:
    return [kind for each in select.selects for kind in types(each.unalias(), select)]


def _comes_out_bare(select: exp.Select, node: Node) -> bool:
    """Whether a grouped expression stands in no other one of its SELECT, but in calls of aggregates."""
    spelling, names = text(node), {text(node)}
    names |= {each.alias.lower() for each in select.selects if each.alias and text(each.unalias()) == spelling}
    where = [*select.selects, *(select.args[name] for name in ("having", "qualify") if select.args.get(name) is not None)]
    for clause in where:
        for each in clause.find_all(type(node), exp.Column):
            whole = each is clause or (isinstance(clause, exp.Alias) and each is clause.this)
            if text(each) in names and not whole and each.find_ancestor(exp.AggFunc, exp.Query) is select:
                return False
    return True


def _float(kinds: list[pa.DataType]) -> bool:
    return any(_has_float(kind) for kind in kinds)


def _has_float(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or any(_has_float(kind.field(n).type) for n in range(kind.num_fields))


def _places(found_tokens: list[Token], word: str) -> list[int]:
    return [token.start for token in found_tokens if token.kind == "word" and token.text.lower() == word]


def _first(found_tokens: list[Token], word: str) -> int:
    return next(iter(_places(found_tokens, word)), 0)
