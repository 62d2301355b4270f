"""An Iceberg table, through `pyiceberg`. The only file that imports it."""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cumin.errors import ConfigError, InputError
from cumin.fingerprint import Part, line, line_size, token
from cumin.inputs.base import Input, Relation, Table
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

    Its token is the table's UUID with the snapshot's and the schema's id. Needs the extra ``cumin[iceberg]``.
    """
    names = (key,) if isinstance(key, str) else tuple(key)
    return Iceberg(table=table, catalog=catalog, properties=dict(properties or {}), snapshot=snapshot, key=names)


class IcebergTable(Table):
    """One snapshot of an Iceberg table, as one partition."""

    kind = "iceberg"
    strength = "snapshot"
    partition_columns = ()

    def __init__(self, source: Iceberg) -> None:
        try:
            from pyiceberg.catalog import load_catalog
            from pyiceberg.exceptions import NoSuchTableError
        except ImportError as error:
            raise ConfigError("cumin.iceberg needs the package pyiceberg: pip install 'cumin[iceberg]'.") from error
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
        self.partitions = {"": ()}
        self._state = f"snapshot {snapshot.snapshot_id}, schema {schema_id}"
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def parts(self, keys: Collection[str]) -> dict[str, Part]:
        tasks = list(self._scan.plan_files())
        lines = sorted(line(task.file.file_path, task.file.file_size_in_bytes, "once") for task in tasks)
        return {"": Part(lines, sum(map(line_size, lines)), token(self.strength, [self._state]))} if "" in keys else {}

    def relation(self, parts: Mapping[str, Part]) -> Relation:
        """The data files themselves; through a copy where rows were deleted or columns changed since some were written."""
        tasks = list(self._scan.plan_files())
        plain = len(self._table.schemas()) == 1 and not any(task.delete_files for task in tasks)
        if plain and tasks:
            names = [task.file.file_path for task in tasks]
            first = place(names[0])
            return Relation(self.schema, sorted(place(name).root for name in names), first, "parquet", self.root)
        self._folder = tempfile.TemporaryDirectory(prefix="cumin-iceberg-")
        target = Path(self._folder.name) / "rows.parquet"
        with pq.ParquetWriter(target, self.schema) as writer:
            for batch in self._scan.to_arrow_batch_reader():
                writer.write_table(pa.Table.from_batches([batch]).cast(self.schema))
        copy = place(self._folder.name)
        return Relation(self.schema, [copy.full("rows.parquet")], copy, "parquet", copy.root)

    def pinned(self) -> dict[str, Any]:
        return {"snapshot": self._snapshot.snapshot_id}
