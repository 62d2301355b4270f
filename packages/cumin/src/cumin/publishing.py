"""Publishing a build: its manifest, its entry, its name; and what it leans on meanwhile."""

import platform
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cumin.dataset import Dataset
from cumin.encoding import digest
from cumin.errors import NonDeterministicBuildError, NotFoundError
from cumin.lease import Lease
from cumin.needs import declare
from cumin.planning import Plan
from cumin.recipe import lookback_to_json, param_to_json
from cumin.schemas import write_schema
from cumin.store import Store, entry_path, manifest_path, to_json

if TYPE_CHECKING:  # pyarrow: what is there already needs none
    from cumin.content import RowSum


def now() -> str:
    """The time, in UTC, as a manifest writes it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def partition_path(build_id: str) -> str:
    """Where the record of an incremental build's partition lies."""
    return f"partitions/{build_id[3:5]}/{build_id[3:]}.json"


class Needs:
    """What this build leans on in the store, so that gc lets it be; more of it with each step."""

    def __init__(self, plan: Plan, store: Store, lease: Lease) -> None:
        self._store, self._path = store, lease.needs
        self._paths = {entry_path(plan.build_id), *(_listing_path(_listing(plan, name)[1]) for name in plan.tables)}
        self._paths |= {partition_path(each.build_id) for each in plan.subplans}

    def add(self, paths: Iterable[str]) -> None:
        """Say that these are needed too, before it is looked whether they are there."""
        self._paths |= set(paths)
        declare(self._store, self._path, self._paths)


def publish(
    plan: Plan, store: Store, needs: Needs, units: list[dict[str, Any]], stats: dict[str, Any], digits: int | None
) -> Dataset:
    """Write manifest, entry and name of a build whose units are in the store. Raises NonDeterministicBuildError if the
    build is there with other rows: both are kept."""
    from cumin.content import RowSum

    total = RowSum(digits)
    for unit in units:
        total.merge(RowSum.from_json(unit, digits=digits))
    content_id = total.content_id(plan.schema)
    before = store.entry(plan.build_id)
    lost = False
    if before is not None and before["content_id"] == content_id:  # built again: the first manifest stays the one
        manifest = _whole_manifest(store, before["manifest"])
        if manifest is not None:
            version = store.add_version(plan.recipe.name, plan.build_id, content_id, now())
            return Dataset(plan.recipe.name, plan.build_id, content_id, store, manifest, False, version)
        lost = True  # the same rows in other files: a new manifest takes the place of the one whose files are gone
    manifest = _manifest(plan, store, content_id, total, units, stats)
    needs.add([manifest_path(blake3(to_json(manifest)).hexdigest())])
    manifest_hash = store.put_manifest(manifest)
    store.reach("manifest-put")
    entry = {"build_id": plan.build_id, "content_id": content_id, "manifest": manifest_hash}
    there = store.put_entry(plan.build_id, entry, replace=lost)
    store.reach("entry-put")
    if there["content_id"] != content_id:
        path = f"conflicts/{plan.build_id[3:]}/{manifest_hash}.json"
        store.put_record(path, entry)
        raise NonDeterministicBuildError(
            f"{plan.build_id} gave {there['content_id']} before and gives {content_id} now. Both are kept, and the id is in "
            "quarantine. Run `cumin check --twice`; make the query repeatable, or set salt= for a new id."
        )
    if there["manifest"] != manifest_hash:
        manifest = store.manifest(there["manifest"])
    version = store.add_version(plan.recipe.name, plan.build_id, content_id, now())
    store.reach("named")
    return Dataset(plan.recipe.name, plan.build_id, content_id, store, manifest, False, version)


def _whole_manifest(store: Store, digest: str) -> dict[str, Any] | None:
    """The manifest, if it and its files are there."""
    with suppress(NotFoundError):
        manifest = store.manifest(digest)
        if not store.damaged([file for unit in manifest["output"]["units"] for file in unit["files"]]):
            return manifest
    return None


def _manifest(
    plan: Plan, store: Store, content_id: str, total: "RowSum", units: list[dict[str, Any]], stats: dict[str, Any]
) -> dict[str, Any]:
    recipe = plan.recipe
    return {
        "format": 1,
        "name": recipe.name,
        "build_id": plan.build_id,
        "content_id": content_id,
        "created": now(),
        "tool": {
            "cumin": metadata.version("cumin"),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("pyarrow", "sqlglot", "duckdb")},
        },
        "recipe": {
            "form": _jsonable(plan.form),
            "template": recipe.sql,
            "text": plan.rendered.text,
            "executed": plan.executed,
            "source_file": recipe.source_file,
            "params": {name: param_to_json(value) for name, value in recipe.params.items()},
            "engine": recipe.engine.describe(),
            "udfs": sorted(recipe.udfs),
            "determinism": {"mode": recipe.determinism.mode, "digits": recipe.determinism.digits,
                            "scale": recipe.determinism.scale, "allow": list(recipe.determinism.allow)},
            "lookback": lookback_to_json(recipe.lookback) if recipe.lookback is not None else None,
            "partitions": [param_to_json(each) for each in recipe.partitions] if recipe.partitions is not None else None,
            "salt": recipe.salt,
            "keys_checked": {name: list(key) for name, key in plan.study.relied_keys.items()},
            "passed": plan.passed,
        },
        "inputs": [_input(plan, name, store) for name in plan.tables],
        "output": {
            "schema": write_schema(plan.schema),
            "partition_by": list(recipe.partition_by),
            "order_key": list(recipe.order_key),
            **total.to_json(),
            "bytes": sum(file["size"] for unit in units for file in unit["files"]),
            "units": units,
        },
        "layout": recipe.layout.form(),
        "git": _git(),
        "stats": stats,
    }  # fmt: skip


def _listing(plan: Plan, name: str) -> tuple[dict[str, list[str]], str]:
    """The files of an input as the plan saw them, and their hash."""
    listing = {key: part.lines for key, part in plan.state[name].items()}
    return listing, digest("cumin/listing", listing)


def _listing_path(listing_hash: str) -> str:
    return f"listings/{listing_hash[:2]}/{listing_hash}.json"


def _input(plan: Plan, name: str, store: Store) -> dict[str, Any]:
    table, parts = plan.tables[name], plan.state[name]
    listing, listing_hash = _listing(plan, name)
    store.put_record(_listing_path(listing_hash), {"parts": listing})
    return {
        "name": name,
        "kind": table.kind,
        "root": table.root,
        "source": {**plan.recipe.inputs[name].describe(), **table.pinned()},
        "strength": table.strength,
        "identity": table.identity,
        "schema": write_schema(table.schema),
        "partitions": {
            key: {"token": part.token, "files": len(part.lines), "bytes": part.bytes} for key, part in parts.items()
        },
        "listing": listing_hash,
        "parents": table.parents(),
    }


def _jsonable(form: Mapping[str, Any]) -> Any:
    """The form for people to read in a manifest; ids are never made from it."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value if value is None or isinstance(value, (bool, int, str)) else param_to_json(value)

    result = plain({key: value for key, value in form.items() if key not in ("query", "inputs")})
    to_json(result)
    return result


def _git() -> dict[str, Any] | None:
    """The commit of the working folder, if it is a repository."""
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True)
        return {"commit": commit.stdout.strip(), "dirty": bool(dirty.stdout.strip())}
    return None
