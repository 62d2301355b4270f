"""A dataset that cumin built is what a model is trained on: its exact files, and its content id in the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

import cumin
import ghee_models as gm
from ghee_models.errors import ConfigError


@pytest.mark.slow  # MLflow makes its tables
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow warns of its own code
def test_a_model_is_trained_on_a_dataset_and_its_run_knows_the_content_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.arange(600)
    day, user, item = rows % 3, rows % 30, (rows * 7) % 50
    pq.write_table(pa.table({"day": day, "user_id": user, "item_id": item}), tmp_path / "events.parquet")

    def build(last: int) -> cumin.Dataset:
        return cumin.build(
            "taken",
            sql="SELECT day, user_id, item_id FROM events WHERE day <= :last",
            params={"last": last},
            inputs={"events": cumin.files(str(tmp_path / "events.parquet"))},
            partition_by="day",
            store=str(tmp_path / "store"),
        )

    everything, dataset = build(2), build(1)
    assert set(dataset.files()) < set(everything.files())  # days are shared: no folder is the dataset
    assert len(dataset.files()) == 2
    settings = {
        "split": {"ratios": [1, 0, 0]},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db", "system_metrics": False},
    }
    assert gm.check(dataset, model="popularity", everything=True).rows == 400
    result = gm.train("popularity", dataset, settings=settings, save_to=tmp_path / "model", on="inline")
    assert result.rows == 400
    run = MlflowClient(settings["tracking"]["uri"]).get_run(result.run_id)
    assert run.inputs.dataset_inputs[0].dataset.digest == dataset.content_id
    assert run.data.tags["ghee.content_id"] == dataset.content_id
    lists = [row for batch in gm.predict(str(tmp_path / "model"), dataset, on="inline") for row in batch.to_pylist()]
    assert len(lists) == 400
    with pytest.raises(ConfigError, match="data is a int"):
        gm.train("popularity", 7, settings=settings, on="inline")
