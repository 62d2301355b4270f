"""Trains a model from start to end: check, scan, train, evaluate, keep. Two ghee pipelines; rank 0 writes to MLflow.

rows ─► scan (map) ─► merge (loop)                        the state
rows ─► train_preprocess (map) ─► train (loop) ─► model   the weights
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import ghee
from ghee_models import registry
from ghee_models import settings as st
from ghee_models.checker import Counter, Report, Violation, check_schema
from ghee_models.contract import Batch, Model
from ghee_models.errors import ConfigError, DataError
from ghee_models.parts import Part, Parts, files_of, prepare, source_of
from ghee_models.schema import Schema
from ghee_models.state import Scan, State

if TYPE_CHECKING:
    from ghee_models.run import Metrics
    from ghee_models.tracking import RunHandle


@dataclass(frozen=True)
class TrainResult:
    """A training that has ended well.

    model_uri: models:/name/version when registered, models:/m-... when logged, or the folder; metrics: of the test
    part; valid: of the validation part at the kept epoch (the first is 0); history: per epoch, its `seconds` being those
    of training alone; seconds: of the whole loop.
    """

    model: str
    model_uri: str
    metrics: Metrics
    valid: Metrics = field(default_factory=dict)
    history: list[Metrics] = field(default_factory=list)
    best_epoch: int = -1
    seconds: float = 0.0
    rows: int = 0
    run_id: str = ""
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def seconds_per_epoch(self) -> float:
        """Mean seconds of an epoch's training, without its validation; 0 without epochs."""
        return sum(row["seconds"] for row in self.history) / len(self.history) if self.history else 0.0


def train(
    model: str,
    data: Any = "",
    *,
    config: Mapping[str, Any] | None = None,
    settings: st.Settings | Mapping[str, Any] | None = None,
    register_as: str = "",
    save_to: str | Path | None = None,
    on: Any = "local",
) -> TrainResult:
    """Trains the model of this id on Parquet data and keeps it in MLflow, in the folder `save_to`, or in both.

    data: a path (folder, file, glob or URL), or a dataset of cumin's, whose content id the run then keeps;
    config: the model's settings; settings: all others (data, split, sampler, trainer, eval, tracking); on: where it
    runs, as for `ghee.run`.

    Example: train("lightgcn", "events/", config={"dim": 128}, register_as="user-vectors")

    Raises UnknownModelError, ConfigError and TrackingError before anything is computed, DataError with every violation
    found, TrainingError when no model can come of it. Nothing is registered unless everything went well.
    """
    card = registry.card(model)
    given = settings if isinstance(settings, st.Settings) else st.build(st.Settings, settings or {}, where="settings")
    given = replace(given, data=source_of(data, given.data))
    if register_as:
        given = replace(given, tracking=replace(given.tracking, register_as=register_as))
    st.check_settings(given)
    own: Any = st.build(card.config, config or {}, where="model")
    return train_configured(model, own, given, save_to=save_to, on=on)


def train_configured(
    id: str, config: Any, settings: st.Settings, *, save_to: str | Path | None = None, on: Any = "local"
) -> TrainResult:
    """`train` with settings that are built and checked already."""
    target = None if save_to is None else Path(save_to).absolute()
    if not settings.tracking.enabled and target is None:
        raise ConfigError("tracking.enabled is false and save_to is not given: the model would be kept nowhere.")
    if target is not None and target.exists():
        raise ConfigError(f"save_to is {target}, which exists already; a model is never written over another.")
    if settings.tracking.enabled:
        from ghee_models import tracking

        tracking.check_names(settings.tracking)
    cls = registry.load_class(id)
    schema = cls.make_schema(settings.data)
    digest = st.config_digest(config, settings)
    with contextlib.ExitStack() as stack:
        parts = prepare(settings.data, settings.split, schema)
        for part in (parts.train, parts.valid, parts.test):
            if part is not None and (part.keep is None or part is parts.train):
                # The scan looks at all training rows, and with `keep` at all others
                check_schema(schema, part.paths, everything=part is not parts.train).raise_if_bad()
        handle = None
        if settings.tracking.enabled:
            handle = tracking.start(id, config, settings, digest)
            stack.push(lambda kind, error, trace: tracking.finish(handle, kind is None))
        state = scan(schema, parts.train, settings, on=on)
        model = cls(config, schema.with_types(dict(state.types)), state, settings.data)
        stage = TrainStage(model, settings, parts, digest, handle, target)
        result: TrainResult = ghee.run(_pipeline(model, settings, parts.train, stage), on=on).result
        return result


def _pipeline(model: Model[Any], settings: st.Settings, part: Part, stage: TrainStage) -> ghee.Pipeline:
    trainer = settings.trainer
    epochs = 1 if model.card.closed_form else trainer.epochs
    rows = ghee.read(
        list(part.paths),
        columns=model.schema.names,
        batch_size=trainer.batch_size,
        epochs=epochs,
        shuffle=trainer.seed if trainer.shuffle and not model.card.closed_form else None,
    )
    made = rows.map(Preprocess(model, part), name="train_preprocess", replicas=trainer.preprocess_replicas)
    gpus = trainer.ranks if stage.cuda else 0
    return made.loop(stage, name="train", ranks=trainer.ranks, tail="pad", ordered=trainer.ordered, gpus=gpus)


def scan(schema: Schema, part: Part, settings: st.Settings, *, on: Any = "local") -> State:
    """The state of the rows of a part, gathered while every row of its files is checked.

    Raises DataError with the place of the first row of every violation.
    """
    rows = ghee.read(list(part.paths), columns=schema.names, batch_size=65_536)
    scanned = rows.map(ScanRows(schema, part, settings.data.min_count), replicas=settings.trainer.preprocess_replicas)
    gathered, counter = ghee.run(scanned.loop(_merge, name="scan"), on=on).result or (
        Scan(schema, settings.data.min_count),
        Counter(schema),
    )
    violations = counter.finish(whole=True)
    if violations:
        found = check_schema(schema, part.paths, everything=True)  # once more, now to say where
        raise DataError(Report(violations, counter.rows, counter.rows) if found.ok else found)
    if gathered is None:
        fix = "Check split.ratios and split.seed, or give more rows."
        raise DataError(Report([Violation("(data)", "the split leaves no row for training", counter.rows, fix=fix)]))
    state: State = gathered.state()
    return state


class ScanRows:
    """The map stage of a scan: one Scan and one Counter per batch."""

    def __init__(self, schema: Schema, part: Part, min_count: int) -> None:
        self.schema, self.part, self.min_count = schema, part, min_count

    def __call__(self, rows: pa.RecordBatch) -> list[Any] | None:
        """What one batch adds: a list of one (Scan, Counter); the Scan is None where a rule is broken or no row is kept."""
        if not rows.num_rows:
            return None
        counter = Counter(self.schema)
        counter.add(rows)  # those of validation and test too: nobody else looks at all of them
        # Rows that break a rule are counted, not learnt from: they may not even be of a type that can be
        if counter.found:
            return [(None, counter)]
        kept = rows if self.part.keep is None else self.part.keep(rows)
        return [(Scan(self.schema, self.min_count).add(kept) if kept.num_rows else None, counter)]


def _merge(batches: Any) -> tuple[Scan | None, Counter] | None:
    gathered: Scan | None = None
    counted: Counter | None = None
    for epoch in batches.epochs():
        for batch in epoch:
            for found, counter in batch:
                counted = counter if counted is None else counted.merge(counter)
                if found is not None:
                    gathered = found if gathered is None else gathered.merge(found)
    return None if counted is None else (gathered, counted)


class Preprocess:
    """The map stage before training: a part's rows through `train_preprocess`."""

    def __init__(self, model: Model[Any], part: Part | None) -> None:
        self.model, self.part = model, part

    def __call__(self, rows: pa.RecordBatch) -> Batch | None:
        if self.part is not None and self.part.keep is not None:
            rows = self.part.keep(rows)
        return self.model.train_preprocess(rows) if rows.num_rows else None


class TrainStage:
    """The loop stage: trains on every rank; rank 0 logs, saves, registers, and returns the TrainResult."""

    def __init__(
        self,
        model: Model[Any],
        settings: st.Settings,
        parts: Parts,
        digest: str,
        handle: RunHandle | None,
        target: Path | None,
    ) -> None:
        self.model, self.settings, self.parts = model, settings, parts
        self.digest, self.handle, self.target = digest, handle, target
        self.cuda = wants_cuda(settings.trainer.device)
        self.training = secrets.token_hex(8)

    def __call__(self, batches: Any) -> TrainResult | None:
        """Trains on this rank; None on every rank but 0."""
        from ghee_models.fitting import fit
        from ghee_models.run import World

        world = World(ghee.rank(), ghee.size())
        device = _device(world.size, self.cuda)
        with contextlib.ExitStack() as stack:
            log = self._open(world.rank, stack)
            write = log.metrics if log is not None else (lambda metrics, epoch: None)
            fitted = fit(
                self.model, batches, self.settings, self.parts, world, write,
                device=device, save=ghee.checkpoint, restored=ghee.restored(),
            )  # fmt: skip
            if world.rank != 0:
                return None
            result = TrainResult(
                model=self.model.card.id,
                model_uri="",
                metrics=fitted.metrics,
                valid=fitted.valid,
                history=fitted.history,
                best_epoch=fitted.best_epoch,
                seconds=fitted.seconds,
                rows=self.model.state.rows,
                run_id=self.handle.run_id if self.handle else "",
                digests=self.parts.digests,
            )
            return replace(result, model_uri=self._keep(result, log))

    def _open(self, rank: int, stack: contextlib.ExitStack) -> Any:
        if self.handle is None or rank != 0:
            return None
        from ghee_models import tracking

        log = stack.enter_context(tracking.RunLog(self.handle, self.settings))
        sizes = [(name, system.get_file_info(name).size) for system, name in files_of(self.parts.train.paths)]
        log.dataset(self.parts.digests.get("train") or tracking.data_digest(sizes), self.model.state.rows)
        return log

    def _keep(self, result: TrainResult, log: Any) -> str:
        from ghee_models import artifact

        with tempfile.TemporaryDirectory(prefix="ghee-model-") as scratch:
            folder = self.target or Path(scratch) / self.model.card.id
            if not artifact.is_of(folder, self.training):  # a rank that was killed after it had kept the model
                artifact.save(self.model, self.settings, result.metrics, folder, training=self.training)
            if log is None:
                return str(folder)
            log.pictures(self._pictures(result))
            uri: str = log.model(self.model, folder, result.metrics, self._tags(), step=max(result.best_epoch, 0))
            return uri

    def _tags(self) -> dict[str, str]:
        card = self.model.card
        tags = {
            "ghee.model": card.id,
            "ghee.task": ",".join(card.tasks),
            "ghee.data_format": str(card.data),
            "ghee.config_digest": self.digest,
            "ghee.schema_digest": self.model.schema.digest,
        }
        return {**tags, **{f"ghee.split_digest.{name}": value for name, value in self.parts.digests.items()}}

    def _pictures(self, result: TrainResult) -> dict[str, Any]:
        from ghee_models import plots
        from ghee_models.fitting import monitor_of

        monitor = monitor_of(self.model, self.settings)
        pictures = {"learning_curves": plots.learning_curves(result.history, monitor, result.best_epoch)}
        part = self.parts.test or self.parts.valid or self.parts.train
        rows = next(part.batches([f.name for f in self.model.predict_schema.fields], size=64), None)
        if rows is not None:
            rows = rows.slice(0, 12)
            predicted = self.model.postprocess(self.model.predict(self.model.predict_preprocess(rows)), rows)
            pictures["predictions"] = plots.table(predicted, f"{self.model.card.id}: the first rows of the {part.name} part")
        return pictures


def wants_cuda(device: str) -> bool:
    """Whether the ranks train on GPUs; `auto` asks the driver's machine. Raises ConfigError for cuda where there is none."""
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ConfigError("trainer.device is cuda, but torch sees no GPU here; use cpu, or auto.")
    return device != "cpu" and there


def _device(ranks: int, cuda: bool) -> Any:
    """The device of this rank; with several ranks torch.distributed is set up (ghee ends it when every rank is done)."""
    import torch

    import ghee.torch

    if ranks > 1:
        return ghee.torch.init_process_group()
    return torch.device("cuda", 0) if cuda else torch.device("cpu")
