"""A dataset that was built: its ids, its files, its rows. Immutable, like what it stands for."""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from cumin.errors import ConfigError, NotFoundError
from cumin.schemas import read_schema
from cumin.store import Store

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.dataset as pads


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """One build in a store. `hit` says whether it was there before it was asked for.

    Two are equal, and have one hash, if they are the same build with the same rows, in whatever store. It pickles: a
    worker process reads the files by itself.

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

    def __eq__(self, other: object) -> bool:
        return self._ids == other._ids if isinstance(other, Dataset) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._ids)

    @property
    def _ids(self) -> tuple[str, str]:
        return self.build_id, self.content_id

    def __len__(self) -> int:
        return self.rows

    def __bool__(self) -> bool:
        return True  # one without rows is a dataset too

    def __repr__(self) -> str:
        version = f"@v{self.version}" if self.version is not None else ""
        return f"<cumin.Dataset {self.name}{version} {self.build_id[:15]} {self.content_id[:15]}, {self.rows:,} rows>"

    def _repr_html_(self) -> str:
        """For notebooks: ids, size, and the columns with their types."""
        facts = {
            "build id": self.build_id,
            "content id": self.content_id,
            "rows": f"{self.rows:,} in {len(self._files())} files, {self.manifest['output']['bytes']:,} bytes",
            "inputs": ", ".join(f"{each['name']} ({each['kind']})" for each in self.manifest["inputs"]),
        }
        rows = [*facts.items(), *((f"column {field.name}", str(field.type)) for field in self.schema)]
        body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
        return f"<table><caption>{escape(self.name)}</caption>{body}</table>"

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

    def to_arrow(self) -> "pa.Table":
        """The same as `to_table`."""
        return self.to_table()

    def to_pandas(self) -> "pd.DataFrame":
        """All rows, as a DataFrame. Raises ConfigError without pandas."""
        try:
            import pandas  # noqa: F401 - whether it is there; Arrow's own error does not say what to install
        except ImportError as error:
            raise ConfigError("to_pandas needs the package pandas: python -m pip install pandas.") from error
        return self.to_table().to_pandas()

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
