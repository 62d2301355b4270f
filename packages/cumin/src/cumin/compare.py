"""What differs between two recipes (`why`, `plan`) and between two datasets (`diff`). Pure but for the row diff."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cumin.content import schema_form
from cumin.dataset import Dataset
from cumin.errors import ConfigError, StoreError
from cumin.lexer import canonical
from cumin.planning import Plan
from cumin.recipe import param_to_json
from cumin.schemas import read_schema
from cumin.store import Store

_SHOWN = 8


@dataclass(frozen=True)
class Change:
    """One field of a recipe that differs: where, before, after, and more lines for people."""

    field: str
    before: Any
    after: Any
    details: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As `cumin why --json` prints it."""
        return {"field": self.field, "before": self.before, "after": self.after, "details": list(self.details)}

    def lines(self) -> list[str]:
        """The change as a few lines of text."""
        if self.details:
            return [f"{self.field}:", *(f"    {each}" for each in self.details)]
        return [f"{self.field}: {_short(self.before)} -> {_short(self.after)}"]


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"type", "value"}:
        value = value["value"]
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 120 else text[:117] + "…"


def view_of_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a manifest that made its build id."""
    recipe = manifest["recipe"]
    form = recipe["form"]
    return {
        "text": recipe["text"],
        "query": canonical(recipe["text"], form["dialect"]),
        **{name: form[name] for name in ("dialect", "params", "engine", "udfs", "output", "determinism", "salt")},
        "inputs": {
            each["name"].lower(): {
                "strength": each["strength"],
                "identity": each["identity"],
                "schema": schema_form(read_schema(each["schema"])),
                "parts": {key: part["token"] for key, part in each["partitions"].items()},
                "listing": each["listing"],
            }
            for each in manifest["inputs"]
        },
    }


def view_of_plan(plan: Plan) -> dict[str, Any]:
    """The same of a plan."""
    form = plan.form
    return {
        "text": plan.rendered.text,
        "query": form["query"],
        **{name: form[name] for name in ("dialect", "engine", "udfs", "output", "determinism", "salt")},
        "params": {name: param_to_json(value) for name, value in form["params"].items()},
        "inputs": {
            name.lower(): {
                "strength": table.strength,
                "identity": table.identity,
                "schema": schema_form(table.schema),
                "parts": {key: part.token for key, part in plan.state[name].items()},
                "lines": {key: part.lines for key, part in plan.state[name].items()},
            }
            for name, table in plan.tables.items()
        },
    }


def recipe_changes(before: Mapping[str, Any], after: Mapping[str, Any], store: Store) -> list[Change]:
    """Field by field, why two recipes have different ids; empty if they have one."""
    changes = []
    if before["query"] != after["query"]:
        changes.append(Change("query", before["text"], after["text"], tuple(_text_diff(before["text"], after["text"]))))
    for name in ("dialect", "engine", "udfs", "output", "determinism", "salt", "params"):
        changes += _values(name, before[name], after[name])
    for name in sorted(before["inputs"].keys() | after["inputs"].keys()):
        changes += _input_changes(f"inputs.{name}", before["inputs"].get(name), after["inputs"].get(name), store)
    return changes


def _values(field: str, before: Any, after: Any) -> list[Change]:
    if before == after:
        return []
    typed = isinstance(before, Mapping) and set(before) == {"type", "value"}
    if isinstance(before, Mapping) and isinstance(after, Mapping) and not typed:
        return [
            change
            for key in sorted(before.keys() | after.keys())
            for change in _values(f"{field}.{key}", before.get(key), after.get(key))
        ]
    return [Change(field, before, after)]


def _text_diff(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def _input_changes(field: str, before: Any, after: Any, store: Store) -> list[Change]:
    if before is None or after is None:
        return [Change(field, "read" if before else None, "read" if after else None)]
    changes = [
        Change(f"{field}.{name}", before[name], after[name])
        for name in ("strength", "identity", "schema")
        if before[name] != after[name]
    ]
    old, new = before["parts"], after["parts"]
    differing = [key for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]
    gone, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    if not (differing or gone or added):
        return changes
    details = [*_keys("changed", differing), *_keys("no longer read", gone), *_keys("newly read", added)]
    details += _file_details(_lines(before, store), _lines(after, store), differing)
    moved = {"changed": differing, "gone": gone, "added": added}
    return [*changes, Change(f"{field}.partitions", moved, None, tuple(details))]


def _keys(what: str, keys: Sequence[str]) -> list[str]:
    if not keys:
        return []
    shown = ", ".join(key or "(the whole table)" for key in keys[:_SHOWN])
    return [f"{len(keys)} {what}: {shown}" + (" …" if len(keys) > _SHOWN else "")]


def _lines(side: Mapping[str, Any], store: Store) -> dict[str, list[str]]:
    if "lines" in side:
        return dict(side["lines"])
    try:
        record = store.record(f"listings/{side['listing'][:2]}/{side['listing']}.json")
    except StoreError:
        record = None  # the listing explains; without it the partitions are still named
    return dict(record["parts"]) if record else {}


def _file_details(before: dict[str, list[str]], after: dict[str, list[str]], keys: Sequence[str]) -> list[str]:
    from cumin.fingerprint import line_name

    details = []
    for key in keys[:_SHOWN]:
        if key not in before or key not in after:
            continue
        old = {line_name(text): text for text in before[key]}
        new = {line_name(text): text for text in after[key]}
        pieces = [f"{name} changed" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
        pieces += [f"{name} gone" for name in sorted(old.keys() - new.keys())]
        pieces += [f"{name} new" for name in sorted(new.keys() - old.keys())]
        if pieces:
            details.append(f"{key or 'files'}: " + ", ".join(pieces[:_SHOWN]) + (" …" if len(pieces) > _SHOWN else ""))
    return details


def data_changes(before: Dataset, after: Dataset) -> dict[str, Any]:
    """What differs in schema, columns and partitions, from the two manifests alone."""
    old, new = before.manifest["output"], after.manifest["output"]
    old_schema, new_schema = dict(_named(before)), dict(_named(after))
    shared = [name for name in old_schema if name in new_schema]
    old_units = {unit["partition"]: unit for unit in old["units"]}
    new_units = {unit["partition"]: unit for unit in new["units"]}
    common = sorted(old_units.keys() & new_units.keys())
    return {
        "equal": before.content_id == after.content_id,
        "content": [before.content_id, after.content_id],
        "rows": [old["rows"], new["rows"]],
        "columns_added": [name for name in new_schema if name not in old_schema],
        "columns_gone": [name for name in old_schema if name not in new_schema],
        "types_changed": {
            name: [old_schema[name], new_schema[name]] for name in shared if old_schema[name] != new_schema[name]
        },
        "columns_changed": [name for name in shared if old["columns"].get(name) != new["columns"].get(name)],
        "partitions_changed": [key for key in common if old_units[key]["content_id"] != new_units[key]["content_id"]],
        "partitions_added": sorted(new_units.keys() - old_units.keys()),
        "partitions_gone": sorted(old_units.keys() - new_units.keys()),
    }


def _named(dataset: Dataset) -> list[tuple[str, Any]]:
    return [(name, form) for name, form in schema_form(dataset.schema)]


def row_changes(before: Dataset, after: Dataset, key: Sequence[str], limit: int) -> dict[str, Any]:
    """Rows added, gone and changed by `key`; only files of partitions that differ are read."""
    from cumin.engines.duckdb_session import keyed_diff

    changes = data_changes(before, after)
    wrong = [column for column in key if column not in before.schema.names or column not in after.schema.names]
    if wrong or not key:
        raise ConfigError([f"--key {column}: not a column of both datasets." for column in wrong] or "--rows needs --key.")
    differing = set(changes["partitions_changed"] + changes["partitions_added"] + changes["partitions_gone"])
    same_parts = before.manifest["output"]["partition_by"] == after.manifest["output"]["partition_by"]
    sides = []
    for dataset in (before, after):
        units = dataset.manifest["output"]["units"]
        paths = [
            dataset.store.place.full(file["path"])
            for unit in units
            if not same_parts or unit["partition"] in differing
            for file in unit["files"]
        ]
        sides.append((paths, dataset))
    columns = [name for name in before.schema.names if name in after.schema.names and name not in key]
    return keyed_diff(sides[0], sides[1], list(key), columns, limit)
