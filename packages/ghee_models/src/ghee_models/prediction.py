"""Prediction and evaluation with a kept model: streamed through ghee, without the training data.

rows ─► predict_preprocess (map) ─► predict, postprocess (map) ─► Parquet, or record batches here
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import ghee
from ghee_models import artifact, tracking
from ghee_models import settings as st
from ghee_models.checker import check_schema, check_streamed, placed
from ghee_models.contract import Batch, Model
from ghee_models.parts import resolve
from ghee_models.training import Preprocess


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
    with tracking.fetched(uri, tracking_uri) as folder:
        return artifact.load(folder)


def predict(
    uri: str,
    data: str,
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

    options: k, output and exclude_seen of recommendations. replicas: processes that predict, with `threads` of torch each;
    preprocess_replicas: processes that read and encode rows for them.
    Raises DataError when the data is not what the model was trained on: names and types before anything runs; nulls and
    numbers that are not finite in a sample before, in every row while it streams. Nothing is written then.
    """
    model = load(uri)
    model.options = options or st.PredictOptions()
    paths = resolve(data)
    check_schema(model.predict_schema, paths, training=False).raise_if_bad()
    columns = [f.name for f in model.predict_schema.fields]
    rows = ghee.read(list(paths), columns=columns, batch_size=batch_size)
    encoded = rows.map(PredictPreprocess(model), name="predict_preprocess", replicas=preprocess_replicas)
    predicted = encoded.map(Predict(model, threads), name="predict", replicas=replicas)
    with placed(model.predict_schema, paths, training=False):
        if out is None:
            found: list[pa.RecordBatch] = []
            ghee.run(predicted.write(found), on=on)
            return iter(found)
        run = ghee.run(predicted.write(out, mode="overwrite" if overwrite else "error"), on=on)
    return PredictResult(out, run.report.rows_read, run.report.seconds)


def evaluate(uri: str, data: str, *, ks: tuple[int, ...] = (10,), on: Any = "local") -> dict[str, float]:
    """Metrics of a kept model on labelled data: every row of it counts. Interactions of training are left out of lists.

    Raises DataError when the data breaks the model's schema.
    """
    model = load(uri)
    paths = resolve(data)
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
        from ghee_models.run import World

        pairs = [] if self.model.state.pairs is None else [self.model.state.pairs]
        held = [batch for epoch in batches.epochs() for batch in epoch]
        return self.model.evaluate(held, World(), exclude=pairs, ks=self.ks)


def describe_kept(uri: str) -> dict[str, Any]:
    """What a kept model is: id, schema, settings, metrics; nothing of it is executed."""
    import json

    with tracking.fetched(uri) as folder:
        own, given = artifact.load_settings(folder)
        header = json.loads((Path(folder) / "model.json").read_text())
        return {
            "id": header["id"],
            "ghee_models": header["ghee_models"],
            "model": own,
            "settings": asdict(given),
            "schema": json.loads((folder / "schema.json").read_text()),
            "metrics": json.loads((folder / "metrics.json").read_text()),
        }
