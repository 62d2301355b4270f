"""Building again: from a manifest alone, and twice in different ways to see whether the rows agree."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cumin.building import Progress, build_recipe, quiet, require_local
from cumin.compare import recipe_changes, view_of_manifest, view_of_plan
from cumin.config import engine_from, input_from
from cumin.dataset import Dataset, load
from cumin.engines.duckdb_engine import DuckDB
from cumin.errors import ConfigError, CorruptError, InputError, RecipeError
from cumin.layout import Layout, Target
from cumin.modes import Determinism
from cumin.planning import Plan, make_plan, only_partitions
from cumin.recipe import Recipe, param_from_json
from cumin.store import Store
from cumin.udfs import Udf


def recipe_of(manifest: Mapping[str, Any], store: Store, udfs: Mapping[str, Udf] | None = None) -> Recipe:
    """The recipe that a manifest was built from. Raises RecipeError naming every input version that is gone."""
    kept = manifest["recipe"]
    missing = [name for name in kept["udfs"] if name not in (udfs or {})]
    problems = [f"The function {name!r} is code, which no manifest holds; pass udfs= (in Python)." for name in missing]
    inputs = {}
    for each in manifest["inputs"]:
        try:
            inputs[each["name"]] = input_from(_source(each), store=store)
        except (RecipeError, OSError) as error:
            problems.append(f"The input {each['name']!r}: {error}")
    if problems:
        raise InputError(problems)
    how = kept["determinism"]
    return Recipe(
        name=manifest["name"],
        sql=kept["template"],
        params={name: param_from_json(value) for name, value in kept["params"].items()},
        inputs=inputs,
        engine=engine_from(kept["engine"]),
        partition_by=tuple(manifest["output"]["partition_by"]),
        order_key=tuple(manifest["output"]["order_key"]),
        determinism=Determinism(how["mode"], how["digits"], how["scale"], tuple(how["allow"])),
        udfs=dict(udfs or {}),
        salt=kept["salt"],
        layout=Layout(**manifest["layout"]),
        lookback=kept["lookback"],
        partitions=tuple(map(param_from_json, kept["partitions"])) if kept["partitions"] is not None else None,
        source_file=kept["source_file"],
    )


def _source(each: Mapping[str, Any]) -> dict[str, Any]:
    """An input's description without empty options, as `config.input_from` takes it."""
    empty: tuple[Any, ...] = ((), [], {}, "", None)
    source = {key: value for key, value in each["source"].items() if value not in empty}
    if each["kind"] == "cumin":
        source = {key: value for key, value in source.items() if key in ("kind", "store", "build_id", "key")}
    return source


def rebuild(
    store: Store,
    spec: str,
    *,
    into: Store | None = None,
    udfs: Mapping[str, Udf] | None = None,
    progress: Progress = quiet,
) -> Dataset:
    """Run a build again, from its manifest (a name in the store, or a manifest's file), and compare the rows.

    Raises InputError, saying what differs, if inputs or engine are no longer those of the build, and
    NonDeterministicBuildError if the rows are not.
    """
    manifest = _manifest(store, spec)
    recipe = recipe_of(manifest, store, udfs)
    plan = make_plan(recipe)
    if plan.build_id != manifest["build_id"]:
        changes = recipe_changes(view_of_manifest(manifest), view_of_plan(plan), store)
        lines = [line for change in changes for line in change.lines()]
        raise InputError([f"{manifest['build_id']} cannot be built again; these are no longer what they were:", *lines])
    return build_recipe(recipe, into or store, force=True, progress=progress, plan=plan)


def _manifest(store: Store, spec: str) -> dict[str, Any]:
    if not spec.endswith(".json"):
        return load(spec, store).manifest
    try:
        found = json.loads(Path(spec).read_bytes())
        if not isinstance(found, dict) or "recipe" not in found:
            raise ConfigError(f"{spec} is no manifest of cumin's.")
        return found
    except (OSError, ValueError) as error:
        raise CorruptError(f"The manifest {spec} cannot be read: {error}") from error


def check_twice(recipe: Recipe, progress: Progress = quiet) -> tuple[str, str]:
    """The content ids of two builds in stores of their own, with one thread and with many, in kept and in free order."""
    ids = []
    for number, engine in enumerate(_two_ways(recipe)):
        progress(f"building, {('first', 'second')[number]} time")
        with tempfile.TemporaryDirectory(prefix="cumin-check-") as folder:
            ids.append(build_recipe(replace(recipe, engine=engine), Store(folder)).content_id)
    return ids[0], ids[1]


def _two_ways(recipe: Recipe) -> tuple[Any, Any]:
    engine = recipe.engine
    if isinstance(engine, DuckDB):
        return replace(engine, threads=1), replace(engine, threads=4, preserve_insertion_order=False)
    return engine, engine


def check_locality(plan: Plan, progress: Progress = quiet) -> int:
    """Build every partition with its own window and all in one; how many agree. Raises NotPartitionLocalError."""
    recipe = plan.recipe
    with tempfile.TemporaryDirectory(prefix="cumin-check-") as folder:
        units = []
        for number, subplans in enumerate([plan.subplans, *([each] for each in plan.subplans)]):
            progress(f"checking {number} of {len(plan.subplans)} partitions")
            target = Target(Path(folder, str(number)), recipe.partition_by, recipe.order_key, recipe.layout)
            target.folder.mkdir()
            state = {
                name: {key: plan.state[name][key] for each in subplans for key in each.reads[name]} for name in plan.tables
            }
            relations = {name: table.relation(state[name]) for name, table in plan.tables.items()}
            sql = only_partitions(plan, [each.key for each in subplans])
            ran = recipe.engine.run(sql, relations, recipe.udfs, target, recipe.determinism)
            units.append({unit.partition: unit for unit in ran})
    for index, each in enumerate(plan.subplans, 1):
        require_local(plan, each.key, units[0].get(each.key), units[index].get(each.key))
    return len(plan.subplans)
