"""Training on processes through ghee's launcher: two ranks are one rank, and a killed rank goes on where it was."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

import ghee
import ghee.torch
from ghee.entry import home
from ghee_models import artifact, registry
from ghee_models import settings as st
from ghee_models.card import DataFormat
from ghee_models.contract import Batch, Model
from ghee_models.run import TrainingRun, World
from ghee_models.state import scan
from ghee_models.testing import Replay, label_kind_of, sample
from ghee_models.training import train_configured

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # each training starts processes that import torch
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the ranks cannot import a test

TRAINABLE = {
    "logreg": {},
    "fm": {"dim": 4},
    "deepfm": {"dim": 4, "hidden": [8], "dropout": 0.0},
    "mlp": {"dim": 4, "hidden": [8], "dropout": 0.0},
    "bpr-mf": {"dim": 8},
    "lightgcn": {"dim": 8},
}
ROWS = 448  # seven batches of 64: in the last round of an epoch the second rank has no row


def fixed_negatives(cls: type[Any]) -> type[Any]:
    class Fixed(cls):  # type: ignore[misc]
        """Negatives that follow from the pair alone: ranks draw by themselves, so drawn ones could not be compared."""

        def prepare(self, batch: dict[str, torch.Tensor], run: TrainingRun) -> dict[str, torch.Tensor]:
            return {**batch, "negatives": (1 + (batch["user"] * 7 + batch["item"] * 13) % 29)[:, None]}

    return Fixed


def prepared(id: str) -> tuple[Model[Any], pa.RecordBatch]:
    """An untrained model and the rows it is to learn from."""
    cls = registry.load_class(id)
    described, rows = sample(cls.card.data, label_kind_of(cls))
    rows = rows.slice(0, ROWS)
    made = fixed_negatives(cls) if "item" in rows.schema.names and cls.card.data is DataFormat.INTERACTIONS else cls
    schema = cls.make_schema(described)
    return made(cls.card.config(**TRAINABLE[id]), schema, scan(schema, [rows]), described), rows


class Encode:
    """The map stage: row numbers to the arrays of every model."""

    def __init__(self) -> None:
        self.models = {id: prepared(id) for id in TRAINABLE}

    def __call__(self, numbers: pa.RecordBatch) -> Batch:
        found = {}
        for id, (model, rows) in self.models.items():
            batch = model.train_preprocess(rows.take(numbers.column(0)))
            assert batch is not None
            found |= {f"{id}/{name}": array for name, array in batch.items()}
        return found


def train_all(batches: Any) -> dict[str, Any]:
    """The loop stage: trains every model on the batches of two epochs that this rank was given."""
    world = World(ghee.rank(), ghee.size())
    if world.size > 1:
        ghee.torch.init_process_group()
    torch.set_num_threads(1)
    held = [list(epoch) for epoch in batches.epochs()]
    found = {}
    for id in TRAINABLE:
        own = [
            {name.split("/")[1]: array for name, array in batch.items() if name.startswith(id + "/")} for batch in held[0]
        ]
        model, _ = prepared(id)
        model.train(Replay(own, 2), TrainingRun(st.TrainerConfig(), st.SamplerConfig(), world))
        found |= {f"{id}.{name}": tensor.numpy() for name, tensor in model.weights().items()}
    found["steps"] = len(held[0])
    return found


def test_two_ranks_of_half_a_batch_are_one_rank(tmp_path: Path) -> None:
    """Every trainable model, started by ghee's launcher, its batches dealt by ghee."""
    pq.write_table(pa.table({"n": list(range(ROWS))}), tmp_path / "numbers.parquet", row_group_size=ROWS)

    def run(size: int, ranks: int, on: str) -> list[dict[str, Any]]:
        rows = ghee.read(str(tmp_path / "numbers.parquet"), batch_size=size).map(Encode())
        found: list[dict[str, Any]] = ghee.run(
            rows.loop(train_all, name="train", ranks=ranks, tail="pad", ordered=True), on=on
        ).results["train"]
        return found

    (one,) = run(128, 1, "inline")
    first, second = run(64, 2, "local")
    assert one.pop("steps") == first.pop("steps") == second.pop("steps") == 4
    assert {name.split(".")[0] for name in one} == set(TRAINABLE)
    for name, expected in one.items():
        assert first[name] == pytest.approx(second[name], abs=1e-6), name
        assert first[name] == pytest.approx(expected, abs=5e-5), name


def fragile(cls: type[Any], marker: Path, steps: int) -> type[Any]:
    class Fragile(cls):  # type: ignore[misc]
        """Is killed in its n-th step, once."""

        seen = 0

        def prepare(self, batch: dict[str, torch.Tensor], run: TrainingRun) -> dict[str, torch.Tensor]:
            self.seen += 1
            if self.seen == steps and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return dict(super().prepare(batch, run))

    return Fragile


def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described, rows = sample(DataFormat.INTERACTIONS)
    table = pa.Table.from_batches([rows])
    pq.write_table(table.slice(0, 512), tmp_path / "train.parquet", row_group_size=128)
    pq.write_table(table.slice(512), tmp_path / "valid.parquet")
    described.path = str(tmp_path / "train.parquet")
    settings = st.Settings(
        data=described,
        split=st.SplitConfig(kind="given", valid=str(tmp_path / "valid.parquet")),
        trainer=st.TrainerConfig(epochs=3, batch_size=128, device="cpu", checkpoint_seconds=0.0),
        tracking=st.TrackingConfig(enabled=False),
    )
    own = registry.card("bpr-mf").config(dim=8)
    whole = train_configured("bpr-mf", own, settings, save_to=tmp_path / "whole", on="inline")
    cls, marker = registry.load_class("bpr-mf"), tmp_path / "killed"
    monkeypatch.setattr(registry, "load_class", lambda _: fragile(cls, marker, 7))  # in the second epoch of four steps
    result = train_configured("bpr-mf", own, settings, save_to=tmp_path / "killed-once")
    monkeypatch.undo()
    assert marker.exists()
    assert [row["loss"] for row in result.history] == [row["loss"] for row in whole.history]
    again = artifact.load(tmp_path / "killed-once").weights()
    for name, expected in artifact.load(tmp_path / "whole").weights().items():
        assert torch.equal(again[name], expected), name


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore:.*type hint:UserWarning"
)  # MLflow warns of its own code
def test_two_ranks_write_one_run_and_register_one_version_as_good_as_that_of_one(tmp_path: Path) -> None:
    described, rows = sample(DataFormat.SPARSE_ROWS)
    pq.write_table(pa.Table.from_batches([rows]), tmp_path / "rows.parquet", row_group_size=128)
    described.path = str(tmp_path / "rows.parquet")
    store = f"sqlite:///{tmp_path}/mlflow.db"

    def train(ranks: int, on: str, **tracked: Any) -> Any:
        settings = st.Settings(
            data=described,
            trainer=st.TrainerConfig(epochs=3, batch_size=128 // ranks, ranks=ranks, shuffle=False, device="cpu"),
            tracking=st.TrackingConfig(**tracked),
        )
        save_to = None if tracked.get("uri") else tmp_path / "one"
        return train_configured("fm", registry.card("fm").config(lr=0.05), settings, save_to=save_to, on=on)

    one = train(1, "inline", enabled=False)
    two = train(2, "local", uri=store, register_as="clicks", system_metrics=False)
    assert [row["loss"] for row in two.history] == pytest.approx([row["loss"] for row in one.history], abs=1e-4)
    assert two.metrics == pytest.approx(one.metrics, abs=1e-4)
    client = MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    assert (run.info.run_id, run.info.status) == (two.run_id, "FINISHED")
    assert len(client.get_metric_history(two.run_id, "loss")) == 3, "rank 0 alone writes"
    assert [version.version for version in client.search_model_versions("name = 'clicks'")] == [1]


def failing(cls: type[Any], marker: Path) -> type[Any]:
    class Failing(cls):  # type: ignore[misc]
        """Fails in its second epoch, once."""

        seen = 0

        def prepare(self, batch: dict[str, torch.Tensor], run: TrainingRun) -> dict[str, torch.Tensor]:
            self.seen += 1
            if self.seen == 6 and not marker.exists():
                marker.touch()
                raise OSError("this machine is going down")
            return dict(super().prepare(batch, run))

    return Failing


def test_a_failed_training_on_a_published_split_is_resumed_when_its_driver_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GHEE_DATA", str(tmp_path / "data"))
    described, rows = sample(DataFormat.INTERACTIONS)
    pq.write_table(pa.Table.from_batches([rows]), tmp_path / "rows.parquet", row_group_size=128)
    described.path = str(tmp_path / "rows.parquet")
    settings = st.Settings(
        data=described,
        split=st.SplitConfig(kind="recbole"),
        trainer=st.TrainerConfig(epochs=3, batch_size=128, device="cpu", checkpoint_seconds=0.0),
        tracking=st.TrackingConfig(enabled=False),
    )
    own = registry.card("bpr-mf").config(dim=8)
    train_configured("bpr-mf", own, settings, save_to=tmp_path / "whole", on="inline")
    cls, marker = registry.load_class("bpr-mf"), tmp_path / "failed"
    monkeypatch.setattr(registry, "load_class", lambda _: failing(cls, marker))
    known = set((home() / "runs").iterdir())
    with pytest.raises(OSError, match="going down"):
        train_configured("bpr-mf", own, settings, save_to=tmp_path / "resumed", on="inline")
    monkeypatch.undo()
    begun = set((home() / "runs").iterdir()) - known  # one looked at the data, the later one trained
    failed = max(begun, key=lambda folder: folder.stat().st_mtime_ns)  # names tell only the second
    resumed = ghee.resume(failed.name, on="inline").result
    assert len(resumed.history) == 3
    again = artifact.load(tmp_path / "resumed").weights()
    for name, expected in artifact.load(tmp_path / "whole").weights().items():
        assert torch.equal(again[name], expected), name
