"""A dataset described by plain values: a YAML file, a hydra node, a manifest. The same checks for all three."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cumin.api import make_recipe
from cumin.dataset import load
from cumin.engines.base import Engine
from cumin.engines.duckdb_engine import duckdb
from cumin.errors import ConfigError
from cumin.inputs.base import Input
from cumin.inputs.dataset import DatasetInput
from cumin.inputs.files import files, hive
from cumin.layout import Layout
from cumin.modes import Determinism
from cumin.recipe import Recipe, parse_param
from cumin.store import Store, open_store
from cumin.udfs import Udf

Made = TypeVar("Made")

FIELDS = (
    "name", "sql", "sql_file", "params", "inputs", "engine", "partition_by", "order_key", "determinism", "salt", "layout",
    "lookback", "partitions", "store",
)  # fmt: skip


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values in a dataset file. Raises ConfigError if it is no YAML mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The dataset file {os.fspath(path)} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The dataset file {os.fspath(path)} holds a {type(values).__name__}; it must hold fields.")
    return values


def recipe_from(
    values: Mapping[str, Any],
    *,
    folder: str | os.PathLike[str] = ".",
    overrides: Mapping[str, str] | None = None,
    store: Store | None = None,
    udfs: Mapping[str, Udf] | None = None,
) -> Recipe:
    """A recipe from plain values. Paths in them are relative to `folder`; `overrides` replace parameters, as text."""
    problems = [f"The field {key!r} is not known. Allowed: {', '.join(FIELDS)}." for key in values if key not in FIELDS]
    if not values.get("name"):
        problems.append("The field 'name' is missing.")
    if bool(values.get("sql")) == bool(values.get("sql_file")):
        problems.append("Give one of 'sql' (the text) and 'sql_file' (a path).")
    params = dict(values.get("params") or {})
    for key, text in (overrides or {}).items():
        if key not in params:
            problems.append(f"-p {key}: no such parameter. Declared: {', '.join(params) or 'none'}.")
            continue
        try:
            params[key] = parse_param(text, params[key], key)
        except ConfigError as error:
            problems += error.problems
    inputs = _each(values.get("inputs") or {}, lambda each: input_from(each, folder=folder, store=store), "input", problems)
    if problems:
        raise ConfigError(problems)
    how = values.get("determinism") or "strict"
    return make_recipe(
        str(values["name"]),
        sql=values["sql"] if values.get("sql") else Path(folder, str(values["sql_file"])),
        inputs=inputs,
        params=params,
        engine=engine_from(values.get("engine") or {}),
        partition_by=values.get("partition_by") or (),
        order_key=values.get("order_key") or (),
        determinism=how if isinstance(how, str) else _made(Determinism, _tuples(how), "determinism"),
        salt=values.get("salt"),
        layout=_made(Layout, values["layout"], "layout") if values.get("layout") else None,
        lookback=values.get("lookback"),
        partitions=values.get("partitions"),
        udfs=udfs,
    )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _each(values: Mapping[str, Any], make: Callable[[Any], Any], what: str, problems: list[str]) -> dict[str, Any]:
    made = {}
    for name, each in values.items():
        try:
            made[name] = make(each)
        except ConfigError as error:
            problems += [f"The {what} {name!r}: {problem}" for problem in error.problems]
    return made


def _made(kind: Callable[..., Made], values: Mapping[str, Any], what: str) -> Made:
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{what}: {str(error).split(') ')[-1]}") from error


def input_from(values: Mapping[str, Any], *, folder: str | os.PathLike[str] = ".", store: Store | None = None) -> Input:
    """An input from its description: ``{kind: hive, root: …, partition: dt}`` and so on. None stands for left out."""
    given = {key: value for key, value in values.items() if value is not None}
    kind = given.pop("kind", None)

    def near(path: str) -> str:
        return path if "://" in path else os.path.join(folder, path)

    if kind == "files":
        paths = given.pop("paths", None) or given.pop("path", [])
        paths = [paths] if isinstance(paths, str) else list(paths)
        if not paths:
            raise ConfigError("kind files needs 'paths'.")
        return _made(lambda **rest: files([near(path) for path in paths], **rest), given, "files")
    if kind == "hive":
        given["root"] = near(str(given.get("root", "")))
        return _made(hive, given, "hive")
    if kind == "delta":
        from cumin.inputs.delta import delta

        given["uri"] = near(str(given.get("uri", "")))
        return _made(delta, given, "delta")
    if kind == "iceberg":
        from cumin.inputs.iceberg import iceberg

        return _made(iceberg, given, "iceberg")
    if kind == "cumin":
        where = open_store(given["store"] if "store" in given and "://" in given["store"] else
                           near(given["store"]) if "store" in given else store)  # fmt: skip
        spec = given.get("build_id") or given.get("dataset")
        if not spec:
            raise ConfigError("kind cumin needs 'dataset' (name, name@v3, a build id).")
        unknown = sorted(set(given) - {"store", "build_id", "dataset", "key"})
        if unknown:
            raise ConfigError(f"kind cumin: {', '.join(unknown)} is not known. Allowed: dataset, store, build_id, key.")
        return DatasetInput(dataset=load(str(spec), where), key=tuple(given.get("key", ())))
    raise ConfigError(f"kind {kind!r} is not known. Allowed: files, hive, delta, iceberg, cumin.")


def engine_from(values: Mapping[str, Any]) -> Engine:
    """An engine from its description: ``{kind: duckdb, threads: 2}``. What only a manifest knows is left out."""
    given = {key: value for key, value in values.items() if value is not None and key not in ("version",)}
    kind = given.pop("kind", None) or given.pop("name", "duckdb")
    given.pop("name", None)
    if kind == "duckdb":
        return _made(duckdb, given, "engine")
    if kind == "spark":
        from cumin.engines.spark_engine import spark

        return _made(spark, given, "engine")
    raise ConfigError(f"The engine {kind!r} is not known. Allowed: duckdb, spark.")


def range_of(text: str) -> tuple[str, ...]:
    """``2026-01-01..2026-01-31`` or ``a,b,c`` as the `partitions` of a recipe; the plan reads them in the column's type."""
    first, dots, last = text.partition("..")
    return (first, last) if dots else tuple(text.split(","))
