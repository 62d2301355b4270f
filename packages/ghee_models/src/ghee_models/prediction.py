"""Prediction and evaluation with a kept model: streamed through ghee, without the training data.

rows ─► predict_preprocess (map) ─► predict, postprocess (map) ─► Parquet, or record batches here
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import ghee
from ghee_models import artifact
from ghee_models import settings as st
from ghee_models.checker import check_schema, check_streamed, placed
from ghee_models.contract import Batch, Model
from ghee_models.errors import ConfigError
from ghee_models.parts import paths_of, source_of
from ghee_models.schema import Schema
from ghee_models.training import Preprocess

_HELD_BATCHES = 4  # that `predict` without `out` has made before anybody takes them


@dataclass(frozen=True)
class PredictResult:
    """A prediction that was written: where, and how many rows were read and written."""

    out: str
    rows: int
    seconds: float


def load(uri: str, *, tracking_uri: str = "") -> Model[Any]:
    """A kept model: of models:/name@alias, models:/name/version, models:/m-..., runs:/..., or a folder.

    Raises TrackingError when MLflow has no such model, ArtifactError when it is damaged or of a newer format.
    """
    with _kept(uri, tracking_uri) as folder:
        return artifact.load(folder)


def _kept(uri: str, tracking_uri: str = "") -> contextlib.AbstractContextManager[Path]:
    """The folder of a kept model for as long as the context is open; a folder is taken as it is."""
    local = Path(uri.removeprefix("file://"))
    if local.is_dir():
        return contextlib.nullcontext(artifact.find(local))
    # Here, for MLflow takes about a second to import and every rank that predicts imports this module.
    from ghee_models import tracking

    return tracking.fetched(uri, tracking_uri)


def predict(
    uri: str,
    data: Any,
    *,
    out: str | None = None,
    options: st.PredictOptions | None = None,
    batch_size: int = 4096,
    replicas: int = 1,
    preprocess_replicas: int = 1,
    threads: int = 1,
    overwrite: bool = False,
    on: Any = "local",
) -> PredictResult | Iterator[pa.RecordBatch]:
    """Predicts for the rows of Parquet data; writes Parquet to the folder or URL `out`, or gives record batches.

    data: a path, or a dataset of cumin's.
    options: k, output and exclude_seen of recommendations. replicas: processes that predict, with `threads` of torch each;
    preprocess_replicas: processes that read and encode rows for them.
    Without `out` batches are made while they are taken, a few ahead; an iterator that is closed ends its processes.
    Raises DataError when the data is not what the model was trained on: names and types before anything runs; nulls and
    numbers that are not finite in a sample before, in every row while it streams. Nothing is written then; without `out` the
    iterator raises it.
    """
    model = load(uri)
    model.options = options or st.PredictOptions()
    paths = paths_of(source_of(data, st.DataConfig()))
    check_schema(model.predict_schema, paths, training=False).raise_if_bad()
    columns = [f.name for f in model.predict_schema.fields]
    rows = ghee.read(list(paths), columns=columns, batch_size=batch_size)
    encoded = rows.map(PredictPreprocess(model), name="predict_preprocess", replicas=preprocess_replicas)
    predicted = encoded.map(Predict(model, threads), name="predict", replicas=replicas)
    if out is None:
        return _given(predicted, model.predict_schema, paths, on)
    with placed(model.predict_schema, paths, training=False):
        run = ghee.run(predicted.write(out, mode="overwrite" if overwrite else "error"), on=on)
    return PredictResult(out, run.report.rows_read, run.report.seconds)


def _given(predicted: ghee.Pipeline, schema: Schema, paths: Sequence[str], on: Any) -> Iterator[pa.RecordBatch]:
    """The results here, while they are made: the run waits for who takes them, and is cancelled if nobody does."""
    with placed(schema, paths, training=False):
        if on == "kubernetes" or isinstance(on, ghee.Kubernetes):  # its driver is elsewhere and sends a list at the end
            found: list[pa.RecordBatch] = []
            ghee.run(predicted.write(found), on=on)
            yield from found
            return
        arrived: queue.Queue[pa.RecordBatch | None] = queue.Queue(_HELD_BATCHES)
        left = threading.Event()

        def take(batch: pa.RecordBatch) -> None:
            if not left.is_set():
                arrived.put(batch)

        def end() -> None:
            run.wait()
            arrived.put(None)

        run = ghee.run(predicted.write(take), on=on, wait=False)
        waiting = threading.Thread(target=end, name="ghee-models predict")
        waiting.start()
        try:
            while (batch := arrived.get()) is not None:
                yield batch
            run.result  # noqa: B018 - raises what the run ended with
        finally:
            left.set()
            with contextlib.suppress(queue.Empty):  # `take` and `end` may be waiting for room
                while True:
                    arrived.get_nowait()
            run.cancel()
            waiting.join()


def evaluate(uri: str, data: Any, *, ks: tuple[int, ...] = (10,), on: Any = "local") -> dict[str, float]:
    """Metrics of a kept model on labelled data: every row of it counts. Interactions of training are left out of lists.

    Raises DataError when the data breaks the model's schema, ConfigError for a length below 1.
    """
    if min(ks, default=0) < 1:
        raise ConfigError(f"k is {list(ks)}; it must be lengths of at least 1.")
    model = load(uri)
    paths = paths_of(source_of(data, st.DataConfig()))
    check_schema(model.schema, paths).raise_if_bad()
    rows = ghee.read(list(paths), columns=model.schema.names, batch_size=16_384)
    made = rows.map(EvaluatePreprocess(model, None), name="train_preprocess")
    with placed(model.schema, paths, training=True):
        result: dict[str, float] = ghee.run(made.loop(Evaluate(model, ks), name="evaluate"), on=on).result
    return result


class PredictPreprocess:
    """The first map stage: rows to (arrays, rows)."""

    def __init__(self, model: Model[Any]) -> None:
        self.model = model

    def __call__(self, rows: pa.RecordBatch) -> tuple[Batch, pa.RecordBatch]:
        check_streamed(self.model.predict_schema, rows)
        return self.model.predict_preprocess(rows), rows


class EvaluatePreprocess(Preprocess):
    """The map stage of an evaluation: rows that no training has checked."""

    def __call__(self, rows: pa.RecordBatch) -> Batch | None:
        check_streamed(self.model.schema, rows)
        return super().__call__(rows)


class Predict:
    """The second map stage: arrays to result rows."""

    def __init__(self, model: Model[Any], threads: int) -> None:
        self.model, self.threads = model, threads

    def __call__(self, encoded: tuple[Batch, pa.RecordBatch]) -> pa.RecordBatch:
        """The results of one batch, a row for each of its rows."""
        import torch

        if torch.get_num_threads() != self.threads:  # torch takes all cores in each process, which then wait for each other
            torch.set_num_threads(self.threads)
        batch, rows = encoded
        return self.model.postprocess(self.model.predict(batch), rows)


class Evaluate:
    """The loop stage of an evaluation."""

    def __init__(self, model: Model[Any], ks: tuple[int, ...]) -> None:
        self.model, self.ks = model, ks

    def __call__(self, batches: Any) -> dict[str, float]:
        """Metrics of all batches, which are held encoded until the last is there."""
        from ghee_models.run import World

        pairs = [] if self.model.state.pairs is None else [self.model.state.pairs]
        held = [batch for epoch in batches.epochs() for batch in epoch]
        return self.model.evaluate(held, World(), exclude=pairs, ks=self.ks)


def describe_kept(uri: str) -> dict[str, Any]:
    """What a kept model is: id, package version, columns, settings, metrics of the test part; nothing of it is executed.

    Raises TrackingError when MLflow has no such model, ArtifactError when it is damaged or of a newer format.
    """
    with _kept(uri) as folder:
        header = artifact.header(folder)
        own, given = artifact.load_settings(folder)
        schema = Schema.from_json(json.loads((folder / "schema.json").read_text()))
        return {
            "id": header["id"],
            "ghee_models": header["ghee_models"],
            "schema": {f.name: f"{f.kind}, {f.arrow or f.wanted}" for f in schema.fields},
            "settings": {"model": own, **asdict(given)},
            "metrics": json.loads((folder / "metrics.json").read_text()),
        }
