"""A Delta table, through `deltalake`. The only file that imports it."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from cumin.errors import ConfigError, InputError
from cumin.fingerprint import Part, line, line_size, token
from cumin.inputs.base import Input, Relation, Table, lacking
from cumin.install import how_to_install
from cumin.partitions import partition_key
from cumin.place import absolute, place, public_options


@dataclass(frozen=True, kw_only=True)
class Delta(Input):
    """A Delta table, at its newest version or at a given one. Make one with `cumin.delta`."""

    uri: str
    version: int | None = None
    key: tuple[str, ...] = ()
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)

    def open(self) -> "DeltaTable":
        return DeltaTable(self)

    def describe(self) -> dict[str, Any]:
        """The version as asked for; `DeltaTable.pinned` adds the one that was read."""
        return {
            "kind": "delta",
            "uri": self.uri,
            "version": self.version,
            "key": list(self.key),
            "storage_options": public_options(self.storage_options),
        }


def delta(
    uri: str | os.PathLike[str],
    *,
    version: int | None = None,
    key: str | Sequence[str] = (),
    storage_options: Mapping[str, str] | None = None,
) -> Delta:
    """A Delta table. Its token is made of the files that the version holds in each partition: written once, so exact.

    Needs deltalake (the extra ``delta``).
    """
    names = (key,) if isinstance(key, str) else tuple(key)
    return Delta(uri=absolute(uri), version=version, key=names, storage_options=dict(storage_options or {}))


class DeltaTable(Table):
    """One version of a Delta table."""

    kind = "delta"
    strength = "snapshot"

    def __init__(self, source: Delta) -> None:
        try:
            import deltalake
        except ImportError as error:
            raise ConfigError(f"cumin.delta needs the package deltalake: {how_to_install('delta')}.") from error
        try:
            opened = deltalake.DeltaTable(source.uri, version=source.version, storage_options=dict(source.storage_options))
            metadata = opened.metadata()
            actions = pa.table(opened.get_add_actions(flatten=False))
            schema = pa.schema(opened.schema().to_arrow())
        except Exception as error:  # deltalake's errors share no root, and a missing table is a plain OSError
            raise InputError(f"The Delta table {source.uri} cannot be read: {str(error).splitlines()[0]}") from error
        features = opened.protocol().reader_features or []
        if "deletionVectors" in features and _has_vectors(actions):
            raise InputError(f"The Delta table {source.uri} has deletion vectors; run OPTIMIZE … PURGE on it first.")
        mapping = dict(metadata.configuration).get("delta.columnMapping.mode", "none")
        if mapping != "none":
            raise InputError(
                f"The Delta table {source.uri} maps its columns to other names in its files "
                f"(delta.columnMapping.mode={mapping}), which cumin does not read. Copy it into a table without that."
            )
        self.source, self.version = source, opened.version()
        self.place = place(source.uri, source.storage_options)
        self.root = self.place.url
        self.identity = str(metadata.id)
        self.partition_columns = tuple(metadata.partition_columns)
        fields = [each for each in schema if each.name not in self.partition_columns]
        self.schema = pa.schema(fields + [schema.field(name) for name in self.partition_columns])
        binary = [name for name in self.partition_columns if pa.types.is_binary(schema.field(name).type)]
        if binary:
            raise InputError(
                f"The Delta table {source.uri} is partitioned by {', '.join(binary)}, which is binary: its log keeps "
                "such values in no form that readers agree on. Copy it into a table that is partitioned by text."
            )
        self.partitions = {}
        self._lines: dict[str, list[str]] = {}
        for row in actions.select(
            [n for n in ("path", "size_bytes", "modification_time", "partition") if n in actions.column_names]
        ).to_pylist():
            values = row.get("partition") or row.get("partition_values") or {}
            texts = tuple(None if values.get(name) is None else str(values[name]) for name in self.partition_columns)
            key = partition_key(self.partition_columns, texts)
            self.partitions[key] = texts
            self._lines.setdefault(key, []).append(line(unquote(row["path"]), row["size_bytes"], "once"))

    def parts(self, keys: Collection[str]) -> dict[str, Part]:
        """From the table's log: files are written once, so their names and sizes say it all."""
        return {
            key: Part(lines, sum(map(line_size, lines)), token(self.strength, lines))
            for key in sorted(keys)
            for lines in [sorted(self._lines[key])]
        }

    def relation(self, parts: Mapping[str, Part]) -> Relation:
        """The exact files; one that is older than a column has NULL there."""
        paths: list[str] = []
        values: list[tuple[Any, ...]] = []
        for key in sorted(parts):
            names = sorted(parts[key].names)
            paths += [self.place.full(name) for name in names]
            values += [self.typed(key)] * len(names)
        if not self.partition_columns:
            values = []
        names = [name for name in self.schema.names if name not in self.partition_columns]
        ragged = bool(lacking(self.place, paths, names))
        root, columns = self.place.root, self.partition_columns
        # The log says a partition's values; only plain ones are sure to stand in the paths as an engine reads them there.
        plain = all(_plain(self.schema.field(name).type) for name in columns) and not any("%" in path for path in paths)
        return Relation(self.schema, paths, self.place, "parquet", root, columns, values, ragged=ragged, converted=not plain)

    def pinned(self) -> dict[str, Any]:
        return {"version": self.version}


def _plain(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_date32(kind) or pa.types.is_boolean(kind)
    )


def _has_vectors(actions: pa.Table) -> bool:
    return any(
        name.startswith("deletion_vector") and actions[name].null_count < len(actions) for name in actions.column_names
    )
