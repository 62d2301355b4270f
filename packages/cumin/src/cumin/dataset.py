"""A dataset that was built: its ids, its files, its rows. Immutable, like what it stands for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cumin.errors import NotFoundError
from cumin.schemas import read_schema
from cumin.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads


@dataclass(frozen=True)
class Dataset:
    """One build in a store. `hit` says whether it was there before it was asked for.

    >>> ds = cumin.load("clicks_28d@v3", store="lake/datasets")
    >>> ds.to_table()
    """

    name: str
    build_id: str
    content_id: str
    store: Store
    manifest: dict[str, Any]
    hit: bool
    version: int | None = None

    @property
    def schema(self) -> "pa.Schema":
        """Columns and types, as Arrow's."""
        return read_schema(self.manifest["output"]["schema"])

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self.manifest["output"]["rows"])

    @property
    def partitions(self) -> list[str]:
        """The keys of the partitions that have rows."""
        return [unit["partition"] for unit in self.manifest["output"]["units"]]

    def files(self) -> list[str]:
        """Every Parquet file, in order: a path on this machine, or a URL."""
        return [f"{self.store.place.url}/{file['path']}" for file in self._files()]

    def _files(self) -> list[dict[str, Any]]:
        return [file for unit in self.manifest["output"]["units"] for file in unit["files"]]

    def to_dataset(self) -> "pads.Dataset":
        """The rows as a pyarrow dataset over the exact files."""
        import pyarrow.dataset as pads  # half a second: it imports pandas where that is installed

        paths = [self.store.place.full(file["path"]) for file in self._files()]
        return pads.dataset(paths, schema=self.schema, format="parquet", filesystem=self.store.place.arrow())

    def to_table(self) -> "pa.Table":
        """All rows, in memory."""
        return self.to_dataset().to_table()

    def explain(self) -> str:
        """A few lines for people: ids, rows, inputs with the strength of their tokens."""
        output = self.manifest["output"]
        lines = [
            f"{self.name}  {'hit: was there' if self.hit else 'built'}",
            f"  build id    {self.build_id}",
            f"  content id  {self.content_id}",
            f"  rows        {self.rows:,} in {len(self._files())} files, {output['bytes']:,} bytes",
        ]
        for each in self.manifest["inputs"]:
            parts = each["partitions"].values()
            lines.append(
                f"  input       {each['name']}: {each['kind']} {each['root']}, {len(parts)} partitions, "
                f"{sum(part['files'] for part in parts)} files, by {each['strength']}"
            )
        return "\n".join(lines)

    def __ghee_source__(self) -> dict[str, Any]:
        """What `ghee.read` asks of anything that is not a path: the exact files with their row counts."""
        return {
            "paths": self.files(),
            "rows": [file["rows"] for file in self._files()],
            "format": "parquet",
            "partitioning": None,  # the files hold every column
            "digest": self.content_id,
        }


def load(spec: str, store: Store, *, hit: bool = True) -> Dataset:
    """The dataset that `spec` names (see `Store.resolve`). Raises NotFoundError."""
    build_id = store.resolve(spec)
    entry = store.entry(build_id)
    if entry is None:
        raise NotFoundError(f"The build {build_id} is not in {store.place.url}.")
    manifest = store.manifest(entry["manifest"])
    return Dataset(
        manifest["name"], build_id, entry["content_id"], store, manifest, hit, store.version_of(manifest["name"], build_id)
    )
