"""Another cumin dataset as input: its token is the content of its rows, partition by partition."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cumin.dataset import Dataset
from cumin.fingerprint import Part, line, line_size
from cumin.inputs.base import Input, Relation, Table
from cumin.partitions import partition_text
from cumin.schemas import read_schema

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class DatasetInput(Input):
    """A dataset that cumin built. A change upstream that leaves the rows equal stops here."""

    dataset: Dataset
    key: tuple[str, ...] = ()

    def open(self) -> "DatasetTable":
        return DatasetTable(self.dataset)

    def describe(self) -> dict[str, Any]:
        """The very build, not the newest of its name."""
        return {
            "kind": "cumin",
            "store": self.dataset.store.place.url,
            "name": self.dataset.name,
            "build_id": self.dataset.build_id,
            "content_id": self.dataset.content_id,
            "key": list(self.key),
        }


class DatasetTable(Table):
    """A dataset's files, which never change."""

    kind = "cumin"
    strength = "content"
    identity = ""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.place = dataset.store.place
        self.root = self.place.url
        self._schema_text: str = dataset.manifest["output"]["schema"]
        output = dataset.manifest["output"]
        self.partition_columns = tuple(output["partition_by"])
        self._units = {unit["partition"]: unit for unit in output["units"]}
        self.partitions = {
            key: tuple(partition_text(piece.partition("=")[2]) for piece in key.split("/")) if key else ()
            for key in self._units
        }

    @cached_property
    def schema(self) -> "pa.Schema":
        """Columns and types, as the manifest keeps them."""
        return read_schema(self._schema_text)

    def schema_token(self, *, again: bool = False) -> Any:
        return self._schema_text

    def parts(self, keys: Collection[str]) -> dict[str, Part]:
        """From the manifest: nothing is listed."""
        result = {}
        for key in sorted(keys):
            unit = self._units[key]
            lines = [line(file["path"], file["size"], "once") for file in unit["files"]]
            result[key] = Part(lines, sum(map(line_size, lines)), f"content:{unit['content_id']}")
        return result

    def relation(self, parts: Mapping[str, Part]) -> Relation:
        paths = [self.place.full(name) for key in sorted(parts) for name in parts[key].names]
        # The files hold all columns, those of the partition too.
        return Relation(self.schema, paths, self.place, "parquet", self.place.root)

    def parents(self) -> list[dict[str, str]]:
        """The dataset itself."""
        return [
            {
                "name": self.dataset.name,
                "build_id": self.dataset.build_id,
                "content_id": self.dataset.content_id,
                "store": self.place.url,
            }
        ]
