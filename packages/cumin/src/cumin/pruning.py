"""Which partitions of a table a query can read, told from its conditions. Pure, over sqlglot's trees.

A condition counts if it stands in the WHERE of the SELECT that reads the table, in the ON of a join that drops the
rows that fail it, or further out: then every SELECT between must let the partition column through as it is, and let
no row of one partition change a row of another. Every doubt means that all partitions are read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from cumin.analysis import Node, Query, common_tables, sources, table_name
from cumin.ordering import Keys, group_expressions

# What may stand in a predicate that is worked out on partition values: columns, constants, and plain arithmetic.
_FOLDABLE = (
    exp.Column, exp.Identifier, exp.Literal, exp.Boolean, exp.Null, exp.Cast, exp.DataType, exp.DataTypeParam,
    exp.Interval, exp.Var, exp.Paren, exp.Tuple, exp.Add, exp.Sub, exp.Neg, exp.And, exp.Or, exp.Not, exp.EQ, exp.NEQ,
    exp.GT, exp.GTE, exp.LT, exp.LTE, exp.In, exp.Between, exp.Is, exp.DateAdd, exp.DateSub, exp.TsOrDsAdd,
)  # fmt: skip
# The clauses of a SELECT through which a condition further out may be pulled: none of them looks across rows.
_TRANSPARENT = {"kind", "expressions", "from", "from_", "joins", "where", "group", "having", "order", "distinct", "with",
                "with_", "hint"}  # fmt: skip
_PLAIN_TABLE = {"this", "db", "catalog", "alias"}
_MOST_PATHS = 64  # a table that is read in more ways is read whole

Columns = Mapping[str, str]  # the names under which partition columns are seen, in lower case, and the columns
Schemas = Mapping[str, frozenset[str]]  # per declared table (lower case): its columns (lower case)


def partition_filters(query: Query, table: str, schemas: Schemas, columns: tuple[str, ...]) -> list[list[str]]:
    """For each way in which the query reads `table`: the conditions, in DuckDB's SQL, that its partitions must meet.

    The conditions are on nothing but partition columns and constants, and must all hold. An empty list for a way means
    that every partition is read there.
    """
    seen = {column.lower(): column.lower() for column in columns}
    found = []
    for place in query.tables.get(table.lower(), []):
        ways = list(_ways(_Reading(query, schemas), place, seen))
        found += ways if len(ways) <= _MOST_PATHS else [[]]
    return found


@dataclass(frozen=True)
class _Reading:
    query: Query
    schemas: Schemas


def _ways(reading: _Reading, source: Node, columns: Columns, depth: int = 0) -> Iterator[list[str]]:
    """The conditions on `source`, which stands in a FROM or a JOIN, along each path to the outside."""
    select = _select_of(source)
    if select is None or depth > _MOST_PATHS:
        yield []
        return
    here = [
        _folded(condition, columns)
        for condition in _conditions(select, source)
        if _on_partitions(reading, condition, select, source, columns)
    ]
    for further in _outside(reading, select, source, columns, depth):
        yield here + further


def _select_of(source: Node) -> exp.Select | None:
    """The SELECT that reads `source`; None where its rows are sampled, pivoted, or matched by their place."""
    holder = source.parent
    select = holder.parent if isinstance(holder, (exp.Join, exp.From)) else None
    plain = _PLAIN_TABLE if isinstance(source, exp.Table) else {"this", "alias"}
    alias = source.args.get("alias")
    if (
        not isinstance(select, exp.Select)
        or any(value for name, value in source.args.items() if name not in plain)
        or (alias is not None and alias.columns)
        or any(select.args.get(name) for name in ("sample", "pivots", "match"))
        or any((join.args.get("method") or "NATURAL") != "NATURAL" for join in _joins(select))
    ):
        return None
    return select


def _joins(select: exp.Select) -> list[exp.Join]:
    return list(select.args.get("joins") or [])


def _conditions(select: exp.Select, source: Node) -> Iterator[Node]:
    """The conditions of WHERE and ON that a row of `source` must meet to have any part in the result."""
    where = select.args.get("where")
    clauses = [where.this] if where is not None else []
    for join in _joins(select):
        side = (join.args.get("side") or "").upper()
        drops = side in ("", "LEFT") if join is source.parent else side in ("", "RIGHT")
        # An ANTI join keeps the rows on its left that meet no other.
        if drops and join is not source.parent and (join.args.get("kind") or "").upper() == "ANTI":
            drops = False
        if drops and join.args.get("on") is not None:
            clauses.append(join.args["on"])
    for clause in clauses:
        yield from clause.flatten() if isinstance(clause, exp.And) else [clause]


def _on_partitions(reading: _Reading, condition: Node, select: exp.Select, source: Node, columns: Columns) -> bool:
    found = list(condition.find_all(exp.Column))
    if not found or not all(isinstance(node, _FOLDABLE) for node in condition.walk()):
        return False
    alias = source.alias_or_name.lower()
    return all(
        column.name.lower() in columns
        and (column.table.lower() == alias if column.table else _only_in(reading, select, source, column.name.lower()))
        for column in found
    )


def _only_in(reading: _Reading, select: exp.Select, source: Node, name: str) -> bool:
    """Whether a column written without a table can be that of `source` only."""
    if select.args.get("laterals"):
        return False
    for other in sources(select):
        if other is source:
            continue
        names = _output_names(reading, other)
        if names is None or name in names:
            return False
    return True


def _output_names(reading: _Reading, source: Node) -> frozenset[str] | None:
    """The columns of another source; None where they are not known."""
    if isinstance(source, exp.Table):
        if not isinstance(source.this, exp.Identifier) or (not source.db and table_name(source) in common_tables(source)):
            return None
        return reading.schemas.get(table_name(source))
    inner = source.this if isinstance(source, exp.Subquery) else None
    if not isinstance(inner, exp.Select) or any(each.is_star for each in inner.selects):
        return None
    return frozenset(each.alias_or_name.lower() for each in inner.selects)


def _folded(condition: Node, columns: Columns) -> str:
    bare = condition.copy()
    root = exp.Paren(this=bare)
    for column in list(root.find_all(exp.Column)):
        column.replace(exp.column(exp.to_identifier(columns[column.name.lower()], quoted=True)))
    return str(root.sql(dialect="duckdb"))


# -- from a SELECT to what reads it ---------------------------------------------------------------


def _outside(reading: _Reading, select: exp.Select, source: Node, columns: Columns, depth: int) -> Iterator[list[str]]:
    """The conditions on the partition columns of `source` further out than `select`, along each path."""
    passed = _passed(reading, select, source, columns)
    holder = select.parent
    if passed and isinstance(holder, exp.Subquery):
        yield from _ways(reading, holder, passed, depth + 1)
    elif passed and isinstance(holder, exp.CTE) and not holder.args["alias"].columns:
        readers = _readers(reading, holder)
        for reader in readers or []:
            yield from _ways(reading, reader, passed, depth + 1)
        if not readers:
            yield []
    else:
        yield []


def _passed(reading: _Reading, select: exp.Select, source: Node, columns: Columns) -> Columns:
    """The names under which the partition columns of `source` come out of `select`; none where a row of one partition
    may change a row of another."""
    distinct = select.args.get("distinct")
    if (
        any(value for name, value in select.args.items() if name not in _TRANSPARENT)
        or (distinct is not None and distinct.args.get("on"))
        or any(each.find(exp.Window) for each in select.selects)
    ):
        return {}
    names_read = frozenset().union(*reading.schemas.values())
    grouped = group_expressions(select, Keys({}, columns=names_read)) if select.args.get("group") is not None else []
    if grouped is None:
        return {}
    names = [each.alias_or_name.lower() for each in select.selects]
    passed = {}
    for output in select.selects:
        if output.is_star:
            if select.args.get("group") is not None or output.args.get("except_") or not isinstance(output, exp.Star):
                return {}
            if len(sources(select)) != 1 or any(output.args.values()):
                return {}
            passed.update({name: column for name, column in columns.items() if name not in names})
            continue
        inner = output.unalias()
        if not isinstance(inner, exp.Column) or not _on_partitions(reading, inner, select, source, columns):
            continue
        if select.args.get("group") is not None and inner not in grouped:
            continue
        if names.count(output.alias_or_name.lower()) == 1:
            passed[output.alias_or_name.lower()] = columns[inner.name.lower()]
    return passed


def _readers(reading: _Reading, common: exp.CTE) -> list[exp.Table] | None:
    """Where a common table expression is read; None where that is not sure."""
    name = common.alias.lower()
    tree = reading.query.tree
    clause = common.find_ancestor(exp.With)
    if (
        clause is None
        or clause.args.get("recursive")
        or sum(each.alias.lower() == name for each in tree.find_all(exp.CTE)) > 1
    ):
        return None
    named = [each for each in tree.find_all(exp.Table) if not each.db and table_name(each) == name]
    return named if all(name in common_tables(each) for each in named) else None


# -- engines with another arithmetic --------------------------------------------------------------

_LOGIC = (exp.And, exp.Or, exp.Not, exp.Paren)
_COMPARED = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.In, exp.Between)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def same_everywhere(condition: str, kinds: Mapping[str, str]) -> bool:
    """Whether a condition, in DuckDB's SQL, means the same in every engine: columns against constants of their own type,
    without casts, functions or arithmetic. `kinds`: ``int``, ``str`` or ``date`` by column, in lower case."""
    try:
        tree: Node = sqlglot.parse_one(condition, read="duckdb")
    except SqlglotError:
        return False
    return _same(tree, kinds)


def _same(node: Node, kinds: Mapping[str, str]) -> bool:
    if isinstance(node, _LOGIC):
        return all(_same(each, kinds) for each in node.iter_expressions())
    if isinstance(node, exp.Is):
        return isinstance(node.this, exp.Column) and isinstance(node.expression, exp.Null)
    if not isinstance(node, _COMPARED):
        return False
    sides = list(node.iter_expressions())
    columns = [each for each in sides if isinstance(each, exp.Column)]
    constants = [each for each in sides if not isinstance(each, exp.Column)]
    kind = kinds.get(columns[0].name.lower()) if len(columns) == 1 else None
    return kind is not None and all(_constant(each) == kind for each in constants)


def _constant(node: Node) -> str | None:
    while isinstance(node, exp.Paren):
        node = node.this
    if isinstance(node, exp.Neg):
        return "int" if _constant(node.this) == "int" else None
    if isinstance(node, exp.Literal):
        return "str" if node.is_string else "int" if node.is_int else None
    if isinstance(node, exp.Cast) and node.to.this == exp.DataType.Type.DATE and isinstance(node.this, exp.Literal):
        return "date" if node.this.is_string and _DAY.fullmatch(node.this.name) else None
    return None
