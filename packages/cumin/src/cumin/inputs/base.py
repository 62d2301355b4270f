"""The contract of an input, and what an engine gets to read."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cumin.errors import EngineError, InputError
from cumin.fingerprint import Part
from cumin.partitions import PartitionValue, kind_of, typed
from cumin.place import Place
from cumin.schemas import write_schema

if TYPE_CHECKING:  # imported where it is used: it takes half a second where pandas is installed
    import pyarrow as pa
    import pyarrow.dataset as pads


@dataclass(frozen=True)
class Relation:
    """What an engine reads for one table: the exact files, never a pattern.

    `files` are full paths in `place`; `values` gives, per file, the values of `partition_columns`, which are not in
    the files. `root` is the folder that the files lie under. `ragged` says that some file lacks a column, which is then
    NULL in its rows; `converted` that the values are written otherwise in the paths.
    """

    schema: "pa.Schema"
    files: list[str]
    place: Place
    format: str
    root: str
    partition_columns: tuple[str, ...] = ()
    values: list[tuple[Any, ...]] = field(default_factory=list)
    csv: Mapping[str, Any] = field(default_factory=dict)
    ragged: bool = False
    converted: bool = False

    def dataset(self) -> "pads.Dataset":
        """The same as a pyarrow dataset, each file with its partition's values."""
        import pyarrow.dataset as pads

        kind = file_format(self.format, self.csv)
        system = self.place.arrow()
        fragments = []
        for index, path in enumerate(self.files):
            expression = None
            if self.partition_columns:
                for name, value in zip(self.partition_columns, self.values[index], strict=True):
                    test = pads.field(name).is_null() if value is None else pads.field(name) == value
                    expression = test if expression is None else expression & test
            fragments.append(kind.make_fragment(path, filesystem=system, partition_expression=expression))
        return pads.FileSystemDataset(fragments, self.schema, kind, filesystem=system)


def file_format(name: str, csv: Mapping[str, Any]) -> "pads.FileFormat":
    """pyarrow's reader of a format. `csv` may hold `delimiter`."""
    import pyarrow.dataset as pads

    if name == "csv":
        import pyarrow.csv as pacsv

        return pads.CsvFileFormat(parse_options=pacsv.ParseOptions(delimiter=csv.get("delimiter", ",")))
    if name == "json":
        return pads.JsonFileFormat()
    return pads.ParquetFileFormat()


def lacking(place: Place, paths: Sequence[str], names: Collection[str]) -> dict[str, list[str]]:
    """The Parquet files that lack some of these columns, and which. Raises as `columns_of`."""
    wanted = {name.lower(): name for name in names}
    found = ((path, set(map(str.lower, schema.names))) for path, schema in columns_of(place, paths))
    return {
        path: missing for path, there in found if (missing := [name for low, name in wanted.items() if low not in there])
    }


def columns_of(place: Place, paths: Sequence[str]) -> list[tuple[str, "pa.Schema"]]:
    """The columns of each of these Parquet files. Reads every footer, as the engine does.

    Raises InputError naming a file that is gone or no Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    system = place.arrow()

    def one(path: str) -> pa.Schema:
        try:
            return pq.read_schema(path, filesystem=system)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error

    with ThreadPoolExecutor(8, thread_name_prefix="cumin-footers") as pool:
        return list(zip(paths, pool.map(one, paths), strict=True))


def same_type(one: "pa.DataType", other: "pa.DataType") -> bool:
    """Whether two types have the same values, however they are laid out."""
    from cumin.rowhash import type_form

    if one.equals(other):
        return True
    try:
        return type_form(one) == type_form(other)
    except EngineError:
        return False


def file_schema(place: Place, path: str, format: str, csv: Mapping[str, Any]) -> "pa.Schema":
    """The columns of one file. Raises pyarrow's errors and OSError."""
    if format == "parquet":
        import pyarrow.parquet as pq

        return pq.read_schema(path, filesystem=place.arrow()).remove_metadata()
    return file_format(format, csv).inspect(path, filesystem=place.arrow())


class Table(ABC):
    """An input that has been looked at: its schema, its partitions, and how strong a token of it can be.

    `partitions` maps a partition's key (``dt=2026-01-31``; empty for a table without any) to its values as text.
    `identity` tells tables apart whose files would look the same (a Delta table's id, for instance).
    """

    kind: str
    root: str
    strength: str
    identity: str
    schema: "pa.Schema"
    partition_columns: tuple[str, ...]
    partitions: dict[str, tuple[PartitionValue, ...]]

    @abstractmethod
    def parts(self, keys: Collection[str]) -> dict[str, Part]:
        """The state of these partitions. Raises InputError if a file cannot be read."""

    def check(self, parts: Mapping[str, Part]) -> None:  # noqa: B027 - most inputs need none
        """Look, before a run, whether the files are such as the schema says. Raises InputError naming those that are not."""

    @abstractmethod
    def relation(self, parts: Mapping[str, Part]) -> Relation:
        """The exact files of these partitions."""

    def moved(self, parts: Mapping[str, Part]) -> list[str]:
        """The files that changed or went away since `parts` was taken. Files written once do neither."""
        return []

    def pinned(self) -> dict[str, Any]:
        """What to add to the input's description so that it names this very version of the table."""
        return {}

    def parents(self) -> list[dict[str, str]]:
        """The builds this table comes from, for lineage."""
        return []

    @cached_property
    def partition_kinds(self) -> tuple[str, ...]:
        """How the values of each partition column are read from text (see `cumin.partitions`)."""
        return tuple(kind_of(self.schema.field(name).type) for name in self.partition_columns)

    def typed(self, key: str) -> tuple[Any, ...]:
        """The values of a partition in their columns' types."""
        return tuple(typed(value, kind) for value, kind in zip(self.partitions[key], self.partition_kinds, strict=True))

    def schema_token(self, *, again: bool = False) -> Any:
        """What the schema is sure to follow from, for the cache of plans; None where nothing known is that sure.
        `again`: as it is now, not as it was when the table was looked at."""
        return write_schema(self.schema)

    def know_schema(self, text: str) -> None:  # noqa: B027 - most inputs need none
        """Take the schema from the cache (as `schemas.write_schema` made it) and read it from no file."""


class Input(ABC):
    """Where a table is. Frozen data; nothing is read before `open`."""

    @abstractmethod
    def open(self) -> Table:
        """Look at the table. Raises InputError where it is not there or cannot be read."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a manifest keeps, without secrets, so that `rebuild` can find the table again."""
