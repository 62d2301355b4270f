"""cumin: a dataset is a query, its parameters and the state of its inputs; the same build is never run twice.

>>> ds = cumin.build("clicks", sql="sql/clicks.sql", params={"ds": date(2026, 1, 31)},
...                  inputs={"lake.events": cumin.hive("lake/events", partition="dt")}, partition_by="dt")
>>> ds.build_id, ds.content_id, ds.hit, ds.files()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from cumin.install import how_to_install

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cumin.api import build, load, make_recipe, plan
    from cumin.content import content_id
    from cumin.dataset import Dataset
    from cumin.engines.duckdb_engine import duckdb
    from cumin.inputs.delta import delta
    from cumin.inputs.files import files, hive
    from cumin.inputs.iceberg import iceberg
    from cumin.layout import Layout
    from cumin.modes import Determinism
    from cumin.store import Store, open_store
    from cumin.udfs import udf

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


# Each is imported when it is first asked for, so that `cumin log` need not wait for an SQL parser and an engine.
_WHERE = {
    "cumin.api": ("build", "load", "make_recipe", "plan"),
    "cumin.content": ("content_id",),
    "cumin.dataset": ("Dataset",),
    "cumin.modes": ("Determinism",),
    "cumin.engines.duckdb_engine": ("duckdb",),
    "cumin.inputs.delta": ("delta",),
    "cumin.inputs.files": ("files", "hive"),
    "cumin.inputs.iceberg": ("iceberg",),
    "cumin.store": ("Store", "open_store"),
    "cumin.udfs": ("udf",),
    "cumin.layout": ("Layout",),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in ("hydra", "mlflow"):
        try:
            return import_module(f"cumin.{name}")
        except ModuleNotFoundError as error:
            raise ConfigError(f"cumin.{name} needs {error.name}: {how_to_install(name)}.") from error
    if name == "spark":
        try:
            from cumin.engines.spark_engine import spark
        except ImportError as error:
            raise ConfigError(f"cumin.spark needs the package pyspark: {how_to_install('spark')}.") from error
        return spark
    if name not in _MODULE:
        raise AttributeError(f"module 'cumin' has no attribute {name!r}")
    value = getattr(import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
