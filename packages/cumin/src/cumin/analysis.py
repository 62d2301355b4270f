"""What a query reads, told by sqlglot: one SELECT, its tables, and the partitions its WHERE leaves.

sqlglot decides nothing that enters an id here, but for which partitions are read; and there every doubt means "all".
"""

from collections.abc import Callable, Iterable, Mapping
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

# What may stand in a predicate that is worked out on partition values: columns, constants, and plain arithmetic.
_FOLDABLE = (
    exp.Column, exp.Identifier, exp.Literal, exp.Boolean, exp.Null, exp.Cast, exp.DataType, exp.DataTypeParam,
    exp.Interval, exp.Var, exp.Paren, exp.Tuple, exp.Add, exp.Sub, exp.Neg, exp.And, exp.Or, exp.Not, exp.EQ, exp.NEQ,
    exp.GT, exp.GTE, exp.LT, exp.LTE, exp.In, exp.Between, exp.Is, exp.DateAdd, exp.DateSub, exp.TsOrDsAdd,
)  # fmt: skip


@dataclass(frozen=True)
class Query:
    """A parsed query and the tables it names."""

    text: str
    dialect: str
    tree: Node
    tables: dict[str, list[exp.Table]]  # as the query writes them, in lower case; common table expressions left out

    def position(self, offset: int) -> str:
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
        if not table.db and name in _common_tables(table):
            continue
        found.setdefault(name, []).append(table)
    return found


def _common_tables(node: Node) -> set[str]:
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


def partition_filters(query: Query, table: str, columns: Iterable[str]) -> list[list[str]]:
    """For each place where the query reads `table`: the conditions, in DuckDB's SQL, that its partitions must meet.

    Only conditions joined by AND in the WHERE of the SELECT that reads the table, on nothing but its partition
    columns and constants. An empty list for a place means that every partition is read there.
    """
    names = {column.lower() for column in columns}
    return [_place_filters(query, each, names) for each in query.tables.get(table.lower(), [])]


def _place_filters(query: Query, table: exp.Table, names: set[str]) -> list[str]:
    select = table.find_ancestor(exp.Select)
    holder = table.parent
    if isinstance(holder, (exp.Join, exp.From)):
        holder = holder.parent
    if select is None or holder is not select or table.args.get("pivots"):
        return []
    where = select.args.get("where")
    if where is None:
        return []
    alone = not select.args.get("joins") and not select.args.get("laterals")
    alias = (table.alias or table.name).lower()
    filters = []
    for condition in where.this.flatten() if isinstance(where.this, exp.And) else [where.this]:
        if _only_partitions(condition, names, alias, alone=alone):
            bare = condition.copy()
            for column in list(bare.find_all(exp.Column)):
                column.replace(exp.column(exp.to_identifier(column.name.lower(), quoted=True)))
            filters.append(bare.sql(dialect="duckdb"))
    return filters


def _only_partitions(condition: Node, names: set[str], alias: str, *, alone: bool) -> bool:
    columns = list(condition.find_all(exp.Column))
    if not columns or not all(isinstance(node, _FOLDABLE) for node in condition.walk()):
        return False
    return all(
        column.name.lower() in names and (column.table.lower() == alias if column.table else alone) for column in columns
    )


def walk_selects(tree: Node, visit: Callable[[exp.Select], None]) -> None:
    """Call `visit` on every SELECT of the tree."""
    for select in tree.find_all(exp.Select):
        visit(select)


def sources(select: exp.Select) -> list[Node]:
    """What a SELECT reads: its FROM and its joins."""
    start = select.args.get("from_") or select.args.get("from")
    found = [start.this] if start is not None else []
    return found + [join.this for join in select.args.get("joins") or []]


def token_offset(query: Query, names: Mapping[str, int], name: str) -> int:
    """The offset of the next use of `name` as a word in the query; `names` remembers how many were found before."""
    skip = names.get(name, 0)
    for token in tokens(query.text, query.dialect):
        if token.kind == "word" and token.text.lower() == name.lower():
            if skip == 0:
                return token.start
            skip -= 1
    return 0
