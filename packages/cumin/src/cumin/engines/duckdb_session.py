"""What DuckDB does for a plan and for a run. The only file that imports it; its settings are `duckdb_engine`'s."""

import atexit
import os
import re
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import duckdb as engine
import pyarrow as pa

from cumin.engines.base import Session
from cumin.engines.duckdb_engine import DuckDB
from cumin.engines.scanning import released
from cumin.errors import ConfigError, EngineError, QueryError
from cumin.functions import BARE_CLOCK
from cumin.inputs.base import Relation
from cumin.layout import Target
from cumin.modes import Catalogue, Determinism
from cumin.udfs import Udf
from cumin.units import Unit, write_units

_WORDS = re.compile(r"[a-z_]\w*")
BATCH_ROWS = 122_880  # DuckDB's own row group
_NO_EXTENSIONS = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
_PATTERN = frozenset("*?[")
_NO_BAR = "SET enable_progress_bar = false"  # it goes to stdout after two seconds, into what `--json` prints
# The same in every engine: the first 60 bits of MD5 over the seed and the key's text.
HASH_MOD = (
    "CREATE TEMP MACRO hash_mod(k, n, seed) AS (('0x' || left(md5(concat(seed, ':', CAST(k AS VARCHAR))), 15))::BIGINT % n)"
)


def run(
    settings: DuckDB,
    sql: str,
    relations: Mapping[str, Relation],
    udfs: Mapping[str, Udf],
    target: Target,
    determinism: Determinism,
) -> list[Unit]:
    """See `Engine.run`."""
    threads = 1 if determinism.mode == "single-thread" else settings.threads
    with _connection(settings, udfs, threads=threads, spill=str(target.folder / ".spill")) as connection:
        by = [f'"{_quoted(name)}"' for name in (*target.partition_by, *target.order_key)]
        if by:
            sql = f"SELECT * FROM (\n{sql}\n) AS cumin_rows ORDER BY {', '.join(by)}"
        try:
            for name, relation in relations.items():
                _bind(connection, name, relation)
            _lock(connection, relations, target)
            reader = _reader(connection.sql(sql))
            return write_units(reader, reader.schema, target)
        except (engine.Error, pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a full disk is not the engine's fault
            raise EngineError(f"DuckDB failed: {error}") from error


def duplicates(settings: DuckDB, relation: Relation, key: tuple[str, ...]) -> int:
    """See `Engine.duplicates`."""
    columns = ", ".join(f'"{_quoted(name)}"' for name in key)
    with _connection(settings, {}, threads=settings.threads) as connection:
        try:
            _bind(connection, "t", relation)
            rows = connection.execute(
                f"SELECT coalesce(sum(n), 0) FROM (SELECT count(*) n FROM t GROUP BY {columns} HAVING count(*) > 1)"
            ).fetchall()
        except engine.Error as error:
            raise EngineError(f"DuckDB failed: {error}") from error
        return int(rows[0][0])


@contextmanager
def _connection(
    settings: DuckDB, udfs: Mapping[str, Udf], *, threads: int | None = None, spill: str | None = None
) -> Iterator[engine.DuckDBPyConnection]:
    config: dict[str, Any] = dict(_NO_EXTENSIONS)
    if threads is not None:
        config["threads"] = threads
    if settings.memory_limit is not None:
        config["memory_limit"] = settings.memory_limit
    if spill is not None:
        config["temp_directory"] = spill
    connection = engine.connect(":memory:", config=config)
    try:
        connection.execute("SET TimeZone = ?", [settings.timezone])
        connection.execute(f"SET preserve_insertion_order = {str(settings.preserve_insertion_order).lower()}")
        connection.execute("SET python_enable_replacements = false")  # a variable of the caller's is no table
        connection.execute(_NO_BAR)
        connection.execute(HASH_MOD)
        for name, udf in udfs.items():
            kinds: Any = [_type_name(connection, kind) for kind in udf.arguments]
            connection.create_function(name, udf.function, kinds, _type_name(connection, udf.returns))
        yield connection
    finally:
        connection.close()


class DuckDBSession(Session):
    """A connection with empty tables."""

    def __init__(self, settings: DuckDB, schemas: Mapping[str, pa.Schema], udfs: Mapping[str, Udf]) -> None:
        # Functions and catalogs are seen by a whole instance; all else is a session's own in the shared one.
        alone = bool(udfs) or any(name.count(".") > 1 for name in schemas)
        self._manager = _connection(settings, udfs, threads=1) if alone else _shared_session(settings.timezone)
        self._connection: engine.DuckDBPyConnection | None = self._manager.__enter__()
        self._tables = []
        for index, (name, schema) in enumerate(schemas.items()):
            empty = pa.Table.from_batches([], schema)
            self._tables.append(empty)  # DuckDB does not keep it alive
            self._connection.register(f"cumin_input_{index}", empty)
            _view(self._connection, name, f"SELECT * FROM cumin_input_{index}")
        self.catalogue = _catalogue().without(name.lower() for name in udfs)
        if alone:
            self._connection.execute("SET enable_external_access = false")

    def describe(self, sql: str) -> pa.Schema:
        """From the reader of a result that is never fetched."""
        assert self._connection is not None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _reader(self._connection.sql(sql)).schema
        except engine.Error as error:
            raise QueryError(f"The query does not bind: {error}") from error

    def keep(self, filters: list[str], column_types: Mapping[str, pa.DataType], values: list[tuple[Any, ...]]) -> list[bool]:
        """By a query over the values; a filter that cannot be worked out on them keeps everything."""
        assert self._connection is not None
        rows = [*values, tuple(None for _ in column_types)]
        # As parameters and not as an Arrow table: pyarrow imports pandas for every array that it makes from a list.
        lists = [list(range(len(rows))), *map(list, zip(*rows, strict=True))]
        names = ["cumin_row", *(_quoted(name.lower()) for name in column_types)]
        types = ["BIGINT", *(_type_name(self._connection, kind) for kind in column_types.values())]
        shown = ", ".join(f'CAST(unnest(?) AS {kind}) AS "{name}"' for name, kind in zip(names, types, strict=True))
        self._connection.execute(f"CREATE TEMP TABLE cumin_partitions AS SELECT {shown}", lists)
        kept = [True] * len(rows)
        try:
            for condition in filters:
                try:
                    found = self._connection.execute(f"SELECT cumin_row FROM cumin_partitions WHERE {condition}").fetchall()
                except engine.Error:
                    continue  # not to be worked out beforehand: every partition is read
                true = {row[0] for row in found}
                if len(rows) - 1 not in true:
                    kept = [value and index in true for index, value in enumerate(kept)]
        finally:
            self._connection.execute("DROP TABLE cumin_partitions")
        return kept[:-1]

    def close(self) -> None:
        if self._connection is not None:
            self._connection = None
            self._manager.__exit__(None, None, None)


@cache
def _catalogue() -> Catalogue:
    """What DuckDB says of its own functions; asked once in a process. A macro is as what it is made of."""
    with _shared_session("UTC") as connection:
        rows = connection.execute(
            "SELECT lower(function_name), function_type, stability, macro_definition FROM duckdb_functions()"
        ).fetchall()  # fmt: skip
    volatile = {name for name, _, stability, _ in rows if stability == "VOLATILE"}
    clock = {name for name, _, stability, _ in rows if stability == "CONSISTENT_WITHIN_QUERY"} | BARE_CLOCK
    macros = {(name, frozenset(_WORDS.findall(text.lower()))) for name, kind, _, text in rows if kind == "macro" and text}
    grown = True
    while grown:
        before = len(volatile) + len(clock)
        volatile |= {name for name, words in macros if words & volatile}
        clock |= {name for name, words in macros if words & clock}
        grown = len(volatile) + len(clock) > before
    aggregates = {name for name, kind, _, _ in rows if kind == "aggregate"}
    scalars = {name for name, kind, _, _ in rows if kind in ("scalar", "macro")}
    tables = {name for name, kind, _, _ in rows if kind in ("table", "table_macro", "pragma")}
    return Catalogue(*map(frozenset, (volatile, aggregates - scalars, clock, tables - scalars - aggregates)))


# To start DuckDB takes tens of milliseconds, and a plan needs a few. So plans share one instance, made at the first of a
# process (a forked one makes its own): it reads no files, and each session has a connection and a database of its own.
_shared: tuple[int, engine.DuckDBPyConnection] | None = None
_shared_lock = threading.Lock()


@contextmanager
def _shared_session(timezone: str) -> Iterator[engine.DuckDBPyConnection]:
    global _shared
    with _shared_lock:
        if _shared is None or _shared[0] != os.getpid():
            root = engine.connect(":memory:", config={**_NO_EXTENSIONS, "threads": 1})
            root.execute("SET python_enable_replacements = false")
            root.execute("SET enable_external_access = false")
            if _shared is None:
                atexit.register(_close_shared)
            _shared = os.getpid(), root
        connection = _shared[1].cursor()
    own = f"cumin_{uuid.uuid4().hex}"
    try:
        connection.execute(f"ATTACH ':memory:' AS {own}")
        connection.execute(f"USE {own}")
        connection.execute("SET TimeZone = ?", [timezone])
        connection.execute(_NO_BAR)
        connection.execute(HASH_MOD)
        yield connection
    finally:
        connection.execute("USE memory")
        connection.execute(f"DETACH {own}")
        connection.close()


def _close_shared() -> None:
    if _shared is not None and _shared[0] == os.getpid():
        _shared[1].close()


def _reader(relation: Any) -> pa.RecordBatchReader:
    """Arrow batches of a relation; the method's name moved between DuckDB's versions."""
    for name in ("to_arrow_reader", "fetch_arrow_reader", "fetch_record_batch"):
        if hasattr(relation, name):
            return getattr(relation, name)(BATCH_ROWS)
    raise EngineError(f"DuckDB {engine.__version__} gives no Arrow reader; cumin needs 1.3 or newer.")


def _type_name(connection: engine.DuckDBPyConnection, kind: pa.DataType) -> str:
    """DuckDB's name of an Arrow type."""
    empty = pa.Table.from_batches([], pa.schema([("x", kind)]))
    connection.register("cumin_type", empty)
    try:
        row = connection.execute("DESCRIBE SELECT x FROM cumin_type").fetchall()[0]
    finally:
        connection.unregister("cumin_type")
    return str(row[1])


def _quoted(name: str) -> str:
    return name.replace('"', '""')


def _view(connection: engine.DuckDBPyConnection, name: str, select: str) -> None:
    """Bind a table under the name by which the query calls it: table, schema.table or catalog.schema.table."""
    pieces = name.split(".")
    if len(pieces) > 3 or not all(pieces):
        raise ConfigError(f"{name!r} is no table name. Allowed: table, schema.table, catalog.schema.table.")
    quoted = [f'"{_quoted(piece)}"' for piece in pieces]
    if len(quoted) == 3:
        connection.execute(f"ATTACH IF NOT EXISTS ':memory:' AS {quoted[0]}")
    if len(quoted) > 1:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {'.'.join(quoted[:-1])}")
    kind = "TEMP VIEW" if len(quoted) == 1 else "VIEW"
    connection.execute(f"CREATE {kind} {'.'.join(quoted)} AS {select}")


def _bind(connection: engine.DuckDBPyConnection, name: str, relation: Relation) -> None:
    """Make the exact files of a relation readable under its name."""
    native = relation.place.local and relation.format == "parquet" and relation.files and not relation.ragged
    # DuckDB reads every name=value of a path; one above the table's root must not become a column.
    if native and relation.partition_columns and "=" in relation.root:
        native = False
    # Nor does DuckDB read how a date is written there; and to it a path is a pattern.
    if relation.converted or any(not _PATTERN.isdisjoint(path) for path in relation.files):
        native = False
    if not native:
        connection.register(f"cumin_files_{name}", released(relation.dataset()))
        _view(connection, name, f'SELECT * FROM "{_quoted(f"cumin_files_{name}")}"')
        return
    files = ", ".join("'" + path.replace("'", "''") + "'" for path in relation.files)
    options = "hive_partitioning = false"
    if relation.partition_columns:
        kinds = {each: _type_name(connection, relation.schema.field(each).type) for each in relation.partition_columns}
        types = ", ".join(f"'{_quoted(each)}': {kind}" for each, kind in kinds.items())
        options = f"hive_partitioning = true, hive_types = {{{types}}}, hive_types_autocast = false"
    columns = ", ".join(f'"{_quoted(field.name)}"' for field in relation.schema)
    _view(connection, name, f"SELECT {columns} FROM read_parquet([{files}], {options})")


def _lock(connection: engine.DuckDBPyConnection, relations: Mapping[str, Relation], target: Target) -> None:
    """Nothing but the declared inputs and the spill folder can be read from here on."""
    roots = {relation.root.rstrip(os.sep) + os.sep for relation in relations.values() if relation.place.local}
    roots.add(str(target.folder) + os.sep)
    # DuckDB asks for the file behind a symbolic link (DVC, git-annex, Hugging Face's cache, volumes of Kubernetes).
    local = [path for relation in relations.values() if relation.place.local for path in relation.files]
    behind = {real for path in local if (real := os.path.realpath(path)) != path and not real.startswith(tuple(roots))}
    allowed = ", ".join("'" + root.replace("'", "''") + "'" for root in sorted(roots))
    connection.execute(f"SET allowed_directories = [{allowed}]")
    if behind:
        paths = ", ".join("'" + path.replace("'", "''") + "'" for path in sorted(behind))
        connection.execute(f"SET allowed_paths = [{paths}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def keyed_diff(before: Any, after: Any, key: list[str], columns: list[str], limit: int) -> dict[str, Any]:
    """Rows of two sets of files, matched by key: counts of added, gone, changed, and the first of them."""
    import pyarrow.dataset as pads

    connection = engine.connect(":memory:")
    connection.execute(_NO_BAR)
    try:
        for name, (paths, dataset) in (("a", before), ("b", after)):
            table: Any = pa.Table.from_batches([], dataset.schema)
            if paths:
                system = dataset.store.place.arrow()
                table = released(pads.dataset(paths, schema=dataset.schema, format="parquet", filesystem=system))
            connection.register(name, table)
        on = " AND ".join(f'a."{_quoted(each)}" IS NOT DISTINCT FROM b."{_quoted(each)}"' for each in key)
        differs = " OR ".join(f'a."{_quoted(each)}" IS DISTINCT FROM b."{_quoted(each)}"' for each in columns) or "false"
        shown = ", ".join(f'"{_quoted(each)}"' for each in key)
        what = {
            "added": f"SELECT {_prefixed('b', key)} FROM b ANTI JOIN a ON {on}",
            "gone": f"SELECT {_prefixed('a', key)} FROM a ANTI JOIN b ON {on}",
            "changed": f"SELECT {_prefixed('a', key)} FROM a JOIN b ON {on} WHERE {differs}",
        }
        result: dict[str, Any] = {}
        for name, sql in what.items():
            count = connection.execute(f"SELECT count(*) FROM ({sql})").fetchall()[0][0]
            rows = connection.execute(f"SELECT * FROM ({sql}) ORDER BY {shown} LIMIT {int(limit)}").fetchall()
            result[name] = {"count": count, "first": [dict(zip(key, map(str, row), strict=True)) for row in rows]}
        return result
    finally:
        connection.close()


def _prefixed(table: str, names: list[str]) -> str:
    return ", ".join(f'{table}."{_quoted(name)}"' for name in names)
