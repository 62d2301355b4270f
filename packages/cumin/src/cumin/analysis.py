"""What a query reads, told by sqlglot: one SELECT, and its tables.

sqlglot decides nothing that enters an id, but for which partitions are read (`cumin.pruning`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from cumin.errors import QueryError
from cumin.lexer import position, tokens

# sqlglot renamed the base class of its tree between releases; both names are read.
Node: TypeAlias = Any
NODE: type = getattr(exp, "Expr", None) or exp.Expression


@dataclass(frozen=True)
class Query:
    """A parsed query and the tables it names."""

    text: str
    dialect: str
    tree: Node
    tables: dict[str, list[exp.Table]]  # as the query writes them, in lower case; common table expressions left out

    def position(self, offset: int) -> str:
        """Line and column of an offset into the text."""
        return position(self.text, offset)


def parse(text: str, dialect: str) -> Query:
    """`text` as one SELECT. Raises QueryError for anything else, saying what it is."""
    try:
        found = [tree for tree in sqlglot.parse(text, read=dialect) if tree is not None]
    except SqlglotError as error:
        raise QueryError(_parse_message(error)) from error
    except RecursionError as error:
        raise QueryError("The query is nested too deeply to be read.") from error
    if len(found) != 1:
        semicolons = [token.start for token in tokens(text, dialect) if token.text == ";"]
        where = f" (after {position(text, semicolons[0])})" if len(found) > 1 and semicolons else ""
        raise QueryError(f"A dataset is one SELECT; got {len(found)} statements{where}.")
    tree = found[0]
    if isinstance(tree, exp.Command) or not isinstance(tree, exp.Query):
        raise QueryError(f"A dataset is one SELECT; got {_name(tree)}. Nothing was run.")
    for kind in (exp.Into, exp.DML, exp.DDL):
        for inner in tree.find_all(kind):
            if not isinstance(inner, exp.Query):
                raise QueryError(f"A dataset is one SELECT; got {_name(inner)} inside it. Nothing was run.")
    return Query(text, dialect, tree, _tables(tree))


def _name(tree: Node) -> str:
    word = tree.name if isinstance(tree, exp.Command) else tree.key
    return str(word).upper()


def _parse_message(error: SqlglotError) -> str:
    details = getattr(error, "errors", None)
    if not details:
        return f"The query does not parse: {error}"
    first = details[0]
    where = f"line {first.get('line')}, column {first.get('col')}"
    return f"The query does not parse at {where}: {first.get('description')} (near {first.get('highlight')!r})."


def table_name(table: exp.Table) -> str:
    """``catalog.db.table`` as written, in lower case: DuckDB and Spark fold the case of table names."""
    return ".".join(part.name for part in table.parts).lower()


def _tables(tree: Node) -> dict[str, list[exp.Table]]:
    found: dict[str, list[exp.Table]] = {}
    for table in tree.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier):
            continue  # a table function: determinism refuses those that read
        name = table_name(table)
        if not table.db and name in common_tables(table):
            continue
        found.setdefault(name, []).append(table)
    return found


def common_tables(node: Node) -> set[str]:
    """The names that WITH clauses give, seen from `node`. A recursive table sees itself."""
    names: set[str] = set()
    inside: Node | None = None
    at: Node | None = node
    while at is not None:
        clause = at.args.get("with_") or at.args.get("with")
        if isinstance(clause, exp.With):
            for common in clause.expressions:
                if common is inside and not clause.args.get("recursive"):
                    break  # a table sees those before it
                names.add(common.alias.lower())
        if isinstance(at, exp.CTE):
            inside = at
        at = at.parent
    return names


def undeclared(query: Query, declared: Iterable[str]) -> tuple[list[str], list[str]]:
    """Tables that the query reads and nobody declared, and inputs that it does not read."""
    known = {name.lower(): name for name in declared}
    missing = [name for name in query.tables if name not in known]
    return missing, [name for low, name in known.items() if low not in query.tables]


def walk_selects(tree: Node, visit: Callable[[exp.Select], None]) -> None:
    """Call `visit` on every SELECT of the tree."""
    for select in tree.find_all(exp.Select):
        visit(select)


def sources(select: exp.Select) -> list[Node]:
    """What a SELECT reads: its FROM and its joins."""
    start = select.args.get("from_") or select.args.get("from")
    found = [start.this] if start is not None else []
    return found + [join.this for join in select.args.get("joins") or []]
