"""Building a dataset: plan, then run once, then publish. The order of steps is what keeps the store whole."""

import json
import resource
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cumin.dataset import Dataset
from cumin.errors import (
    EngineError,
    InputMovedError,
    KeyNotUniqueError,
    NonDeterministicBuildError,
    NotPartitionLocalError,
    ParameterError,
    StoreError,
)
from cumin.fingerprint import Part
from cumin.layout import Target
from cumin.lease import Lease, acquire
from cumin.needs import wait_for_sweeps
from cumin.planning import Plan, SubPlan, make_plan, only_partitions
from cumin.publishing import Needs, now, partition_path, publish
from cumin.recipe import Recipe
from cumin.store import Store, entry_path, unit_folder

if TYPE_CHECKING:  # pyarrow: what is there already needs none
    from cumin.units import Unit

Progress = Callable[[str], None]


def quiet(message: str) -> None:
    """The progress of a build that tells nobody."""


def build_recipe(
    recipe: Recipe, store: Store, *, force: bool = False, progress: Progress = quiet, plan: Plan | None = None
) -> Dataset:
    """The dataset of a recipe: found, waited for, or built.

    `force` runs the query even if the build is there, and compares (rebuild, check). A build whose files are missing
    or short is run again too, which puts them back. Raises RecipeError before
    anything runs, InputMovedError and NonDeterministicBuildError after; the store is whole in every case.
    """
    progress("planning")
    plan = plan or make_plan(recipe)
    if not force:
        found = existing(plan, store)
        if found is not None:
            damaged = store.damaged([file for unit in found.manifest["output"]["units"] for file in unit["files"]])
            if not damaged:
                return found
            progress(f"building again what is damaged: {damaged[0]}")
            force = True

    def done() -> bool:
        return not force and store.entry(plan.build_id) is not None

    def waiting(holder: Mapping[str, Any]) -> None:
        progress(f"waiting for the builder on {holder.get('host')} (process {holder.get('pid')})")

    try:
        lease = acquire(store, plan.build_id, done=done, waiting=waiting)
        if lease is None:
            other = existing(plan, store)
            if other is None:
                raise StoreError(f"{plan.build_id} was built by another, and is gone: gc took it. Build again.")
            return other
        try:
            store.reach("leased")
            return _run(plan, store, lease, progress)
        finally:
            lease.release()
    except OSError as error:
        raise StoreError(
            f"The store {store.place.url} cannot be written: {error}. The dataset was not published, and what the store "
            "held is untouched. Make room or give the right to write there, then build again."
        ) from error


def existing(plan: Plan, store: Store) -> Dataset | None:
    """The dataset of a plan if it is in the store. Raises NonDeterministicBuildError for an id in quarantine."""
    entry = store.entry(plan.build_id)
    if entry is None:
        return None
    conflicts = store.place.names(f"conflicts/{plan.build_id[3:]}")
    if conflicts:
        raise NonDeterministicBuildError(
            f"{plan.build_id} is in quarantine: it once gave {entry['content_id']}, and once another content "
            f"(conflicts/{plan.build_id[3:]}/ in the store). Make the query repeatable, or set salt= for a new id."
        )
    manifest = store.manifest(entry["manifest"])
    version, is_new = _named(plan, store, entry)
    if is_new and store.entry(plan.build_id) is None:
        return None  # gc was faster than its new name
    return Dataset(plan.recipe.name, plan.build_id, entry["content_id"], store, manifest, True, version)


def _named(plan: Plan, store: Store, entry: Mapping[str, Any]) -> tuple[int | None, bool]:
    """The version of the name that a hit has, and whether it is a new one. Nothing is written where it is the newest
    already; a store that cannot be written serves the hit without a version of its own."""
    name = plan.recipe.name
    newest = store.newest(name)
    if newest is not None and newest["build_id"] == plan.build_id:
        return int(newest["version"]), False
    try:
        version = store.add_version(name, plan.build_id, entry["content_id"], now())
    except OSError:
        return store.version_of(name, plan.build_id), False
    wait_for_sweeps(store, [entry_path(plan.build_id)])
    return version, True


def _run(plan: Plan, store: Store, lease: Lease, progress: Progress) -> Dataset:
    started, cpu = time.monotonic(), time.process_time()
    store.reach("planned")
    _check_keys(plan, progress)
    digits = plan.recipe.determinism.digits if plan.recipe.determinism.mode == "tolerant" else None
    needs = Needs(plan, store, lease)
    with store.staging() as folder:
        needs.add([f"staging/{folder.name}/"])
        ordered = plan.study.ordered or plan.recipe.determinism.mode == "single-thread"
        target = Target(folder, plan.recipe.partition_by, plan.recipe.order_key, plan.recipe.layout, digits, ordered)
        if plan.incremental:
            units, reused = _run_partitions(plan, store, needs, target, progress)
        else:
            progress("running the query")
            ran = _execute(plan, plan.executed, plan.state, target)
            store.reach("written")
            _check_moved(plan)
            progress("publishing")
            needs.add(unit_folder(unit.key(target)) for unit in ran)
            units, reused = [store.put_unit(unit, target) for unit in ran], 0
    store.reach("units-put")
    stats = {
        "wall_seconds": round(time.monotonic() - started, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "partitions_built": len(units) - reused,
        "partitions_reused": reused,
    }
    return publish(plan, store, needs, units, stats, digits)


def _execute(plan: Plan, sql: str, state: Mapping[str, Any], target: Target) -> list["Unit"]:
    for name, table in plan.tables.items():
        table.check(state[name])
    relations = {name: table.relation(state[name]) for name, table in plan.tables.items()}
    try:
        units = plan.recipe.engine.run(sql, relations, plan.recipe.udfs, target, plan.recipe.determinism)
    except (EngineError, OSError) as error:
        _check_moved(plan)  # a file that went away while it was read is no fault of the engine's or the store's
        _blame_parameters(plan.recipe, error)
        raise
    for unit in units:
        _check_schema(plan, unit)
    return units


def _check_schema(plan: Plan, unit: "Unit") -> None:
    """The plan is made over declared schemas, the run over files: what they say of the result must be the same."""
    from cumin.content import schema_form

    planned, ran = plan.study.schema_form, schema_form(unit.schema)
    if json.dumps(planned) != json.dumps(ran):
        shown = [f"{name}: {kind}" for name, kind in ((each[0], each[1]) for each in ran) if [name, kind] not in planned]
        raise EngineError(
            f"The query gives other columns over the files ({'; '.join(shown) or 'fewer'}) than planned over the schemas of "
            f"its inputs ({', '.join(each[0] for each in planned)}). Columns that depend on the data (PIVOT without IN) or "
            "on the file must be said: name them, or cast in the query. Nothing was published."
        )


def _blame_parameters(recipe: Recipe, error: Exception) -> None:
    """Raise ParameterError if the engine could not convert the text of a parameter: engines find that only in the run."""
    said = str(error).split("\n", 1)[0]  # the lines after it show the query, with every parameter
    for name, value in recipe.params.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, str) and each and (f"'{each}'" in said or f'"{each}"' in said):
                raise ParameterError(
                    f"The parameter {name!r} is the text {each!r}, and the engine had to convert that text and could "
                    f"not. Give a value of the type that the query needs (a date, a number).\n{error}"
                ) from error


def _check_keys(plan: Plan, progress: Progress) -> None:
    """Keys that make an order total are believed only after they were counted."""
    for name, key in plan.study.relied_keys.items():
        progress(f"checking that {', '.join(key)} is unique in {name}")
        plan.tables[name].check(plan.state[name])
        count = plan.recipe.engine.duplicates(plan.tables[name].relation(plan.state[name]), key)
        if count:
            raise KeyNotUniqueError(
                f"The input {name!r}: {count} rows share their key ({', '.join(key)}) with another, so the query's order is "
                "not total. Add columns to key= and to the ORDER BY, or remove the duplicates."
            )


def _check_moved(plan: Plan) -> None:
    moved = [path for name, table in plan.tables.items() for path in table.moved(plan.state[name])]
    if moved:
        shown = "\n  ".join(moved[:20]) + (f"\n  and {len(moved) - 20} more" if len(moved) > 20 else "")
        raise InputMovedError(f"{len(moved)} input files changed while the query ran; nothing was published:\n  {shown}")


# -- partition by partition -----------------------------------------------------------------------


def _run_partitions(
    plan: Plan, store: Store, needs: Needs, target: Target, progress: Progress
) -> tuple[list[dict[str, Any]], int]:
    """Build the partitions whose inputs changed, in one query; find the others by their own ids."""
    found: dict[str, dict[str, Any] | None] = {}
    missing = []
    for each in plan.subplans:
        record = store.record(partition_path(each.build_id))
        if record is None or (record["unit"] is not None and store.damaged(record["unit"]["files"])):
            missing.append(each)
        else:
            found[each.key] = record["unit"]
    reused = sum(unit is not None for unit in found.values())
    if missing:
        progress(f"building {len(missing)} of {len(plan.subplans)} partitions")
        ran = {unit.partition: unit for unit in _run_subplans(plan, missing, target, strays=True)}
        _refuse_strays(sorted(set(ran) - {each.key for each in missing}))
        _probe(plan, missing, ran, target, progress)
        store.reach("written")
        _check_moved(plan)
        progress("publishing")
        needs.add(unit_folder(unit.key(target)) for unit in ran.values())
        for each in missing:
            unit = store.put_unit(ran[each.key], target) if each.key in ran else None
            record = {"key": each.key, "unit": unit}
            if not store.put_record(partition_path(each.build_id), record):
                there = store.record(partition_path(each.build_id)) or record
                _same_unit(each, unit, there["unit"])
                if there["unit"] is not None and store.damaged(there["unit"]["files"]):
                    store.put_record(partition_path(each.build_id), record, replace=True)
            found[each.key] = unit
    units = [{**unit, "build_id": each.build_id} for each in plan.subplans if (unit := found[each.key]) is not None]
    return units, reused


def _refuse_strays(keys: list[str]) -> None:
    if keys:
        shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        raise NotPartitionLocalError(
            f"The query gives rows of {shown}, and no input has that partition, so an incremental build would lose "
            "them. Leave lookback out to build the whole, or keep those rows out with WHERE. Nothing was published."
        )


def _same_unit(plan: SubPlan, ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> None:
    if (ours or {}).get("content_id") != (theirs or {}).get("content_id"):
        raise NonDeterministicBuildError(f"The partition {plan.key} ({plan.build_id}) was built twice with different rows.")


def _run_subplans(plan: Plan, subplans: list[SubPlan], target: Target, *, strays: bool = False) -> list["Unit"]:
    state = _state_of(plan, subplans)
    return _execute(plan, only_partitions(plan, [each.key for each in subplans], strays=strays), state, target)


def _state_of(plan: Plan, subplans: list[SubPlan]) -> dict[str, dict[str, Part]]:
    """What these partitions of the output read."""
    return {
        name: {key: plan.state[name][key] for key in sorted({key for each in subplans for key in each.reads[name]})}
        for name in plan.tables
    }


def _around(plan: Plan, one: SubPlan) -> list[SubPlan]:
    """The partition and as many before it as it reads, two at least (or those after it, where there are none before)."""
    here = plan.subplans.index(one)
    count = max(2, *(len(each) for name, each in one.reads.items() if len(each) < len(plan.state[name])), 2)
    return plan.subplans[max(0, here - count + 1) : here + 1] if here else plan.subplans[:count]


def _probe(plan: Plan, built: list[SubPlan], ran: Mapping[str, "Unit"], target: Target, progress: Progress) -> None:
    """Build one partition again with more, or less, of the inputs in sight: its rows must be the same.

    Of several partitions built in one query, the last is built again from its own window alone; a single one is built
    again with twice its window in sight. This finds most look-backs that are too short; it is no proof (`cumin check
    --locality` compares every partition).
    """
    if len(plan.subplans) < 2:
        return
    last = built[-1]
    progress(f"checking that {last.key} depends on its look-back only")
    folder = target.folder / "probe"
    folder.mkdir()
    probe_target = Target(folder, target.partition_by, target.order_key, target.layout, target.digits)
    wider = [last] if len(built) > 1 else _around(plan, last)
    state = _state_of(plan, wider)
    again = _execute(plan, only_partitions(plan, [last.key]), state, probe_target)
    require_local(plan, last.key, ran.get(last.key), {unit.partition: unit for unit in again}.get(last.key))


def require_local(plan: Plan, key: str, one: "Unit | None", other: "Unit | None") -> None:
    """Raise NotPartitionLocalError if a partition's rows differ with what is in sight."""
    if (one.content_id if one else None) != (other.content_id if other else None):
        raise NotPartitionLocalError(
            f"The partition {key} has other rows when more of the inputs is in sight: the query reads beyond lookback="
            f"{dict(plan.recipe.lookback or {})}. Enlarge it, or leave lookback out to build the whole. Nothing was "
            "published."
        )
