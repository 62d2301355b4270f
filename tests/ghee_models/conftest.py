"""What every test of ghee-models gets: one torch thread, a folder of its own, and nothing left behind."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ghee_models import registry
from ghee_models.card import DataFormat
from ghee_models.testing import sample

torch.set_num_threads(1)
# How long an example takes says how busy the machine is, not whether the code is right
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], max_examples=50
)
hypothesis.settings.load_profile("busy")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = {thread.ident for thread in threading.enumerate()}
    known = set(registry._registered)
    yield
    for id in set(registry._registered) - known:
        registry.unregister(id)
    gc.collect()  # MLflow's repositories of artifacts end their threads when they go; one in use it keeps for good
    left = [
        t
        for t in threading.enumerate()
        if t.ident not in before and not t.daemon and not t.name.startswith("MlflowLocalArtifactRepository")
    ]
    assert not left, f"threads are left: {left}"
    assert not multiprocessing.active_children()


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """A folder of two Parquet files of sparse rows, 300 rows each in row groups of 100."""
    return write(tmp_path / "clicks", sample(DataFormat.SPARSE_ROWS)[1])


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """A folder of two Parquet files of interactions."""
    return write(tmp_path / "events", sample(DataFormat.INTERACTIONS)[1])


def write(folder: Path, rows: pa.RecordBatch) -> Path:
    folder.mkdir()
    table = pa.Table.from_batches([rows])
    half = table.num_rows // 2
    pq.write_table(table.slice(0, half), folder / "a.parquet", row_group_size=100)
    pq.write_table(table.slice(half), folder / "b.parquet", row_group_size=100)
    return folder
