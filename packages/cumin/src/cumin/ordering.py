"""Whether an order is total: whether it leaves no two rows whose places could be swapped.

Pure, over sqlglot's trees. A set of expressions orders a SELECT's rows totally if it contains all GROUP BY
expressions, or all columns of a DISTINCT, or the declared keys of all its sources, or (where rows are only cut off,
not numbered) every column that comes out, because rows that are equal in all of them cannot be told apart.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlglot import exp

from cumin.analysis import Node, sources, table_name


@dataclass
class Keys:
    """Declared keys by table name (lower case), and which of them a decision has relied on."""

    declared: Mapping[str, tuple[str, ...]]
    relied: set[str] = field(default_factory=set)
    columns: frozenset[str] = frozenset()  # the names of all columns of all inputs, lower case


def text(node: Node) -> str:
    """An expression in one spelling: identifiers in lower case and unquoted."""
    copy = node.copy()
    for identifier in copy.find_all(exp.Identifier):
        identifier.set("this", identifier.name.lower())
        identifier.set("quoted", False)
    return str(copy.sql(dialect="duckdb", comments=False))


def total(select: Node, by: Iterable[Node], keys: Keys, *, cut_only: bool) -> bool:
    """Whether `by` orders the rows of `select` totally. `cut_only`: rows are cut off at the end, not numbered."""
    given = _spellings(by, select, keys, of_output=cut_only)
    if cut_only and _covers_output(select, given):
        return True
    if not isinstance(select, exp.Select):
        return False
    group = select.args.get("group")
    if group is not None:
        grouped = group_expressions(select, keys)
        return grouped is not None and all(_in(expression, given, select) for expression in grouped)
    if _aggregates(select):
        return True  # one row
    return _covers_sources(select, given, keys)


def hidden(select: Node, keys: Keys) -> set[str]:
    """The aliases of a SELECT that may hide a column of what it reads: ``k % 7 AS k``. ORDER BY means the alias there,
    GROUP BY and a window the column."""
    if not isinstance(select, exp.Query):
        return set()
    found = set()
    for each in select.selects:
        name, node = each.alias_or_name.lower(), each.unalias()
        same = isinstance(node, exp.Column) and node.name.lower() == name
        if each.alias and not same and (name in keys.columns or name in _inner_names(select)):
            found.add(name)
    return found


def _inner_names(select: Node) -> set[str]:
    """The names that come out of the queries that a SELECT reads, as far as they are written; of all of them in the tree."""
    names = set()
    for query in select.root().find_all(exp.Select):
        if query is not select:
            names |= {each.alias_or_name.lower() for each in query.selects}
    for alias in select.root().find_all(exp.TableAlias):
        names |= {column.name.lower() for column in alias.columns}
    return names


def _spellings(by: Iterable[Node], select: Node, keys: Keys, *, of_output: bool) -> set[str]:
    """Each expression as written, without its table, and what its alias or its position stands for. `of_output`: where
    an alias comes before a column of the same name, as in ORDER BY."""
    found: set[str] = set()
    outputs = select.selects if isinstance(select, exp.Query) else []
    aliases = {each.alias_or_name.lower(): each.unalias() for each in outputs}
    hides = hidden(select, keys)
    for each in by:
        node = each.this if isinstance(each, exp.Ordered) else each
        if isinstance(node, exp.Literal) and node.is_int and 0 < int(node.name) <= len(outputs):
            found |= _plain(outputs[int(node.name) - 1].unalias())
            continue
        bare = isinstance(node, exp.Column) and not node.table
        name = node.name.lower() if bare else ""
        if of_output and not bare and any(not c.table and c.name.lower() in hides for c in node.find_all(exp.Column)):
            continue  # which of the two is meant is the engine's affair
        if not (of_output and name in hides):
            found |= _plain(node)
        if name in aliases and (of_output or name not in hides):
            found.add(text(aliases[name]))
    return found


def _plain(node: Node) -> set[str]:
    return {text(node), node.name.lower()} if isinstance(node, exp.Column) else {text(node)}


def _in(node: Node, given: set[str], select: exp.Select) -> bool:
    if text(node) in given:
        return True
    if isinstance(node, exp.Column):
        # `x` and `t.x` are one column where the SELECT has one source.
        return node.name.lower() in given and (len(sources(select)) == 1 or not node.table)
    return any(each.alias and text(each.unalias()) == text(node) and each.alias.lower() in given for each in select.selects)


def _covers_output(select: Node, given: set[str]) -> bool:
    order = select.args.get("order")
    if order is not None and any(text(each.this).lower() == "all" for each in order.expressions):
        return True
    outputs = select.selects if isinstance(select, exp.Query) else []
    if not outputs or any(each.is_star for each in outputs):
        return False
    return all(each.alias_or_name.lower() in given or text(each.unalias()) in given for each in outputs)


def group_expressions(select: exp.Select, keys: Keys) -> list[Node] | None:
    """What a SELECT groups by, with positions and aliases put right; None for GROUPING SETS and their like, and where an
    alias may hide a column."""
    group = select.args["group"]
    if any(group.args.get(name) for name in ("grouping_sets", "cube", "rollup")):
        return None
    if any(isinstance(each, (exp.Rollup, exp.Cube, exp.GroupingSets)) for each in group.expressions):
        return None
    if group.args.get("all"):
        return [each.unalias() for each in select.selects if each.find(exp.AggFunc) is None]
    result: list[Node] = []
    hides = hidden(select, keys)
    aliases = {each.alias.lower(): each.unalias() for each in select.selects if each.alias}
    for node in group.expressions:
        if isinstance(node, exp.Literal) and node.is_int and 0 < int(node.name) <= len(select.selects):
            result.append(select.selects[int(node.name) - 1].unalias())
        elif isinstance(node, exp.Column) and not node.table and node.name.lower() in hides:
            return None
        elif isinstance(node, exp.Column) and not node.table and node.name.lower() in aliases:
            result.append(aliases[node.name.lower()])
        else:
            result.append(node)
    return result


def _aggregates(select: exp.Select) -> bool:
    """Whether a SELECT without GROUP BY aggregates to one row."""
    for each in select.selects:
        for call in each.find_all(exp.AggFunc):
            if not isinstance(call.parent, exp.Window) and call.find_ancestor(exp.Select) is select:
                return True
    return False


def _covers_sources(select: exp.Select, given: set[str], keys: Keys) -> bool:
    found = sources(select)
    relied: set[str] = set()
    for source in found:
        key = source_key(source, keys, relied)
        if key is None:
            return False
        alias = source.alias_or_name.lower()
        for column in key:
            if f"{alias}.{column}" not in given and not (column in given and (len(found) == 1 or _bare(given, column))):
                return False
    keys.relied |= relied
    return bool(found)


def _bare(given: set[str], column: str) -> bool:
    """Whether the column was written without a table: then the engine has made sure that only one source has it."""
    return column in given and not any(each.endswith(f".{column}") for each in given)


def source_key(source: Node, keys: Keys, relied: set[str]) -> list[str] | None:
    """Columns of a source that are unique together, or None if nothing says so."""
    if isinstance(source, exp.Table):
        common = _common(source)
        if common is not None:
            return _output_key(common, keys, relied)
        name = table_name(source)
        if keys.declared.get(name):
            relied.add(name)
            return [column.lower() for column in keys.declared[name]]
        return None
    if isinstance(source, exp.Subquery):
        return _output_key(source.this, keys, relied)
    return None


def _common(table: exp.Table) -> Node | None:
    """The query behind the name of a common table expression, which sees those before it and not itself; None for a
    table, and for a recursive one."""
    if table.db:
        return None
    inside: Node | None = None
    at: Node | None = table
    while at is not None:
        clause = at.args.get("with_") or at.args.get("with")
        if isinstance(clause, exp.With):
            for common in clause.expressions:
                if common is inside:
                    break
                if common.alias.lower() == table.name.lower():
                    known = not clause.args.get("recursive") and not common.args["alias"].columns
                    return common.this if known else None
        if isinstance(at, exp.CTE):
            inside = at
        at = at.parent
    return None


def _output_key(select: Node, keys: Keys, relied: set[str]) -> list[str] | None:
    """The names under which a key of `select` comes out of it, if it does."""
    if not isinstance(select, exp.Select):
        return None
    names = {text(each.unalias()): each.alias_or_name.lower() for each in select.selects if not each.is_star}
    bare = {
        each.unalias().name.lower(): each.alias_or_name.lower()
        for each in select.selects
        if isinstance(each.unalias(), exp.Column) and not each.is_star
    }
    distinct = select.args.get("distinct")
    if distinct is not None and not distinct.args.get("on") and names and not any(e.is_star for e in select.selects):
        return list(names.values())
    if select.args.get("group") is not None:
        grouped = group_expressions(select, keys)
        if grouped is None or not all(text(each) in names or each.name.lower() in bare for each in grouped):
            return None
        return [names.get(text(each)) or bare[each.name.lower()] for each in grouped]
    found = sources(select)
    if len(found) != 1:
        return None
    key = source_key(found[0], keys, relied)
    if key is None:
        return None
    if any(each.is_star for each in select.selects):
        return key
    return [bare[column] for column in key] if all(column in bare for column in key) else None
