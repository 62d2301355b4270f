"""A fitted model as a folder, and back: no pickle, every file verified, nothing of the training data's rows needed.

model.json      id, versions of format and package, SHA-256 of every other file
config.yaml     the model's and all other settings, resolved
schema.json     the columns with the Arrow types of training
state.json      statistics, widths, label counts; which vocabulary file is which column's
vocab/N.arrow   the values of one column, in the order of their indices
pairs.arrow     interactions: who had what (to leave it out of recommendations), and rows per item
weights.pt      named tensors, loadable with torch.load(weights_only=True)
metrics.json    metrics of the test part
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import torch
import yaml

from ghee_models import registry
from ghee_models.contract import Model
from ghee_models.errors import ArtifactError
from ghee_models.schema import Schema
from ghee_models.settings import Settings, build
from ghee_models.state import Pairs, State, Statistics, Vocabulary

FORMAT = 1


def save(model: Model[Any], settings: Settings, metrics: Mapping[str, float], folder: Path, *, training: str = "") -> Path:
    """Writes the model to `folder`, which must not exist: built beside it and renamed, so it is whole or not there.

    training: which training it comes from, so that one that goes on after a kill knows its own work (`is_of`).
    """
    if folder.exists():
        raise ArtifactError(f"{folder} exists already; a model is never written over another. Choose a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".model-"))
    try:
        _write(model, settings, metrics, made, training)
        os.replace(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return folder


def is_of(folder: Path, training: str) -> bool:
    """Whether `folder` holds the whole model of this very training."""
    return folder.is_dir() and (folder / "model.json").is_file() and header(folder).get("training") == training


def _write(model: Model[Any], settings: Settings, metrics: Mapping[str, float], folder: Path, training: str) -> None:
    config = {"model": {"id": model.card.id, **asdict(model.config)}, **asdict(settings)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    _json(folder / "schema.json", model.schema.to_json())
    _json(folder / "metrics.json", dict(metrics))
    _write_state(model.state, folder)
    torch.save({name: tensor.contiguous() for name, tensor in model.weights().items()}, folder / "weights.pt")
    files = {str(p.relative_to(folder)): _sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    header = {"format": FORMAT, "id": model.card.id, "ghee_models": version("ghee-models"), "training": training}
    _json(folder / "model.json", {**header, "files": files})


def _write_state(state: State, folder: Path) -> None:
    (folder / "vocab").mkdir()
    names = {}
    for number, (name, vocabulary) in enumerate(state.vocabularies.items()):
        names[name] = f"vocab/{number}.arrow"
        _arrow(folder / names[name], pa.table({"value": vocabulary.values}))
    if state.pairs is not None:
        _arrow(folder / "pairs.arrow", pa.table({"user": state.pairs.users, "item": state.pairs.items}))
        _arrow(folder / "items.arrow", pa.table({"count": state.item_counts}))
    numbers = {name: asdict(moments) for name, moments in state.statistics.items() if moments.count}
    _json(
        folder / "state.json",
        {
            "rows": state.rows,
            "vocabularies": names,
            "statistics": numbers,
            "widths": dict(state.widths),
            "types": dict(state.types),
            "labels": dict(state.labels),
        },
    )


def load(folder: Path) -> Model[Any]:
    """The model of a folder. Nothing of it is executed.

    Raises ArtifactError when a file is missing, cut short, changed, or of a newer format; UnknownModelError when the
    package with the model's code is not installed.
    """
    written = header(folder)
    for name, expected in written["files"].items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"The model in {folder} is not whole: {name} is missing. Fetch it again.")
        if _sha256(path) != expected:
            raise ArtifactError(f"The model in {folder} is damaged: {name} is not as it was written. Fetch it again.")
    cls = registry.load_class(written["id"])
    model_config, settings = load_settings(folder)
    schema = Schema.from_json(json.loads((folder / "schema.json").read_text()))
    model = cls(build(cls.card.config, model_config, where="model"), schema, _read_state(folder), settings.data)
    try:
        weights = torch.load(folder / "weights.pt", weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ArtifactError(
            f"weights.pt of the model in {folder} holds something other than tensors, and was not run: "
            f"{str(error).splitlines()[0]}"
        ) from None
    model.load_weights(weights)
    return model


def load_settings(folder: Path) -> tuple[dict[str, Any], Settings]:
    """(the model's own settings, all others) that a model was trained with."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    own = {name: value for name, value in config.pop("model").items() if name != "id"}
    return own, build(Settings, config, where="settings")


def header(folder: Path) -> dict[str, Any]:
    """What model.json says: id, versions of format and package, digests of the files.

    Raises ArtifactError when there is none, when it is damaged, or of a newer format.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise ArtifactError(f"{folder} is no saved model: it has no model.json.")
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        given = found["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); fetch the model again.") from None
    if given > FORMAT:
        raise ArtifactError(
            f"The model in {folder} has format {given}, written by ghee-models {found.get('ghee_models', '?')}; "
            f"this is ghee-models {version('ghee-models')}, which reads up to {FORMAT}. Install a newer one."
        )
    return found


def _read_state(folder: Path) -> State:
    numbers = json.loads((folder / "state.json").read_text())
    vocabularies = {
        name: Vocabulary(_read_arrow(folder / file)["value"].combine_chunks())
        for name, file in numbers["vocabularies"].items()
    }
    pairs, counts = None, None
    if (folder / "pairs.arrow").exists():
        table = _read_arrow(folder / "pairs.arrow")
        pairs = Pairs(table["user"].to_numpy().astype(np.int32), table["item"].to_numpy().astype(np.int32))
        counts = _read_arrow(folder / "items.arrow")["count"].to_numpy().astype(np.int64)
    return State(
        rows=numbers["rows"],
        vocabularies=vocabularies,
        statistics={name: Statistics(**moments) for name, moments in numbers["statistics"].items()},
        widths=numbers["widths"],
        types=numbers["types"],
        labels=numbers["labels"],
        pairs=pairs,
        item_counts=counts,
    )


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _arrow(path: Path, table: pa.Table) -> None:
    with ipc.new_file(str(path), table.schema) as out:
        out.write_table(table)


def _read_arrow(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file:  # not mapped into memory: the folder may be temporary
        return ipc.open_file(file).read_all()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(folder: Path) -> Path:
    """The saved model in a folder or below it (MLflow puts it into a folder of its own).

    Raises ArtifactError when there is none, or more than one.
    """
    if not folder.is_dir():
        raise ArtifactError(f"There is no folder {folder}.")
    found = sorted(path.parent for path in folder.rglob("model.json"))
    if len(found) != 1:
        raise ArtifactError(f"{folder} holds {len(found) or 'no'} saved models (model.json); one is needed.")
    return found[0]
