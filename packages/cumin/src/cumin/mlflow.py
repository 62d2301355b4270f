"""From a model back to its data, through MLflow. The only file that imports it.

A run is given the dataset's content id as the digest of a logged input and as tags; the store notes the tracking
server, so that `gc` asks it before it deletes anything.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import mlflow
from blake3 import blake3
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, DataType, Schema

from cumin.dataset import Dataset, load
from cumin.errors import NotFoundError, StoreError
from cumin.lineage import Graph, Vertex, graph
from cumin.store import Store

BUILD_TAG, CONTENT_TAG, STORE_TAG, NAME_TAG = "cumin.build_id", "cumin.content_id", "cumin.store", "cumin.name"


class CuminSource(DatasetSource):  # type: ignore[misc]
    """A build in a store, as MLflow keeps it beside an input."""

    def __init__(self, store: str, build_id: str) -> None:
        self.store, self.build_id = store, build_id

    @staticmethod
    def _get_source_type() -> str:
        return "cumin"

    def load(self, **kwargs: Any) -> Dataset:
        """The dataset itself."""
        return load(self.build_id, Store(self.store))

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return isinstance(raw_source, Dataset)

    @classmethod
    def _resolve(cls, raw_source: Any) -> "CuminSource":
        return cls(raw_source.store.place.url, raw_source.build_id)

    def to_dict(self) -> dict[str, Any]:
        """What MLflow keeps of a source."""
        return {"store": self.store, "build_id": self.build_id}

    @classmethod
    def from_dict(cls, source_dict: dict[str, Any]) -> "CuminSource":
        """The inverse of `to_dict`."""
        return cls(source_dict["store"], source_dict["build_id"])


class CuminDataset(MetaDataset):  # type: ignore[misc]
    """A dataset's description for MLflow: its digest is the whole content id (35 characters; MLflow keeps 36)."""

    def __init__(self, dataset: Dataset) -> None:
        columns = [ColSpec(DataType.string, name) for name in dataset.schema.names]
        super().__init__(
            source=CuminSource(dataset.store.place.url, dataset.build_id),
            name=dataset.name,
            digest=dataset.content_id,
            schema=Schema(columns) if columns else None,
        )


def log_input(dataset: Dataset, *, context: str = "training") -> None:
    """Log `dataset` as an input of the active run, with tags that lead back to its build.

    Several datasets of one run are told apart by `context`; the plain tags name the last one.
    """
    run = mlflow.active_run()
    if run is None:
        raise StoreError("No MLflow run is active; call log_input inside `with mlflow.start_run():`.")
    mlflow.log_input(CuminDataset(dataset), context=context)
    store = dataset.store.place.url
    tags = {BUILD_TAG: dataset.build_id, CONTENT_TAG: dataset.content_id, STORE_TAG: store, NAME_TAG: dataset.name}
    mlflow.set_tags({**tags, f"{BUILD_TAG}.{context}": dataset.build_id, f"{STORE_TAG}.{context}": store})
    uri = mlflow.get_tracking_uri()
    mark = f"marks/{blake3(uri.encode()).hexdigest()[:32]}.json"
    dataset.store.put_record(mark, {"uri": uri})


def builds_named(uri: str) -> set[str]:
    """Every build id that a run of this tracking server is tagged with, deleted runs left out.

    Raises StoreError if the server cannot be asked.
    """
    try:
        return {build for run in _runs(MlflowClient(tracking_uri=uri)) for build in _builds_of(run)}
    except (MlflowException, OSError) as error:
        raise StoreError(f"The MLflow server {uri} cannot be asked which builds its runs name: {error}") from error


def _runs(client: MlflowClient) -> Iterator[Any]:
    for experiment in _pages(client.search_experiments, view_type=ViewType.ALL):
        yield from _pages(client.search_runs, [experiment.experiment_id], run_view_type=ViewType.ACTIVE_ONLY)


def _pages(search: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
    page = search(*arguments, **options)
    while True:
        yield from page
        if not page.token:
            return
        page = search(*arguments, page_token=page.token, **options)


def _builds_of(run: Any) -> set[str]:
    tags = run.data.tags
    return {value for name, value in tags.items() if name == BUILD_TAG or name.startswith(BUILD_TAG + ".")}


def lineage(run_id: str, *, uri: str | None = None, stores: Iterable[Store] = ()) -> Graph:
    """The run, the models registered from it, the datasets it read, and what those were made from.

    `stores` are looked in first; then the store that the run's tags name. Raises NotFoundError.
    """
    client = MlflowClient(tracking_uri=uri)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise NotFoundError(f"MLflow has no run {run_id!r}: {error}") from error
    builds = sorted(_builds_of(run))
    if not builds:
        raise NotFoundError(f"The run {run_id} names no cumin dataset (tag {BUILD_TAG}); it was not logged by log_input.")
    result = Graph()
    result.add(Vertex(f"run:{run_id}", "run", f"MLflow run {run.info.run_name or run_id}", [run_id], -1))
    for version in client.search_model_versions(f"run_id = '{run_id}'"):
        key = f"model:{version.name}:{version.version}"
        result.add(Vertex(key, "model", f"{version.name} version {version.version}", ["registered model"], -2))
        result.connect(f"run:{run_id}", key)
    for build_id in builds:
        found = _graph_of(build_id, run.data.tags, list(stores))
        for vertex in found.vertices.values():
            result.add(vertex)
        for source, target in found.edges:
            result.connect(source, target)
        result.connect(build_id, f"run:{run_id}")
    return result


def _graph_of(build_id: str, tags: dict[str, str], stores: list[Store]) -> Graph:
    places = [value for name, value in sorted(tags.items()) if name == STORE_TAG or name.startswith(STORE_TAG + ".")]
    for store in [*stores, *(Store(place) for place in dict.fromkeys(places))]:
        if store.entry(build_id) is not None:
            return graph(store, build_id, down=False)
    raise NotFoundError(f"The build {build_id} is in none of the stores {[s.place.url for s in stores] + places}.")
