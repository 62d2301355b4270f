"""An Iceberg table, through `pyiceberg`. The only file that imports it."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cumin.errors import ConfigError, InputError
from cumin.fingerprint import Part, line, line_size, token
from cumin.inputs.base import Input, Relation, Table
from cumin.install import how_to_install
from cumin.partitions import PartitionValue, partition_key
from cumin.place import place, public_options


@dataclass(frozen=True, kw_only=True)
class Iceberg(Input):
    """An Iceberg table at its current snapshot or at a given one. Make one with `cumin.iceberg`."""

    table: str
    catalog: str = "default"
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    snapshot: int | None = None
    key: tuple[str, ...] = ()

    def open(self) -> "IcebergTable":
        return IcebergTable(self)

    def describe(self) -> dict[str, Any]:
        """The snapshot as asked for; `IcebergTable.pinned` adds the one that was read."""
        return {
            "kind": "iceberg",
            "table": self.table,
            "catalog": self.catalog,
            "properties": public_options(self.properties),
            "snapshot": self.snapshot,
            "key": list(self.key),
        }


def iceberg(
    table: str,
    *,
    catalog: str = "default",
    properties: Mapping[str, str] | None = None,
    snapshot: int | None = None,
    key: str | Sequence[str] = (),
) -> Iceberg:
    """The table ``namespace.name`` of a catalog that pyiceberg knows (`properties` as it takes them).

    Its token is made of the data and delete files that the snapshot holds in each partition, and the schema's id.
    Partitions are those of identity transforms of whole numbers, text, dates and booleans; by other transforms (``day``,
    ``bucket``) the table is one partition. Needs pyiceberg (the extra ``iceberg``).
    """
    names = (key,) if isinstance(key, str) else tuple(key)
    return Iceberg(table=table, catalog=catalog, properties=dict(properties or {}), snapshot=snapshot, key=names)


class IcebergTable(Table):
    """One snapshot of an Iceberg table."""

    kind = "iceberg"
    strength = "snapshot"

    def __init__(self, source: Iceberg) -> None:
        try:
            from pyiceberg.catalog import load_catalog
            from pyiceberg.exceptions import NoSuchTableError
        except ImportError as error:
            raise ConfigError(f"cumin.iceberg needs the package pyiceberg: {how_to_install('iceberg')}.") from error
        try:
            self._table = load_catalog(source.catalog, **source.properties).load_table(source.table)
        except NoSuchTableError as error:
            raise InputError(f"The Iceberg table {source.table} is not in the catalog {source.catalog}.") from error
        except (ValueError, OSError) as error:
            raise InputError(f"The Iceberg table {source.table} cannot be read: {error}") from error
        snapshot = self._table.current_snapshot() if source.snapshot is None else self._table.snapshot_by_id(source.snapshot)
        if snapshot is None:
            asked = "no snapshot yet" if source.snapshot is None else f"no snapshot {source.snapshot} (expired?)"
            raise InputError(f"The Iceberg table {source.table} has {asked}.")
        self.source, self._snapshot = source, snapshot
        self.root = self._table.location()
        self.identity = str(self._table.metadata.table_uuid)
        schema_id = snapshot.schema_id if snapshot.schema_id is not None else self._table.metadata.current_schema_id
        self._scan = self._table.scan(snapshot_id=snapshot.snapshot_id)
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        self.schema = schema_to_pyarrow(self._scan.projection(), include_field_ids=False)
        self._schema_state = f"schema {schema_id}"
        self._folders: list[tempfile.TemporaryDirectory[str]] = []
        tasks = list(self._scan.plan_files())
        specs = [self._table.specs()[each] for each in {task.file.spec_id for task in tasks}]
        self.partition_columns, places = _identity_columns(specs, self._scan.projection(), self.schema)
        self.partitions = {}
        self._tasks: dict[str, list[Any]] = {}
        for task in tasks:
            texts = tuple(
                _text(task.file.partition[at], self.schema.field(name).type)
                for name, at in zip(self.partition_columns, places[task.file.spec_id], strict=True)
            )
            key = partition_key(self.partition_columns, texts)
            self.partitions[key] = texts
            self._tasks.setdefault(key, []).append(task)
        if not self.partition_columns:
            self.partitions, self._tasks = {"": ()}, {"": tasks}

    def parts(self, keys: Collection[str]) -> dict[str, Part]:
        """From the snapshot's manifests: data files, delete files and the schema's id."""
        found = {}
        for key in sorted(keys):
            lines = sorted(map(_line, (task.file for task in self._tasks[key])))
            deletes = sorted({_line(each) for task in self._tasks[key] for each in task.delete_files})
            state = [*lines, *(f"delete {each}" for each in deletes), self._schema_state]
            found[key] = Part(lines, sum(map(line_size, lines)), token(self.strength, state))
        return found

    def relation(self, parts: Mapping[str, Part]) -> Relation:
        """The data files themselves; through a copy where rows were deleted or columns changed since some were written."""
        tasks = [task for key in sorted(parts) for task in self._tasks[key]]
        plain = len(self._table.schemas()) == 1 and not any(task.delete_files for task in tasks)
        if plain and tasks:
            names = [task.file.file_path for task in tasks]
            first = place(names[0])
            return Relation(self.schema, sorted(place(name).root for name in names), first, "parquet", self.root)
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan

        folder = tempfile.TemporaryDirectory(prefix="cumin-iceberg-")
        self._folders.append(folder)  # it lives as long as the table
        target = Path(folder.name) / "rows.parquet"
        scan = ArrowScan(self._table.metadata, self._table.io, self._scan.projection(), AlwaysTrue())
        with pq.ParquetWriter(target, self.schema) as writer:
            for batch in scan.to_record_batches(tasks):
                writer.write_table(pa.Table.from_batches([batch]).cast(self.schema))
        copy = place(folder.name)
        return Relation(self.schema, [copy.full("rows.parquet")], copy, "parquet", copy.root)

    def pinned(self) -> dict[str, Any]:
        return {"snapshot": self._snapshot.snapshot_id}


def _line(file: Any) -> str:
    return line(file.file_path, file.file_size_in_bytes, "once")


def _identity_columns(specs: Sequence[Any], schema: Any, arrow: pa.Schema) -> tuple[tuple[str, ...], dict[int, list[int]]]:
    """The columns by which every file is partitioned as they are; and per spec, where a file's record has their values."""
    found: list[dict[str, int]] = []
    for spec in specs:
        places = {}
        for at, each in enumerate(spec.fields):
            name = schema.find_column_name(each.source_id)
            if str(each.transform) == "identity" and name in arrow.names and _plain(arrow.field(name).type):
                places[name] = at
        found.append(places)
    names = tuple(name for name in (found[0] if found else {}) if all(name in each for each in found))
    return names, {spec.spec_id: [places[name] for name in names] for spec, places in zip(specs, found, strict=True)}


def _plain(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(text or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_date32(kind))


def _text(value: Any, kind: pa.DataType) -> PartitionValue:
    if value is None:
        return None
    if pa.types.is_date(kind) and not isinstance(value, date):
        return (date(1970, 1, 1) + timedelta(days=int(value))).isoformat()
    return str(value).lower() if isinstance(value, bool) else str(value)
