"""cumin: a dataset is a query, its parameters and the state of its inputs; the same build is never run twice.

>>> ds = cumin.build("clicks", sql="sql/clicks.sql", params={"ds": date(2026, 1, 31)},
...                  inputs={"lake.events": cumin.hive("lake/events", partition="dt")}, partition_by="dt")
>>> ds.build_id, ds.content_id, ds.hit, ds.files()
"""

from typing import Any

from cumin.api import build, load, make_recipe, open_store, plan
from cumin.content import content_id
from cumin.dataset import Dataset
from cumin.determinism import Determinism
from cumin.engines.duckdb_engine import duckdb
from cumin.errors import (
    ConfigError,
    CorruptError,
    CuminError,
    DeterminismError,
    EngineError,
    InputError,
    InputMovedError,
    KeyNotUniqueError,
    NonDeterministicBuildError,
    NotFoundError,
    NotPartitionLocalError,
    ParameterError,
    QueryError,
    RecipeError,
    StoreError,
    StoreFormatError,
)
from cumin.inputs.delta import delta
from cumin.inputs.files import files, hive
from cumin.inputs.iceberg import iceberg
from cumin.store import Store
from cumin.udfs import udf
from cumin.units import Layout

__all__ = [
    # build
    "build", "plan", "load", "make_recipe", "open_store", "Dataset", "Store", "Layout", "Determinism", "content_id", "udf",
    # inputs and engines
    "files", "hive", "delta", "iceberg", "duckdb", "spark",
    # errors
    "CuminError", "RecipeError", "QueryError", "ParameterError", "InputError", "DeterminismError", "ConfigError",
    "KeyNotUniqueError", "InputMovedError", "NotPartitionLocalError", "NonDeterministicBuildError", "EngineError",
    "StoreError", "NotFoundError", "CorruptError", "StoreFormatError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`cumin.spark`, imported only when it is asked for: pyspark is an extra."""
    if name != "spark":
        raise AttributeError(f"module 'cumin' has no attribute {name!r}")
    try:
        from cumin.engines.spark_engine import spark
    except ImportError as error:
        raise ConfigError("cumin.spark needs the package pyspark: pip install 'cumin[spark]'.") from error
    return spark
