"""Runs, models and aliases in MLflow. The only file that imports mlflow.

One run per training: created by the driver (so a server that is away is found before anything is computed), written by
rank 0 alone. A version is registered as the very last step, when the model is whole and has its metrics.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec
from mlflow.types import Schema as MlflowSchema
from mlflow.types.schema import Array

from ghee_models import artifact
from ghee_models.errors import ConfigError, PromotionError, TrackingError
from ghee_models.schema import Field, family
from ghee_models.settings import Settings, TrackingConfig

if TYPE_CHECKING:
    from ghee_models.contract import Model

DEFAULT_URI = "sqlite:///mlflow.db"
logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table and thread it makes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,119}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,119}")
_REQUIREMENT = re.compile(r"\s*(>=|<=|>|<)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")
_ANSWERED = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's words for what it was asked and has not
_TYPES = {"integer": DataType.long, "text": DataType.string, "number": DataType.double, "boolean": DataType.boolean}


def tracking_uri(config: TrackingConfig | None = None) -> str:
    """The settings' URI, else MLFLOW_TRACKING_URI, else a SQLite file in this folder."""
    return (config.uri if config else "") or os.environ.get("MLFLOW_TRACKING_URI", "") or DEFAULT_URI


@contextlib.contextmanager
def _server(uri: str, doing: str, name: str = "") -> Iterator[mlflow.MlflowClient]:
    """A client of the server; what MLflow raises becomes a TrackingError that says what was being done.

    name: the registered model that is asked for; when the server has it not, the error says what there is.
    """
    mlflow.set_tracking_uri(uri)
    before = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 would wait for minutes before it says so
    try:
        yield mlflow.MlflowClient(tracking_uri=uri)
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0][:500].rstrip(".")
        if name and getattr(error, "error_code", "") in _ANSWERED:
            raise TrackingError(f"{doing} failed at the tracking server {uri}: {reason}. {_there(uri, name)}") from error
        raise TrackingError(
            f"{doing} failed at the tracking server {uri}: {reason}. Check tracking.uri (or MLFLOW_TRACKING_URI) and "
            "that the server answers; tracking.enabled=false trains without it."
        ) from error
    finally:
        if before is None:
            os.environ.pop("MLFLOW_HTTP_REQUEST_MAX_RETRIES", None)


def _there(uri: str, name: str) -> str:
    """What the registry has: of the model of this name, or, if there is none, which models."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    try:
        aliases = client.get_registered_model(name).aliases
        versions = sorted(int(found.version) for found in client.search_model_versions(f"name = '{name}'"))
        named = ", ".join(f"{alias} (version {version})" for alias, version in sorted(aliases.items())) or "none"
        return f"{name} has the versions {', '.join(map(str, versions[-20:])) or 'none'} and the aliases {named}."
    except MlflowException:
        pass
    try:
        known = ", ".join(sorted(model.name for model in client.search_registered_models(max_results=20)))
        return f"Registered models are: {known or 'none'}. Check the name, and tracking.uri (or MLFLOW_TRACKING_URI)."
    except MlflowException:
        return "Check tracking.uri (or MLFLOW_TRACKING_URI)."


def check_names(config: TrackingConfig) -> None:
    """Raises ConfigError when the registered name or the alias is one that MLflow refuses, or reads as something else."""
    problems = []
    if config.register_as and not _NAME.fullmatch(config.register_as):
        problems.append(
            f"tracking.register_as is {config.register_as!r}; letters, digits, - and _ are allowed, 120 at most "
            "(MLflow refuses / : . % and quotes somewhere, and reads @ as an alias)."
        )
    if config.alias:
        problems += _alias_problems(config.alias)
        if not config.register_as:
            problems.append("tracking.alias needs tracking.register_as: only a registered version has an alias.")
    if problems:
        raise ConfigError("\n".join(["The settings are wrong:", *(f"  {problem}" for problem in problems)]))


def _alias_problems(alias: str) -> list[str]:
    if not _ALIAS.fullmatch(alias) or alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        return [f"The alias {alias!r} is not allowed: letters, digits, - and _, a letter first; not latest, not v1, v2."]
    return []


@dataclass(frozen=True)
class RunHandle:
    """A run of MLflow: plain values that travel to rank 0."""

    uri: str
    run_id: str
    experiment: str


def start(id: str, config: Any, settings: Settings, digest: str) -> RunHandle:
    """Creates the run with its parameters and tags; artifacts of a local SQLite store lie beside it.

    Raises TrackingError when the server does not answer.
    """
    uri = tracking_uri(settings.tracking)
    with _server(uri, "Creating a run") as client:
        found = client.get_experiment_by_name(settings.tracking.experiment)
        experiment = found.experiment_id if found else _create_experiment(client, settings.tracking.experiment)
        tags = {"ghee.model": id, "ghee.version": version("ghee-models"), "ghee.config_digest": digest}
        tags |= {"mlflow.source.name": "ghee-models train", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
        if settings.data.content_id:
            tags["ghee.content_id"] = settings.data.content_id
        run = client.create_run(experiment, tags=tags, run_name=f"{id}-{digest}")
        for name, value in _flat({"model": asdict(config), **asdict(settings)}).items():
            # The server cuts a value at 6,000 characters; the whole configuration is an artifact of the run.
            client.log_param(run.info.run_id, name, value if len(value) <= 500 else f"{value[:440]}... (see config.yaml)")
        return RunHandle(uri, run.info.run_id, settings.tracking.experiment)


def _create_experiment(client: mlflow.MlflowClient, name: str) -> str:
    try:
        # Else its pages are about language models: traces, judges, prompts
        made: str = client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another training may have created it meanwhile
        if found is None:
            raise
        made = found.experiment_id
    return made


def _log_input(dataset: Any) -> None:
    """The data set as an input of the active run."""
    try:
        mlflow.log_input(dataset, context="training")
    except MlflowException as error:
        # MLflow looks whether the experiment has this data set, then inserts it: of two trainings that do so at once,
        # the database refuses one as a double (BAD_REQUEST), which finds it there when it asks again.
        if error.error_code != "BAD_REQUEST":
            raise
        mlflow.log_input(dataset, context="training")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number that has no name
        return str(os.getuid())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def finish(handle: RunHandle, ok: bool) -> None:
    """Marks the run finished or failed. Says nothing when the server is away by then."""
    with contextlib.suppress(TrackingError), _server(handle.uri, "Closing a run") as client:
        client.set_terminated(handle.run_id, "FINISHED" if ok else "FAILED")


class RunLog:
    """Rank 0's hand on the run; a context manager that also records system metrics while it is open."""

    def __init__(self, handle: RunHandle, settings: Settings) -> None:
        self.handle, self.settings = handle, settings
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RunLog:
        with _server(self.handle.uri, "Opening a run"):
            self._stack.enter_context(
                mlflow.start_run(run_id=self.handle.run_id, log_system_metrics=self.settings.tracking.system_metrics)
            )
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics of one epoch; what is not a number (an undefined AUC) is left out."""
        with _server(self.handle.uri, "Writing metrics"):
            mlflow.log_metrics({metric_name(k): v for k, v in values.items() if v == v}, step=step)

    def dataset(self, digest: str, rows: int) -> None:
        """The data as the run's input: its source, and its cumin content id, or a digest of files and sizes."""
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset

        with _server(self.handle.uri, "Writing the data set"):
            data = self.settings.data
            named = data.files[0] if data.files else data.path
            path = named if "://" in named else Path(named).absolute().as_uri()
            if data.path.startswith("dataset:"):
                path = "https://grouplens.org/datasets/movielens/100k"
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*can be interpreted in multiple ways")
                source = resolve_dataset_source(path)
            # MLflow's digests have 36 characters at most; the whole id is a tag.
            given = (data.content_id or digest)[:36]
            _log_input(MetaDataset(source, name=named[-500:], digest=given))
            mlflow.set_tag("ghee.rows", rows)

    def pictures(self, figures: Mapping[str, Any]) -> None:
        """matplotlib figures as PNG files under plots/."""
        with _server(self.handle.uri, "Writing pictures"):
            for name, figure in figures.items():
                mlflow.log_figure(figure, f"plots/{name}.png")

    def model(
        self, model: Model[Any], folder: Path, metrics: Mapping[str, float], tags: Mapping[str, str], *, step: int = 0
    ) -> str:
        """Logs the saved model as a pyfunc with its metrics, then registers it if the settings say so. Returns its URI."""
        tracking = self.settings.tracking
        with _server(self.handle.uri, "Writing the model") as client:
            before = self._registered(client)
            if before is not None:
                return self._alias(client, before)
            for name in ("config.yaml", "schema.json", "metrics.json"):
                mlflow.log_artifact(str(folder / name))
            with warnings.catch_warnings():
                # The signature is made from the schema, which is exact; an example would store rows of the data
                warnings.filterwarnings("ignore", message=".*input example was not provided")
                info = mlflow.pyfunc.log_model(
                    name=model.card.id,
                    loader_module="ghee_models.pyfunc",
                    data_path=str(folder),
                    signature=signature(model),
                    pip_requirements=[f"ghee-models=={version('ghee-models')}"],
                    tags=dict(tags),
                    model_type=str(model.card.tasks[0]),
                )
            named = {metric_name(k): v for k, v in metrics.items() if v == v}
            mlflow.log_metrics(named, step=step, model_id=info.model_id)
            mlflow.set_tags(dict(tags))
            if not tracking.register_as:
                return f"models:/{info.model_id}"
            registered = mlflow.register_model(f"models:/{info.model_id}", tracking.register_as, tags=dict(tags))
            return self._alias(client, registered.version)

    def _alias(self, client: mlflow.MlflowClient, version: str) -> str:
        tracking = self.settings.tracking
        if tracking.alias:
            client.set_registered_model_alias(tracking.register_as, tracking.alias, version)
        return f"models:/{tracking.register_as}/{version}"

    def _registered(self, client: mlflow.MlflowClient) -> str | None:
        """The version that this run has registered already: a rank may be killed after that, and begin again."""
        if not self.settings.tracking.register_as:
            return None
        found = client.search_model_versions(f"run_id = '{self.handle.run_id}'")
        own = [version for version in found if version.name == self.settings.tracking.register_as]
        return str(own[0].version) if own else None


def metric_name(name: str) -> str:
    """MLflow refuses @ in metric names: ndcg@10 becomes ndcg_at_10."""
    return name.replace("@", "_at_")


def signature(model: Model[Any]) -> ModelSignature:
    """Columns in, columns out, and the parameters of PredictOptions."""
    inputs = MlflowSchema([ColSpec(_mlflow_type(f), name=f.name) for f in model.predict_schema.fields])
    options = asdict(model.options)
    kinds = {int: DataType.long, str: DataType.string, bool: DataType.boolean}
    params = ParamSchema([ParamSpec(name, kinds[type(value)], value) for name, value in options.items()])
    return ModelSignature(inputs=inputs, params=params)


def _mlflow_type(f: Field) -> Any:
    name = family(f.arrow or "double")
    return Array(_TYPES[name[5:-1]]) if name.startswith("list<") else _TYPES[name]


def promote(name: str, version: int | str, alias: str, require: Mapping[str, str] | None = None, uri: str = "") -> str:
    """Points `name@alias` at a version, if its metrics meet what is required. Returns models:/name@alias.

    require: metric -> condition, such as {"ndcg@10": ">=0.31"}, or several: {"logloss": ">0.1, <0.6"}.
    Raises PromotionError that lists every condition that is not met (the alias stays where it was), TrackingError when
    there is no such version.
    """
    problems = _alias_problems(alias)
    wanted: list[tuple[str, tuple[str, float]]] = []
    for metric, conditions in (require or {}).items():
        for condition in conditions.split(","):
            parsed = _REQUIREMENT.fullmatch(condition)
            bound = _number(parsed[2]) if parsed else None
            if parsed is None or bound is None:
                problems.append(f"The condition for {metric} is {condition!r}; write it like '>=0.31' or '<0.5'.")
            else:
                wanted.append((metric, (parsed[1], bound)))
    if problems:
        raise ConfigError("\n".join(["This cannot be promoted:", *(f"  {p}" for p in problems)]))
    with _server(uri or tracking_uri(), f"Promoting {name} version {version}", name) as client:
        found = client.get_model_version(name, str(version))
        measured = client.get_run(found.run_id).data.metrics if found.run_id else {}
        unmet = [text for metric, rule in wanted if (text := _unmet(metric, rule, measured))]
        if unmet:
            raise PromotionError(
                "\n".join([f"{name} version {version} is not promoted to {alias}:", *(f"  {text}" for text in unmet)])
            )
        client.set_registered_model_alias(name, alias, str(version))
    return f"models:/{name}@{alias}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # two points, perhaps
        return None


def _unmet(metric: str, rule: tuple[str, float], measured: Mapping[str, float]) -> str:
    value = measured.get(metric_name(metric))
    if value is None:
        return f"it has no metric {metric}; it has {', '.join(sorted(measured))}."
    sign, bound = rule
    holds = {">=": value >= bound, "<=": value <= bound, ">": value > bound, "<": value < bound}[sign]
    return "" if holds else f"{metric} is {value:.6g}, required is {sign} {bound:g}."


@contextlib.contextmanager
def fetched(uri: str, tracking: str = "") -> Iterator[Path]:
    """The folder of a saved model, downloaded for as long as the context is open.

    uri: models:/name@alias, models:/name/version, models:/m-..., runs:/..., or name@alias for short.
    Raises ConfigError for anything else, TrackingError when MLflow has no such model.
    """
    if "@" in uri and ":/" not in uri:
        uri = f"models:/{uri}"
    if not uri.startswith(("models:/", "runs:/")):
        raise ConfigError(f"{uri!r} is neither a folder nor models:/name@alias, models:/name/version, runs:/id/path.")
    asked = re.match(r"models:/([^/@]+)[/@]", uri)
    with tempfile.TemporaryDirectory(prefix="ghee-model-") as folder:
        with _server(tracking or tracking_uri(), f"Fetching {uri}", asked[1] if asked else ""):
            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
        yield artifact.find(Path(folder))


def data_digest(files: list[tuple[str, int]]) -> str:
    """A digest of files' names and sizes, for data without a content id."""
    return hashlib.sha256("\n".join(f"{name} {size}" for name, size in sorted(files)).encode()).hexdigest()[:32]
