"""Spark: where one machine is not enough. The only file that imports it.

The query runs on the session's master; its rows are hashed and written by the executors, each task its own files, with
the same code as DuckDB's. The staging folder must be one that the executors and this process share (any master), or
the master is local. The executors need cumin installed.
"""

import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyspark
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.types import StructType
from sqlglot import exp

from cumin.analysis import parse
from cumin.content import RowSum
from cumin.engines.base import Engine, Session
from cumin.engines.duckdb_engine import DuckDB, version_part
from cumin.errors import ConfigError, EngineError, QueryError
from cumin.inputs.base import Relation
from cumin.layout import Layout, Target
from cumin.lexer import tokens
from cumin.modes import Catalogue, Determinism
from cumin.pruning import same_everywhere
from cumin.udfs import Udf
from cumin.units import Unit, UnitFile, UnitWriter, split

HASH_MOD = (
    "CREATE OR REPLACE TEMPORARY FUNCTION hash_mod(k STRING, n BIGINT, seed STRING) RETURNS BIGINT "
    "RETURN CAST(conv(substr(md5(concat(seed, ':', k)), 1, 15), 16, 10) AS BIGINT) % n"
)
# Every setting of Spark SQL that is not Spark's default enters the build id, but for these, which change no result.
_NO_RESULT = (
    "shuffle.", "adaptive.", "autoBroadcastJoinThreshold", "warehouse.", "catalogImplementation", "execution.", "ui.",
    "broadcastTimeout", "files.maxPartition", "files.minPartition", "files.openCost", "artifact.", "codegen.", "debug.",
    "inMemoryColumnarStorage.", "event", "streaming.", "thriftserver.", "repl.", "redaction.", "session.timeZone",
)  # fmt: skip
_RESULT = "file string"


@dataclass(frozen=True)
class Spark(Engine):
    """A Spark session by its master, or one that the caller made. Make one with `cumin.spark`."""

    master: str | None = None
    timezone: str = "UTC"
    version_policy: str = "minor"
    conf: Mapping[str, str] = field(default_factory=dict)
    session: Any = field(default=None, repr=False, compare=False)
    dialect = "spark"

    def spark(self) -> SparkSession:
        """The session: the caller's, the one in use, or a new one."""
        if self.session is not None:
            made: SparkSession = self.session
        else:
            builder = SparkSession.builder.appName("cumin")
            if self.master is not None:
                builder = builder.master(self.master)
                if self.master.startswith("local"):
                    # Spark would start the `python3` of the path, which may be another one.
                    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            for name, value in self.conf.items():
                builder = builder.config(name, value)
            made = builder.getOrCreate()
        made.conf.set("spark.sql.session.timeZone", self.timezone)
        return made

    def form(self, determinism: Determinism) -> dict[str, Any]:
        """The version as `duckdb` has it, the time zone, and the settings that change results."""
        if determinism.mode == "single-thread":
            raise ConfigError("The mode single-thread is DuckDB's; on Spark choose decimal or tolerant, or cast to DECIMAL.")
        session = self.spark()
        return {
            "name": "spark",
            "version": version_part(pyspark.__version__, self.version_policy),
            "version_policy": self.version_policy,
            "timezone": self.timezone,
            "settings": _settings(session),
        }

    def describe(self) -> dict[str, Any]:
        return {"name": "spark", "version": pyspark.__version__, "master": self.spark().sparkContext.master,
                "timezone": self.timezone, "version_policy": self.version_policy, "conf": dict(self.conf)}  # fmt: skip

    def open(self, schemas: Mapping[str, pa.Schema], udfs: Mapping[str, Udf]) -> "SparkTables":
        tables = SparkTables(self.spark(), udfs)
        for name, schema in schemas.items():
            tables.bind(name, tables.session.createDataFrame([], from_arrow_schema(schema)))
        return tables

    def run(
        self,
        sql: str,
        relations: Mapping[str, Relation],
        udfs: Mapping[str, Udf],
        target: Target,
        determinism: Determinism,
    ) -> list[Unit]:
        """On the session's master: each executor writes and hashes its own rows; the driver adds up the reports."""
        tables = SparkTables(self.spark(), udfs)
        try:
            for name, relation in relations.items():
                tables.bind(name, _read(tables.session, relation))
            rows = tables.session.sql(tables.rewritten(sql))
            schema = _arrow_schema(rows.schema)
            frame = _arranged(rows, target)
            task = _Task(schema, str(target.folder), target.partition_by, target.order_key, target.layout, target.digits)
            reports = [json.loads(row["file"]) for row in frame.mapInArrow(task, _RESULT).collect()]
        except PySparkException as error:
            raise EngineError(f"Spark failed: {_first_line(error)}") from error
        finally:
            tables.close()
        return _units(reports, schema, target.digits)

    def duplicates(self, relation: Relation, key: tuple[str, ...]) -> int:
        grouped = _read(self.spark(), relation).groupBy(*key).count().where("count > 1")
        return int(grouped.agg(F.coalesce(F.sum("count"), F.lit(0))).collect()[0][0])


def spark(
    *,
    master: str | None = None,
    timezone: str = "UTC",
    version_policy: str = "minor",
    conf: Mapping[str, str] | None = None,
    session: SparkSession | None = None,
) -> Spark:
    """Spark as engine: a `session` of the caller's, or one on `master` (``local[4]``, ``yarn``, ``spark://…``, ``k8s://…``;
    without it the session in use, or Spark's own default). Needs pyspark (the extra ``spark``) and a Java runtime."""
    return Spark(master=master, timezone=timezone, version_policy=version_policy, conf=dict(conf or {}), session=session)


def _settings(session: SparkSession) -> dict[str, str]:
    """What the session is set to that may change a result."""
    return {
        name: value
        for name, value in sorted(session.conf.getAll.items())
        if name.startswith("spark.sql.") and not name.removeprefix("spark.sql.").startswith(_NO_RESULT)
    }


class SparkTables(Session):
    """Temporary views of one planning or one run, under names of their own, dropped at close.

    Spark's temporary views have no schema, so ``lake.events`` in the query becomes a name without a dot.
    """

    catalogue = Catalogue()

    def __init__(self, session: SparkSession, udfs: Mapping[str, Udf]) -> None:
        self.session = session
        self._names: dict[str, str] = {}
        self._duckdb: Any = None
        try:
            session.sql(HASH_MOD)
            for name, udf in udfs.items():
                returns = from_arrow_schema(pa.schema([("x", udf.returns)]))[0].dataType
                session.udf.register(name, udf.function, returns)
        except PySparkException as error:
            raise EngineError(f"Spark refused a function: {_first_line(error)}") from error

    def bind(self, name: str, frame: DataFrame) -> None:
        """Make a frame readable under a table's name."""
        view = f"cumin_{id(self)}_{len(self._names)}"
        frame.createOrReplaceTempView(view)
        self._names[name.lower()] = view

    def rewritten(self, sql: str) -> str:
        """The query with each declared table's name replaced by its view's, wherever the tree says that it is read: a
        common table expression of the same name hides it, as it does in Spark."""
        edits = []
        for name, places in parse(sql, "spark").tables.items():
            for table in places:
                if name not in self._names or table.find_ancestor(exp.Hint):
                    continue
                start, end = table.parts[0].meta.get("start", 0), table.parts[-1].meta.get("end", -1)
                written = sql[start : end + 1]
                if [token.text.strip("`").lower() for token in tokens(written, "spark")][::2] != name.split("."):
                    raise QueryError(f"It is not clear where the query reads {name!r}; give it an alias: FROM {name} AS t.")
                alias = "" if table.alias else f" AS {written.rpartition('.')[2]}"
                edits.append((start, end + 1, self._names[name] + alias))
        for start, end, new in sorted(edits, reverse=True):
            sql = sql[:start] + new + sql[end:]
        return sql

    def describe(self, sql: str) -> pa.Schema:
        try:
            return _arrow_schema(self.session.sql(self.rewritten(sql)).schema)
        except PySparkException as error:
            raise QueryError(f"The query does not bind: {_first_line(error)}") from error

    def keep(self, filters: list[str], column_types: Mapping[str, pa.DataType], values: list[tuple[Any, ...]]) -> list[bool]:
        """Worked out by DuckDB, and so only those that mean the same there: Spark cuts 7.9 down to 7 where DuckDB rounds it
        up, and has the session's time zone. With any other, everything is kept."""
        kinds = {name.lower(): _kind(kind) for name, kind in column_types.items()}
        sure = [each for each in filters if same_everywhere(each, kinds)]
        if not sure:
            return [True] * len(values)
        if self._duckdb is None:
            self._duckdb = DuckDB().open({}, {})
        kept: list[bool] = self._duckdb.keep(sure, column_types, values)
        return kept

    def close(self) -> None:
        """Drops the views; the caller's session goes on."""
        for view in self._names.values():
            self.session.catalog.dropTempView(view)
        self._names = {}
        if self._duckdb is not None:
            self._duckdb.close()
            self._duckdb = None


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "int"
    return "str" if pa.types.is_string(kind) else "date" if pa.types.is_date32(kind) else "other"


def _arrow_schema(schema: StructType) -> pa.Schema:
    """What a Spark result is in Arrow, its moments in UTC: newer pyspark asks for the zone, older knows no such argument."""
    zone = {"timezone": "UTC"} if "timezone" in inspect.signature(to_arrow_schema).parameters else {}
    return _nullable(to_arrow_schema(schema, **zone))


def _nullable(schema: pa.Schema) -> pa.Schema:
    """The schema without NOT NULL, which DuckDB's has none of."""
    return pa.schema([pa.field(each.name, each.type) for each in schema])


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _read(session: SparkSession, relation: Relation) -> DataFrame:
    """The exact files of a relation as a frame, with its schema given, never guessed."""
    inside = pa.schema([each for each in relation.schema if each.name not in relation.partition_columns])
    schema = from_arrow_schema(inside)
    prefix = "file://" if relation.place.local else relation.place.url.partition("://")[0] + "://"
    if not relation.files:
        return session.createDataFrame([], from_arrow_schema(relation.schema))
    groups: dict[tuple[Any, ...], list[str]] = {}
    for index, path in enumerate(relation.files):
        values = relation.values[index] if relation.partition_columns else ()
        groups.setdefault(values, []).append(_spark_path(relation, prefix, path))
    whole: DataFrame | None = None
    for values, paths in groups.items():
        reader = session.read.schema(schema).option("recursiveFileLookup", "true")
        if relation.format == "csv":
            frame = reader.option("header", "true").option("sep", relation.csv.get("delimiter", ",")).csv(paths)
        else:
            frame = getattr(reader, relation.format)(*([paths] if relation.format == "json" else paths))
        for name, value in zip(relation.partition_columns, values, strict=True):
            kind = from_arrow_schema(pa.schema([relation.schema.field(name)]))[0].dataType
            frame = frame.withColumn(name, F.lit(value).cast(kind))
        whole = frame if whole is None else whole.unionAll(frame)
    assert whole is not None
    return whole


def _spark_path(relation: Relation, prefix: str, path: str) -> str:
    if relation.place.local:
        return prefix + path
    if prefix == "s3://":
        return "s3a://" + path
    host = relation.place.url.partition("://")[2].partition("/")[0]
    return f"{prefix}{host}{path}"


def _arranged(rows: DataFrame, target: Target) -> DataFrame:
    """Each partition's rows in one task, sorted."""
    by = [*target.partition_by, *target.order_key]
    if target.partition_by:
        return rows.repartition(*map(_column, target.partition_by)).sortWithinPartitions(*map(_column, by))
    if target.order_key:
        return rows.repartitionByRange(*map(_column, by)).sortWithinPartitions(*map(_column, by))
    return rows


def _column(name: str) -> Any:
    return F.col("`" + name.replace("`", "``") + "`")


@dataclass(frozen=True)
class _Task:
    """What an executor does with its rows: write, hash, and report each unit as JSON."""

    schema: pa.Schema
    folder: str
    partition_by: tuple[str, ...]
    order_key: tuple[str, ...]
    layout: Layout
    digits: int | None

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        # A task that is tried again, or twice at once, writes into a folder of its own.
        folder = Path(self.folder, f"task-{context.partitionId()}-{context.taskAttemptId()}")
        folder.mkdir(parents=True)
        target = Target(folder, self.partition_by, self.order_key, self.layout, self.digits)
        reports = [_report(unit) for unit in self._written(batches, target)]
        yield pa.RecordBatch.from_pydict({"file": pa.array(reports, pa.string())})

    def _written(self, batches: Iterable[pa.RecordBatch], target: Target) -> Iterator[Unit]:
        writer: UnitWriter | None = None
        current: str | None = None
        try:
            for batch in batches:
                batch = _as(batch, self.schema)
                pieces = split(batch, self.partition_by) if self.partition_by else [("", batch)]
                for key, piece in pieces:
                    if key != current:
                        if writer is not None:
                            yield writer.close()
                        writer, current = UnitWriter(key, self.schema, target), key
                    assert writer is not None
                    writer.add(piece)
            if writer is not None:
                yield writer.close()
        finally:
            if writer is not None:
                writer.abort()


def _as(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch in the schema that planning saw: Spark's executors may name a time zone otherwise."""
    columns = [column.cast(kind.type) for column, kind in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _report(unit: Unit) -> str:
    return json.dumps({"partition": unit.partition, "sum": unit.sum.to_json(), "files": [f.to_json() for f in unit.files]})


def _units(reports: list[dict[str, Any]], schema: pa.Schema, digits: int | None) -> list[Unit]:
    """The reports of all tasks as units, one per partition."""
    units: dict[str, Unit] = {}
    for report in reports:
        key = report["partition"]
        unit = units.setdefault(key, Unit(key, schema, RowSum(digits)))
        unit.sum.merge(RowSum.from_json(report["sum"], digits=digits))
        unit.files += [UnitFile.from_json(each) for each in report["files"]]
    return [units[key] for key in sorted(units)] or [Unit("", schema, RowSum(digits))]
