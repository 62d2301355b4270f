"""From a recipe to a build id: everything that can be known, and refused, before anything runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from cumin import plan_cache
from cumin.encoding import digest
from cumin.errors import ConfigError, InputError, RecipeError
from cumin.fingerprint import Part
from cumin.inputs.base import Table
from cumin.partitions import kind_of, partition_key, partition_text, plain_kind, typed, value_text
from cumin.plan_cache import Study
from cumin.query import Rendered, literal, render
from cumin.recipe import RECIPE_VERSION, Recipe
from cumin.schemas import read_schema
from cumin.windows import Windows

if TYPE_CHECKING:
    import pyarrow as pa

Made = TypeVar("Made")
State = dict[str, dict[str, Part]]  # per input, per partition


@dataclass
class SubPlan:
    """One partition of an incremental build: its id, and the partitions of each input that it reads."""

    key: str
    build_id: str
    reads: dict[str, list[str]]


@dataclass(repr=False)
class Plan:
    """A recipe that can be run: what it reads, what comes out, and the id of it all."""

    recipe: Recipe
    rendered: Rendered
    study: Study
    executed: str
    tables: dict[str, Table]
    state: State
    form: dict[str, Any]
    build_id: str
    subplans: list[SubPlan] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)  # incremental: every partition that the query may give rows of

    def __repr__(self) -> str:
        """One line, however many partitions there are."""
        parts = f", {len(self.subplans)} partitions" if self.incremental else ""
        return f"<cumin.Plan {self.recipe.name} {self.build_id[:15]} over {', '.join(self.tables) or 'nothing'}{parts}>"

    @property
    def incremental(self) -> bool:
        """Whether the partitions are built one by one."""
        return self.recipe.lookback is not None

    @cached_property
    def schema(self) -> "pa.Schema":
        """What the query gives."""
        return read_schema(self.study.schema)

    @property
    def passed(self) -> list[str]:
        """What may vary and was let pass by the mode or by `allow`, one sentence each."""
        return [each.sentence(self.rendered.text) for each in self.study.findings]


def make_plan(recipe: Recipe) -> Plan:
    """Render, look at the inputs, study the query, list and name. Reads no rows. What the study found is kept for the
    next plan over equal schemas and partitions. Raises RecipeError with all problems of a step."""
    rendered = render(recipe.sql, recipe.params, dialect=recipe.engine.dialect)
    udf_forms = {name: udf.form(name) for name, udf in recipe.udfs.items()}
    try:
        tables = _each(recipe.inputs, lambda source: source.open())
        found = _study(recipe, rendered, tables)
    except InputError:
        from cumin.study import check_query

        check_query(recipe, rendered)  # what is wrong with the query itself is told first
        raise
    state = {name: table.parts(found.partitions(name, table.partitions)) for name, table in tables.items()}
    base = {
        "recipe_version": RECIPE_VERSION,
        "query": rendered.form,
        "dialect": rendered.dialect,
        "params": dict(rendered.params),
        "engine": recipe.engine.form(recipe.determinism),
        "udfs": udf_forms,
        "output": {
            "schema": found.schema_form,
            "partition_by": list(recipe.partition_by),
            "order_key": list(recipe.order_key),
        },
        "determinism": recipe.determinism.form(),
        "salt": recipe.salt,
    }
    form, subplans, outputs = _forms(recipe, base, found, tables, state)
    build_id = "b1:" + digest("cumin/build", form)
    return Plan(recipe, rendered, found, found.executed, tables, state, form, build_id, subplans, outputs)


def _study(recipe: Recipe, rendered: Rendered, tables: dict[str, Table]) -> Study:
    tokens = _each(tables, lambda table: table.schema_token())
    key = plan_cache.key_of(recipe, rendered, tables, tokens)
    known = plan_cache.recall(key) if key is not None else None
    if known is not None:
        for name, table in tables.items():
            table.know_schema(known.input_schemas[name])
        return known
    from cumin.study import study

    _each(tables, _check_columns)
    found = study(recipe, rendered, tables)
    # Asked again, now that all is loaded and read: a library or a file that was replaced meanwhile must not lend its name.
    if key is not None:
        tokens = _each(tables, lambda table: table.schema_token(again=True))
        if key == plan_cache.key_of(recipe, rendered, tables, tokens, again=True):
            plan_cache.remember(key, found)
    return found


def _each(inputs: Mapping[str, Any], make: Callable[[Any], Made]) -> dict[str, Made]:
    """`make` of every input. Raises InputError with all that is wrong, each with its input's name."""
    made, problems = {}, []
    for name, each in inputs.items():
        try:
            made[name] = make(each)
        except RecipeError as error:
            problems += [f"The input {name!r}: {problem}" for problem in error.problems]
    if problems:
        raise InputError(problems)
    return made


def _check_columns(table: Table) -> None:
    low = [name.lower() for name in table.schema.names]
    doubled = sorted({name for name in low if low.count(name) > 1})
    if doubled:
        raise InputError(f"its columns {doubled} differ only in case, which SQL does not see; rename them.")


def _input_forms(recipe: Recipe, found: Study, tables: Mapping[str, Table], state: State) -> dict[str, Any]:
    single = recipe.determinism.mode == "single-thread"
    return {
        name.lower(): {
            "strength": table.strength,
            "identity": table.identity,
            "schema": found.input_forms[name],
            "parts": {
                # On one thread the order of rows counts, and a dataset's content does not say it: its files do.
                key: [part.token, part.lines] if single and table.kind == "cumin" else part.token
                for key, part in state[name].items()
            },
        }
        for name, table in tables.items()
    }


def _forms(
    recipe: Recipe, base: dict[str, Any], found: Study, tables: Mapping[str, Table], state: State
) -> tuple[dict[str, Any], list[SubPlan], list[str]]:
    inputs = _input_forms(recipe, found, tables, state)
    if recipe.lookback is None:
        return {**base, "inputs": inputs}, [], []
    without_parts = {name: {**each, "parts": None} for name, each in inputs.items()}
    # What all partitions share is hashed once: of 365 days, each then costs its own window only.
    shared = digest("cumin/partition-shared", {**base, "inputs": without_parts})
    windows = {name: Windows(table, sorted(state[name]), recipe.partition_by[0]) for name, table in tables.items()}
    unwindowed = {
        name: digest("cumin/partition-input", inputs[name.lower()]["parts"])
        for name, window in windows.items()
        if not window.moves
    }
    back = {name: window.steps(name, recipe.lookback.get(name, 0)) for name, window in windows.items()}
    outputs, wanted = _output_partitions(recipe, tables, state)
    subplans = []
    for key, value in wanted.items():
        reads = {name: window.before(value, back[name]) for name, window in windows.items()}
        parts = {
            name.lower(): unwindowed.get(name) or {each: inputs[name.lower()]["parts"][each] for each in reads[name]}
            for name in tables
        }
        form = {"shared": shared, "parts": parts, "only": key}
        subplans.append(SubPlan(key, "b1:" + digest("cumin/partition/2", form), reads))
    return {**base, "inputs": without_parts, "parts": {each.key: each.build_id for each in subplans}}, subplans, outputs


def _output_partitions(recipe: Recipe, tables: Mapping[str, Table], state: State) -> tuple[list[str], dict[str, Any]]:
    """The partitions that the output may have, those of the inputs that share its column; and of those that are asked
    for the key and the typed value."""
    column = recipe.partition_by[0]
    found: dict[str, Any] = {}
    kind = None
    for name, table in tables.items():
        if column in table.partition_columns:
            index = table.partition_columns.index(column)
            kind = plain_kind(table.partition_kinds[index])
            for key in state[name]:
                value = table.typed(key)[index]
                found[partition_key([column], [value_text(value)])] = value
    if kind is None:
        raise ConfigError(f"An incremental build needs an input that is partitioned by {column!r} like its output.")
    wanted = found if recipe.partitions is None else _limited(found, recipe.partitions, column, kind)
    return sorted(found), dict(sorted(wanted.items()))


def _limited(found: dict[str, Any], partitions: tuple[Any, ...], column: str, kind: str) -> dict[str, Any]:
    """The output partitions that `partitions=` asks for. Raises ConfigError if it asks for none that there is."""
    wanted = [_wanted(value, column, kind) for value in partitions]
    if len(wanted) == 2:
        first, last = wanted
        if first is None or last is None or first > last:
            raise ConfigError(f"partitions={partitions!r} is a range from its first value to its last; this one is empty.")
        kept = {key: value for key, value in found.items() if value is not None and first <= value <= last}
    else:
        kept = {key: value for key, value in found.items() if value in wanted}
    if not kept:
        known = sorted(value for value in found.values() if value is not None)
        there = f"from {known[0]} to {known[-1]}" if known else "none"
        raise ConfigError(f"partitions={partitions!r} names no partition that the query reads. There: {there}.")
    return kept


def _wanted(value: Any, column: str, kind: str) -> Any:
    """A value of `partitions=` in its column's type; text is read as it is in a path."""
    if value is None or type(value).__name__ == {"string": "str"}.get(kind, kind):
        return value
    if isinstance(value, str):
        try:
            return typed(value, kind)
        except InputError as error:
            raise ConfigError(f"partitions= names {value!r}, and {column!r} is of the type {kind}.") from error
    raise ConfigError(f"partitions= names {value!r}, a {type(value).__name__}, and {column!r} is of the type {kind}.")


def only_partitions(plan: Plan, keys: list[str], *, strays: bool = False) -> str:
    """The query limited to these output partitions; with `strays`, and to those that no input has."""
    column = plan.recipe.partition_by[0]
    quote = "`" if plan.rendered.dialect == "spark" else '"'
    name = quote + column.replace(quote, quote * 2) + quote
    kind = kind_of(plan.schema.field(column).type)
    values = [typed(partition_text(key.partition("=")[2]), kind) for key in keys]
    every = [typed(partition_text(key.partition("=")[2]), kind) for key in plan.outputs] if strays else []
    tests = []
    if None in values or (strays and None not in every):
        tests.append(f"{name} IS NULL")
    known = [value for value in values if value is not None]
    if known:
        tests.append(f"{name} IN {literal(known, dialect=plan.rendered.dialect)}")
    if there := [value for value in every if value is not None]:
        tests.append(f"{name} NOT IN {literal(there, dialect=plan.rendered.dialect)}")
    return f"SELECT * FROM (\n{plan.executed}\n) AS cumin_parts WHERE {' OR '.join(tests)}"
