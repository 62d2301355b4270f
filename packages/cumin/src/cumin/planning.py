"""From a recipe to a build id: everything that can be known, and refused, before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from cumin import determinism as rules
from cumin.analysis import Query, parse, undeclared
from cumin.content import schema_form
from cumin.decimals import over_decimals
from cumin.encoding import FORM_VERSION, digest
from cumin.engines.base import Session
from cumin.errors import ConfigError, DeterminismError, InputError, QueryError, RecipeError
from cumin.fingerprint import Part
from cumin.inputs.base import Table
from cumin.ordering import Keys
from cumin.partitions import partition_key, partition_text, typed
from cumin.pruning import partition_filters
from cumin.query import Rendered, literal, render
from cumin.recipe import Recipe
from cumin.windows import Windows

State = dict[str, dict[str, Part]]  # per input, per partition


@dataclass
class SubPlan:
    """One partition of an incremental build: its id, and the partitions of each input that it reads."""

    key: str
    build_id: str
    reads: dict[str, list[str]]


@dataclass
class Plan:
    """A recipe that can be run: what it reads, what comes out, and the id of it all."""

    recipe: Recipe
    rendered: Rendered
    query: Query
    executed: str
    tables: dict[str, Table]
    state: State
    schema: pa.Schema
    form: dict[str, Any]
    build_id: str
    relied_keys: dict[str, tuple[str, ...]]
    findings: list[rules.Finding] = field(default_factory=list)
    subplans: list[SubPlan] = field(default_factory=list)

    @property
    def incremental(self) -> bool:
        """Whether the partitions are built one by one."""
        return self.recipe.lookback is not None


def make_plan(recipe: Recipe) -> Plan:
    """Render, parse, bind, judge, list and name. Reads no rows. Raises RecipeError with all problems of a step."""
    rendered = render(recipe.sql, recipe.params, dialect=recipe.engine.dialect)
    query = parse(rendered.text, rendered.dialect)
    _check_tables(query, recipe)
    engine_form = recipe.engine.form(recipe.determinism)
    udf_forms = {name: udf.form(name) for name, udf in recipe.udfs.items()}
    tables = _open(recipe)
    session = recipe.engine.open({name: table.schema for name, table in tables.items()}, recipe.udfs)
    try:
        try:
            schema = session.describe(rendered.text)
        except QueryError:
            _refuse_by_name(recipe, query, session)  # tells more than "it does not bind", where it applies
            raise
        _check_output(recipe, schema)
        all_findings, keys = _judge(recipe, query, tables, session)
        read = {name: _partitions_read(query, name, tables, session) for name in tables}
    finally:
        session.close()
    executed = _executed(recipe, query, all_findings)
    state = {name: table.parts(read[name]) for name, table in tables.items()}
    base = {
        "form_version": FORM_VERSION,
        "query": rendered.form,
        "dialect": rendered.dialect,
        "params": dict(rendered.params),
        "engine": engine_form,
        "udfs": udf_forms,
        "output": {
            "schema": schema_form(schema),
            "partition_by": list(recipe.partition_by),
            "order_key": list(recipe.order_key),
        },
        "determinism": recipe.determinism.form(),
        "salt": recipe.salt,
    }
    form, subplans = _forms(recipe, base, tables, state)
    return Plan(recipe, rendered, query, executed, tables, state, schema, form, "b1:" + digest("cumin/build", form),
                keys, all_findings, subplans)  # fmt: skip


def _check_tables(query: Query, recipe: Recipe) -> None:
    missing, unread = undeclared(query, recipe.inputs)
    declared = ", ".join(recipe.inputs) or "none"
    problems = [f"The query reads the table {name!r}, which is not declared. Inputs: {declared}." for name in missing]
    problems += [f"The input {name!r} is declared and the query does not read it; take it out." for name in unread]
    if problems:
        raise InputError(problems)


def _open(recipe: Recipe) -> dict[str, Table]:
    tables, problems = {}, []
    for name, source in recipe.inputs.items():
        try:
            table = source.open()
            doubled = {each.lower() for each in table.schema.names if
                       sum(other.lower() == each.lower() for other in table.schema.names) > 1}  # fmt: skip
            if doubled:
                raise InputError(f"its columns {sorted(doubled)} differ only in case, which SQL does not see; rename them.")
            tables[name] = table
        except RecipeError as error:
            problems += [f"The input {name!r}: {problem}" for problem in error.problems]
    if problems:
        raise InputError(problems)
    return tables


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
) -> tuple[list[rules.Finding], dict[str, tuple[str, ...]]]:
    declared = {name.lower(): tuple(getattr(recipe.inputs[name], "key", ())) for name in tables}
    problems = [
        f"The input {name!r}: key= names {column!r}, which it does not have."
        for name, table in tables.items()
        for column in getattr(recipe.inputs[name], "key", ())
        if column not in table.schema.names
    ]
    if problems:
        raise InputError(problems)
    keys = Keys(declared)

    def describe(sql: str) -> pa.Schema | None:
        try:
            return session.describe(sql)
        except QueryError:
            return None

    found = rules.findings(query, catalogue=session.catalogue, keys=keys, describe=describe, udfs=recipe.udfs)
    refused = rules.refused(found, recipe.determinism)
    if refused:
        raise DeterminismError(each.sentence(query) for each in refused)
    relied = {name: declared[name.lower()] for name in tables if name.lower() in keys.relied}
    return found, relied


def _refuse_by_name(recipe: Recipe, query: Query, session: Session) -> None:
    found = rules.by_name(query, session.catalogue, recipe.udfs)
    refused = rules.refused(found, recipe.determinism)
    if refused:
        raise DeterminismError(each.sentence(query) for each in refused)


def _executed(recipe: Recipe, query: Query, found: list[rules.Finding]) -> str:
    """The text that the engine runs: the rendered one, but for the sums that `decimal` rewrites."""
    if recipe.determinism.mode != "decimal":
        return query.text
    sums = {
        each.offset: "sum" if each.what == "sum()" else "avg"
        for each in found
        if each.rule == "float-sum" and each.what in ("sum()", "avg()", "mean()")
    }
    return over_decimals(query, sums, recipe.determinism.scale) if sums else query.text


def _partitions_read(query: Query, name: str, tables: Mapping[str, Table], session: Session) -> list[str]:
    """The partitions that the query can read, seen from its conditions; all of them where that cannot be seen."""
    table = tables[name]
    if not table.partition_columns:
        return list(table.partitions)
    kinds = {column: table.schema.field(column).type for column in table.partition_columns}
    keys = sorted(table.partitions)
    values = [table.typed(key) for key in keys]
    read: set[str] = set()
    schemas = {each.lower(): frozenset(map(str.lower, other.schema.names)) for each, other in tables.items()}
    for filters in partition_filters(query, name, schemas, table.partition_columns):
        kept = session.keep(filters, kinds, values) if filters else [True] * len(keys)
        read.update(key for key, keep in zip(keys, kept, strict=True) if keep)
    return sorted(read)


def _input_forms(recipe: Recipe, tables: Mapping[str, Table], state: State) -> dict[str, Any]:
    single = recipe.determinism.mode == "single-thread"
    return {
        name.lower(): {
            "strength": table.strength,
            "identity": table.identity,
            "schema": schema_form(table.schema),
            "parts": {
                # On one thread the order of rows counts, and a dataset's content does not say it: its files do.
                key: [part.token, part.lines] if single and table.kind == "cumin" else part.token
                for key, part in state[name].items()
            },
        }
        for name, table in tables.items()
    }


def _forms(
    recipe: Recipe, base: dict[str, Any], tables: Mapping[str, Table], state: State
) -> tuple[dict[str, Any], list[SubPlan]]:
    inputs = _input_forms(recipe, tables, state)
    if recipe.lookback is None:
        return {**base, "inputs": inputs}, []
    without_parts = {name: {**each, "parts": None} for name, each in inputs.items()}
    # What all partitions share is hashed once: of 365 days, each then costs its own window only.
    shared = digest("cumin/partition-shared", {**base, "inputs": without_parts})
    windows = {name: Windows(table, sorted(state[name]), recipe.partition_by[0]) for name, table in tables.items()}
    unwindowed = {
        name: digest("cumin/partition-input", inputs[name.lower()]["parts"])
        for name, window in windows.items()
        if not window.moves
    }
    subplans = []
    for key, value in _output_partitions(recipe, tables, state).items():
        reads = {name: window.before(value, recipe.lookback.get(name, 0)) for name, window in windows.items()}
        parts = {
            name.lower(): unwindowed.get(name) or {each: inputs[name.lower()]["parts"][each] for each in reads[name]}
            for name in tables
        }
        form = {"shared": shared, "parts": parts, "only": key}
        subplans.append(SubPlan(key, "b1:" + digest("cumin/partition/2", form), reads))
    return {**base, "inputs": without_parts, "parts": {each.key: each.build_id for each in subplans}}, subplans


def _output_partitions(recipe: Recipe, tables: Mapping[str, Table], state: State) -> dict[str, Any]:
    """Key and typed value of each partition that the output may have: those of the inputs that share its column."""
    column = recipe.partition_by[0]
    found: dict[str, Any] = {}
    for name, table in tables.items():
        if column in table.partition_columns:
            index = table.partition_columns.index(column)
            for key in state[name]:
                text = table.partitions[key][index]
                found[partition_key([column], [text])] = table.typed(key)[index]
    if not found:
        raise ConfigError(f"An incremental build needs an input that is partitioned by {column!r} like its output.")
    if recipe.partitions is not None:
        wanted = recipe.partitions
        inside = (lambda v: v is not None and wanted[0] <= v <= wanted[1]) if len(wanted) == 2 else (lambda v: v in wanted)
        found = {key: value for key, value in found.items() if inside(value)}
    return dict(sorted(found.items()))


def only_partitions(plan: Plan, keys: list[str]) -> str:
    """The query limited to these output partitions."""
    column = plan.recipe.partition_by[0]
    quote = "`" if plan.rendered.dialect == "spark" else '"'
    name = quote + column.replace(quote, quote * 2) + quote
    kind = plan.schema.field(column).type
    values = [typed(partition_text(key.partition("=")[2]), kind) for key in keys]
    tests = []
    if None in values:
        tests.append(f"{name} IS NULL")
    known = [value for value in values if value is not None]
    if known:
        tests.append(f"{name} IN {literal(known, dialect=plan.rendered.dialect)}")
    return f"SELECT * FROM (\n{plan.executed}\n) AS cumin_parts WHERE {' OR '.join(tests)}"
