"""DuckDB in the process, the default engine: its settings. `duckdb_session` does the work, and imports DuckDB.

The two are apart so that a plan which finds everything in its cache need not wait for DuckDB's import.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cumin.engines.base import Engine
from cumin.errors import ConfigError
from cumin.inputs.base import Relation
from cumin.layout import Target
from cumin.modes import Determinism
from cumin.udfs import Udf
from cumin.versions import version

if TYPE_CHECKING:
    import pyarrow as pa

    from cumin.engines.duckdb_session import DuckDBSession
    from cumin.units import Unit

VERSION_POLICIES = ("exact", "minor", "major", "ignore")


@dataclass(frozen=True)
class DuckDB(Engine):
    """DuckDB with its settings. `threads` and `memory_limit` change no result and enter no id."""

    threads: int | None = None
    memory_limit: str | None = None
    timezone: str = "UTC"
    version_policy: str = "minor"
    preserve_insertion_order: bool = True
    dialect = "duckdb"

    def form(self, determinism: Determinism) -> dict[str, Any]:
        """The version as far as `version_policy` lets it in, and the time zone."""
        form: dict[str, Any] = {
            "name": "duckdb",
            "version": version_part(version("duckdb"), self.version_policy),
            "version_policy": self.version_policy,
            "timezone": self.timezone,
        }
        if determinism.mode == "single-thread":
            form["threads"] = 1
        return form

    def describe(self) -> dict[str, Any]:
        return {"name": "duckdb", "version": version("duckdb"), "threads": self.threads, "timezone": self.timezone,
                "memory_limit": self.memory_limit, "version_policy": self.version_policy}  # fmt: skip

    def study_key(self) -> dict[str, Any]:
        return {"name": "duckdb", "version": version("duckdb"), "timezone": self.timezone}

    def open(self, schemas: Mapping[str, "pa.Schema"], udfs: Mapping[str, Udf]) -> "DuckDBSession":
        from cumin.engines.duckdb_session import DuckDBSession

        return DuckDBSession(self, schemas, udfs)

    def run(
        self,
        sql: str,
        relations: Mapping[str, Relation],
        udfs: Mapping[str, Udf],
        target: Target,
        determinism: Determinism,
    ) -> list["Unit"]:
        """In a connection of its own that reads nothing but these files."""
        from cumin.engines import duckdb_session

        return duckdb_session.run(self, sql, relations, udfs, target, determinism)

    def duplicates(self, relation: Relation, key: tuple[str, ...]) -> int:
        from cumin.engines import duckdb_session

        return duckdb_session.duplicates(self, relation, key)


def duckdb(
    *,
    threads: int | None = None,
    memory_limit: str | None = None,
    timezone: str = "UTC",
    version_policy: str = "minor",
) -> DuckDB:
    """DuckDB in this process. `version_policy` says which part of DuckDB's version enters the build id: ``exact``,
    ``minor`` (2.0), ``major`` (2) or ``ignore``. `timezone` enters it too."""
    if version_policy not in VERSION_POLICIES:
        raise ConfigError(f"version_policy={version_policy!r}. Allowed: {', '.join(VERSION_POLICIES)}.")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads={threads}; allowed: 1 or more.")
    return DuckDB(threads=threads, memory_limit=memory_limit, timezone=timezone, version_policy=version_policy)


def version_part(full: str, policy: str) -> str:
    """The part of a version that a policy lets into an id."""
    pieces = full.split(".")
    return {"exact": full, "minor": ".".join(pieces[:2]), "major": pieces[0], "ignore": ""}[policy]
