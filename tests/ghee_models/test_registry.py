"""Looking up: nothing is imported, nothing is ambiguous."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pytest

import ghee_models
from ghee_models import registry
from ghee_models.card import DataFormat, ModelCard, Task
from ghee_models.errors import DuplicateModelError, UnknownModelError
from ghee_models.sparse_model import SparseModel

FIRST_WAVE = ["bpr-mf", "deepfm", "ease", "fm", "itemknn", "lightgcn", "logreg", "mlp", "popularity"]


@dataclass
class Config:
    lr: float = 1e-3


def test_the_first_wave_is_listed_and_filtered() -> None:
    assert registry.list_models() == FIRST_WAVE
    assert registry.list_models(task="recommendation") == ["bpr-mf", "ease", "itemknn", "lightgcn", "popularity"]
    assert registry.list_models(filter="*fm") == ["deepfm", "fm"]


def test_listing_and_describing_import_no_model_no_torch_no_mlflow() -> None:
    code = (
        "import sys, ghee_models as gm\n"
        "for id in gm.list_models(task='ctr') + gm.list_models(): gm.describe(id)\n"
        "bad = [m for m in sys.modules if m in ('torch', 'mlflow', 'hydra', 'scipy')"
        " or (m.startswith('ghee_models.models.') and m.endswith(('.model', '.network')))]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("id", FIRST_WAVE)
def test_a_description_names_settings_schema_reference_and_paper(id: str) -> None:
    found = ghee_models.describe(id)
    assert found["paper"]
    assert found["references"]
    assert found["schema"]
    assert all({"name", "type", "default"} == set(row) for row in found["config"])
    assert issubclass(registry.load_class(id), ghee_models.Model)


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="Did you mean lightgcn"):
        registry.card("lightgnc")


def test_two_classes_of_one_id_are_an_error_that_names_both() -> None:
    @registry.register("twice", task=Task.CTR, config=Config)
    class One(SparseModel[Config]):
        """One."""

    with pytest.raises(DuplicateModelError, match=r"One.*Two"):

        @registry.register("twice", task=Task.CTR, config=Config)
        class Two(SparseModel[Config]):
            """Two."""


def test_a_class_with_the_id_of_an_installed_model_is_refused() -> None:
    with pytest.raises(DuplicateModelError, match=r"ghee_models\.models\.fm\.card:CARD of ghee-models"):

        @registry.register("fm", task=Task.CTR, config=Config)
        class Mine(SparseModel[Config]):
            """Mine."""


OTHER = ModelCard("fm", (Task.CTR,), DataFormat.SPARSE_ROWS, "another", "", Config, "elsewhere:FM")


def test_two_packages_with_one_id_are_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = EntryPoint("fm", "ghee_models.models.fm.card:CARD", registry.GROUP)
    theirs = EntryPoint("fm", f"{__name__}:OTHER", registry.GROUP)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[test_an_unknown_id_names_the_nearest.__module__])
    monkeypatch.setattr(registry, "entry_points", lambda **_: [ours, theirs])
    with pytest.raises(DuplicateModelError, match=r"ghee_models\.models\.fm\.card:CARD and .*:OTHER"):
        registry.list_models()


@pytest.mark.parametrize("id", ["FM", "a/b", "a@b", "", "1st", "x" * 64])
def test_an_id_that_mlflow_could_not_take_is_refused(id: str) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        ModelCard(id, (Task.CTR,), DataFormat.SPARSE_ROWS, "", "", Config, "a:B")


def test_a_package_that_cannot_be_imported_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no_such_package.card:CARD", registry.GROUP)
    fm = EntryPoint("fm", "ghee_models.models.fm.card:CARD", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda **_: [broken, fm])
    with pytest.warns(RuntimeWarning, match=r"'broken' is left out, no_such_package.*No module named"):
        assert registry.list_models() == ["fm"]


def test_the_public_names_are_these(monkeypatch: Any) -> None:
    assert set(ghee_models.__all__) == {
        "DataFormat", "EmbeddingRecommender", "Model", "ModelCard", "PredictOptions", "Recommender", "Reference",
        "Settings", "SparseModel", "Task", "TrainResult", "check", "compose", "describe", "describe_kept", "errors",
        "evaluate",
        "list_models", "load", "predict", "promote", "register", "reproduce", "train", "unregister",
    }  # fmt: skip
    assert all(getattr(ghee_models, name) is not None for name in ghee_models.__all__)
