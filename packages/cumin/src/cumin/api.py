"""The public functions: build, load, plan."""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from cumin import building, planning
from cumin.dataset import Dataset
from cumin.dataset import load as load_dataset
from cumin.engines.base import Engine
from cumin.engines.duckdb_engine import DuckDB
from cumin.errors import ConfigError, QueryError
from cumin.inputs.base import Input
from cumin.inputs.dataset import DatasetInput
from cumin.layout import Layout
from cumin.modes import Determinism
from cumin.recipe import Recipe, lookback_from, names
from cumin.store import StoreLike, open_store
from cumin.udfs import Udf


def make_recipe(
    name: str,
    *,
    sql: str | os.PathLike[str],
    inputs: Mapping[str, Input | Dataset],
    params: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    partition_by: str | Sequence[str] = (),
    order_key: str | Sequence[str] = (),
    determinism: Determinism | str = "strict",
    udfs: Mapping[str, Udf] | None = None,
    salt: str | None = None,
    layout: Layout | None = None,
    lookback: Mapping[str, int | timedelta] | None = None,
    partitions: Sequence[Any] | None = None,
) -> Recipe:
    """A recipe from what a caller writes. `sql` is a text, or a path (an `os.PathLike`, or text that ends in .sql)."""
    text, file = read_sql(sql)
    wrong = [f"The input {key!r} is a {type(each).__qualname__}; write cumin.files, hive, delta, iceberg, or a Dataset."
             for key, each in inputs.items() if not isinstance(each, (Input, Dataset))]  # fmt: skip
    if wrong:
        raise ConfigError(wrong)
    return Recipe(
        name=name,
        sql=text,
        params=dict(params or {}),
        inputs={key: DatasetInput(dataset=each) if isinstance(each, Dataset) else each for key, each in inputs.items()},
        engine=engine or DuckDB(),
        partition_by=names(partition_by),
        order_key=names(order_key),
        determinism=Determinism(determinism) if isinstance(determinism, str) else determinism,
        udfs=dict(udfs or {}),
        salt=salt,
        layout=layout or Layout(),
        lookback={name: lookback_from(each) for name, each in lookback.items()} if lookback is not None else None,
        partitions=tuple(partitions) if partitions is not None else None,
        source_file=file,
    )


def read_sql(sql: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The text of a query and the file that it came from."""
    if isinstance(sql, str) and not (sql.endswith(".sql") and "\n" not in sql):
        return sql, None
    try:
        return Path(sql).read_text(encoding="utf-8"), os.fspath(sql)
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"The query file {os.fspath(sql)} cannot be read: {error}") from error


def build(
    name: str,
    *,
    store: StoreLike = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: building.Progress = building.quiet,
    **recipe: Any,
) -> Dataset:
    """The dataset `name`: found if the same was built before, waited for if someone builds it, built otherwise.

    The keywords are those of `make_recipe`: sql, inputs, params, engine, partition_by, order_key, determinism, udfs,
    salt, layout, lookback, partitions. Raises RecipeError (before anything runs), InputMovedError,
    NonDeterministicBuildError, EngineError, StoreError; see `cumin.errors`.
    """
    made = make_recipe(name, **recipe)
    return building.build_recipe(made, open_store(store, storage_options), progress=progress)


def plan(name: str, **recipe: Any) -> planning.Plan:
    """What `build` would run, and its build id; nothing is run or written."""
    return planning.make_plan(make_recipe(name, **recipe))


def load(spec: str, *, store: StoreLike = None, storage_options: Mapping[str, Any] | None = None) -> Dataset:
    """A dataset by ``name``, ``name@v3``, ``name@label``, build id or content id. Raises NotFoundError."""
    return load_dataset(spec, open_store(store, storage_options))
