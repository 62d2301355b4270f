"""The contract of an engine: small, so that another one (Trino, say) is one more file.

An engine opens a `Session` over the declared tables. Planning uses `catalogue` and `describe` only, and reads no data:
tables are bound by their schemas. Running gets the exact files of each table (`Relation`) and writes into `Target`'s
folder, sorted by partition columns and order key; it returns the units written.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cumin.inputs.base import Relation
from cumin.layout import Target
from cumin.modes import Catalogue, Determinism
from cumin.udfs import Udf

if TYPE_CHECKING:
    import pyarrow as pa

    from cumin.units import Unit


class Engine(ABC):
    """Which engine, with its settings. Frozen data."""

    dialect: str

    @abstractmethod
    def form(self, determinism: Determinism) -> dict[str, Any]:
        """What enters the build id: the name, the version as far as it changes results, the settings that do.
        Raises ConfigError if the engine cannot run in this mode."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the manifest keeps: `form` with exact versions and the settings that change no result."""

    def study_key(self) -> dict[str, Any] | None:
        """All of this engine that `Session` answers by, beside its arguments. None: no plan is kept for another time."""
        return None

    @abstractmethod
    def open(self, schemas: Mapping[str, "pa.Schema"], udfs: Mapping[str, Udf]) -> "Session":
        """A session for planning, with tables that are empty."""

    @abstractmethod
    def run(
        self,
        sql: str,
        relations: Mapping[str, Relation],
        udfs: Mapping[str, Udf],
        target: Target,
        determinism: Determinism,
    ) -> list["Unit"]:
        """Run the query over these files only. Raises EngineError, with the engine's own message."""

    @abstractmethod
    def duplicates(self, relation: Relation, key: tuple[str, ...]) -> int:
        """How many rows of a table share their key with another."""


class Session(ABC):
    """An engine with the tables' schemas bound. Close it after use."""

    catalogue: Catalogue

    @abstractmethod
    def describe(self, sql: str) -> "pa.Schema":
        """The schema that the query gives. Raises QueryError, with the engine's message, if it does not bind."""

    @abstractmethod
    def keep(
        self, filters: list[str], column_types: Mapping[str, "pa.DataType"], values: list[tuple[Any, ...]]
    ) -> list[bool]:
        """For each row of partition values: whether all filters may hold for it.

        The filters are in DuckDB's SQL. One that also holds where every column is NULL keeps everything: an outer
        join could tell the difference."""

    @abstractmethod
    def close(self) -> None:
        """Free what the session holds. May be called again."""
