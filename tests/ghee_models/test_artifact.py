"""A kept model: whole or refused, nothing of it executed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ghee_models import artifact, registry
from ghee_models.contract import Model
from ghee_models.errors import ArtifactError, ConfigError, UnknownModelError
from ghee_models.pyfunc import _load_pyfunc
from ghee_models.settings import Settings
from ghee_models.testing import fitted, predicted

_kept: list[tuple[Model[Any], pa.RecordBatch]] = []


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    if not _kept:
        _kept.append(fitted(registry.load_class("logreg")))
    model, _ = _kept[0]
    return artifact.save(model, Settings(data=model.data), {"auc": 0.75}, tmp_path / "model")


def test_it_predicts_the_same_and_knows_where_it_comes_from(kept: Path) -> None:
    model, rows = _kept[0]
    assert predicted(artifact.load(kept), rows).equals(predicted(model, rows))
    own, given = artifact.load_settings(kept)
    assert own == {"lr": 0.001, "weight_decay": 0.0, "pooling": "sum"}
    assert given.data == model.data
    assert json.loads((kept / "metrics.json").read_text()) == {"auc": 0.75}


def test_it_holds_no_pickle_but_torchs_own_which_loads_weights_only(kept: Path) -> None:
    files = {str(p.relative_to(kept)) for p in kept.rglob("*") if p.is_file()}
    assert files == {
        "model.json", "config.yaml", "schema.json", "state.json", "metrics.json", "weights.pt",
        "vocab/0.arrow", "vocab/1.arrow", "vocab/2.arrow",
    }  # fmt: skip
    assert zipfile.is_zipfile(kept / "weights.pt")
    loaded = torch.load(kept / "weights.pt", weights_only=True)
    assert set(loaded) == {"weights.table.weight", "bias"}


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


def test_weights_that_would_run_code_are_not_run(kept: Path) -> None:
    torch.save({"bias": Evil()}, kept / "weights.pt")
    header = json.loads((kept / "model.json").read_text())
    header["files"]["weights.pt"] = artifact._sha256(kept / "weights.pt")  # someone who can write here can do this too
    (kept / "model.json").write_text(json.dumps(header))
    with pytest.raises(ArtifactError, match=r"weights\.pt"):
        artifact.load(kept)
    assert not Path("touched").exists()


@pytest.mark.parametrize("name", ["weights.pt", "state.json", "vocab/1.arrow", "config.yaml"])
def test_a_file_cut_short_or_missing_is_named(kept: Path, name: str) -> None:
    whole = (kept / name).read_bytes()
    (kept / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=f"damaged: {name}"):
        artifact.load(kept)
    (kept / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        artifact.load(kept)


def test_a_newer_format_says_what_to_install(kept: Path) -> None:
    header = json.loads((kept / "model.json").read_text())
    (kept / "model.json").write_text(json.dumps({**header, "format": artifact.FORMAT + 1, "ghee_models": "9.0"}))
    with pytest.raises(ArtifactError, match=r"written by ghee-models 9\.0.*Install a newer one"):
        artifact.load(kept)
    (kept / "model.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.load(kept)


def test_a_model_whose_code_is_not_installed_is_named(kept: Path) -> None:
    header = json.loads((kept / "model.json").read_text())
    (kept / "model.json").write_text(json.dumps({**header, "id": "somebody-elses"}))
    with pytest.raises(UnknownModelError, match="somebody-elses"):
        artifact.load(kept)


def test_a_setting_that_this_version_does_not_know_is_refused(kept: Path) -> None:
    text = (kept / "config.yaml").read_text().replace("  lr: 0.001", "  lr: 0.001\n  momentum: 0.9")
    (kept / "config.yaml").write_text(text)
    header = json.loads((kept / "model.json").read_text())
    header["files"]["config.yaml"] = artifact._sha256(kept / "config.yaml")
    (kept / "model.json").write_text(json.dumps(header))
    with pytest.raises(ConfigError, match=r"model\.momentum is unknown"):
        artifact.load(kept)


def test_a_model_is_never_written_over_another_and_never_half(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = _kept[0]
    with pytest.raises(ArtifactError, match="exists already"):
        artifact.save(model, Settings(), {}, kept)

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        artifact.save(model, Settings(), {}, kept.parent / "other")
    assert sorted(p.name for p in kept.parent.iterdir()) == ["model"]


def test_the_pyfunc_takes_frames_and_refuses_what_the_schema_refuses(kept: Path) -> None:
    import pandas as pd

    from ghee_models.errors import DataError

    model, rows = _kept[0]
    loaded = _load_pyfunc(str(kept.parent))
    frame = rows.to_pandas().drop(columns=["label"])
    found = loaded.predict(frame)
    assert np.allclose(found["probability"], predicted(model, rows)["probability"].to_numpy(), atol=1e-6)
    assert loaded.predict(frame.iloc[:0]).empty
    with pytest.raises(DataError, match="amount: null"):
        loaded.predict(frame.assign(amount=[None, *frame["amount"].tolist()[1:]]))
    with pytest.raises(KeyError, match="no column 'tags'"):
        loaded.predict(pd.DataFrame({"user": [1], "item": ["i1"], "amount": [1.0]}))
