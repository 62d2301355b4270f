"""What a parser and an engine say of a recipe: its schema, what may vary in it, and the partitions that it reads.

The costly half of a plan: it imports sqlglot, the engine and pyarrow. `plan_cache` keeps what it finds.
"""

from collections.abc import Mapping

import pyarrow as pa
from sqlglot import exp

from cumin import determinism as rules
from cumin.analysis import Query, parse, undeclared
from cumin.content import schema_form
from cumin.decimals import over_decimals
from cumin.engines.base import Session
from cumin.errors import ConfigError, DeterminismError, InputError, QueryError
from cumin.inputs.base import Table
from cumin.lexer import position, without_end
from cumin.modes import Finding
from cumin.ordering import Keys
from cumin.plan_cache import Study
from cumin.pruning import partition_filters
from cumin.query import Rendered
from cumin.recipe import Recipe
from cumin.schemas import write_schema


def check_query(recipe: Recipe, rendered: Rendered) -> Query:
    """The query, parsed, over declared tables only. Raises QueryError and InputError."""
    if rendered.dialect == "spark" and (at := rendered.text.find("${")) >= 0:
        raise QueryError(
            f"{position(rendered.text, at)}: Spark puts a setting or the environment in place of ${{…}}, which no id sees. "
            "Declare a parameter and write :name."
        )
    query = parse(without_end(rendered.text, rendered.dialect), rendered.dialect)
    _check_tables(query, recipe)
    return query


def study(recipe: Recipe, rendered: Rendered, tables: Mapping[str, Table]) -> Study:
    """Parse, bind, judge and prune. Reads no rows. Raises RecipeError with all problems of a step."""
    query = check_query(recipe, rendered)
    session = recipe.engine.open({name: table.schema for name, table in tables.items()}, recipe.udfs)
    try:
        try:
            schema = session.describe(query.text)
        except QueryError:
            _refuse_by_name(recipe, query, session)  # tells more than "it does not bind", where it applies
            raise
        _check_output(recipe, schema)
        found, keys = _judge(recipe, query, tables, session)
        executed = _executed(recipe, query, found)
        if executed != query.text:  # what was not named has the name of what is run
            schema = session.describe(executed)
        read = {name: _partitions_read(query, name, tables, session) for name in tables}
    finally:
        session.close()
    return Study(
        schema=write_schema(schema),
        schema_form=schema_form(schema),
        input_schemas={name: write_schema(table.schema) for name, table in tables.items()},
        input_forms={name: schema_form(table.schema) for name, table in tables.items()},
        read=read,
        executed=executed,
        relied_keys=keys,
        findings=found,
        ordered=any(each.args.get("order") is not None for each in query.tree.find_all(exp.Query)),
    )


def _check_tables(query: Query, recipe: Recipe) -> None:
    missing, unread = undeclared(query, recipe.inputs)
    declared = ", ".join(recipe.inputs) or "none"
    problems = [f"The query reads the table {name!r}, which is not declared. Inputs: {declared}." for name in missing]
    problems += [f"The input {name!r} is declared and the query does not read it; take it out." for name in unread]
    if problems:
        raise InputError(problems)


def _check_output(recipe: Recipe, schema: pa.Schema) -> None:
    problems = [
        f"{what} names {column!r}, which the query does not give. Columns: {', '.join(schema.names)}."
        for what, columns in (("partition_by", recipe.partition_by), ("order_key", recipe.order_key))
        for column in columns
        if column not in schema.names
    ]
    if problems:
        raise ConfigError(problems)


def _judge(
    recipe: Recipe, query: Query, tables: Mapping[str, Table], session: Session
) -> tuple[list[Finding], dict[str, tuple[str, ...]]]:
    declared = {name.lower(): tuple(getattr(recipe.inputs[name], "key", ())) for name in tables}
    problems = [
        f"The input {name!r}: key= names {column!r}, which it does not have."
        for name, table in tables.items()
        for column in getattr(recipe.inputs[name], "key", ())
        if column not in table.schema.names
    ]
    if problems:
        raise InputError(problems)
    columns = frozenset(column.lower() for table in tables.values() for column in table.schema.names)
    keys = Keys(declared, columns=columns)

    def describe(sql: str) -> pa.Schema | None:
        try:
            return session.describe(sql)
        except QueryError:
            return None

    found = rules.findings(query, catalogue=session.catalogue, keys=keys, describe=describe, udfs=recipe.udfs)
    refused = rules.refused(found, recipe.determinism)
    if refused:
        raise DeterminismError(each.sentence(query.text) for each in refused)
    relied = {name: declared[name.lower()] for name in tables if name.lower() in keys.relied}
    return found, relied


def _refuse_by_name(recipe: Recipe, query: Query, session: Session) -> None:
    found = rules.by_name(query, session.catalogue, recipe.udfs)
    refused = rules.refused(found, recipe.determinism)
    if refused:
        raise DeterminismError(each.sentence(query.text) for each in refused)


def _executed(recipe: Recipe, query: Query, found: list[Finding]) -> str:
    """The text that the engine runs: the rendered one, but for the sums that `decimal` rewrites."""
    if recipe.determinism.mode != "decimal":
        return query.text
    sums = {
        each.offset: "sum" if each.what == "sum()" else "avg"
        for each in found
        if each.rule == "float-sum" and each.what in ("sum()", "avg()", "mean()")
    }
    return over_decimals(query, sums, recipe.determinism.scale) if sums else query.text


def _partitions_read(query: Query, name: str, tables: Mapping[str, Table], session: Session) -> list[str] | None:
    """The partitions that the query can read, seen from its conditions; None, all, where that cannot be seen."""
    table = tables[name]
    if not table.partition_columns:
        return None
    kinds = {column: table.schema.field(column).type for column in table.partition_columns}
    keys = sorted(table.partitions)
    values = [table.typed(key) for key in keys]
    read: set[str] = set()
    schemas = {each.lower(): frozenset(map(str.lower, other.schema.names)) for each, other in tables.items()}
    for filters in partition_filters(query, name, schemas, table.partition_columns):
        kept = session.keep(filters, kinds, values) if filters else [True] * len(keys)
        read.update(key for key, keep in zip(keys, kept, strict=True) if keep)
    return sorted(read) if len(read) < len(keys) else None
