"""Reusable models on ghee: look one up, check the data, train, promote, predict. Public names only; loaded when used.

Example:
    import ghee_models as gm

    gm.list_models(task="recommendation")
    result = gm.train("lightgcn", "events/", register_as="user-vectors")
    gm.promote("user-vectors", 1, "champion", require={"ndcg@10": ">=0.31"})
    gm.predict("models:/user-vectors@champion", "users/", out="recommendations/")
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "list_models": "registry",
    "describe": "registry",
    "describe_kept": "prediction",
    "register": "registry",
    "unregister": "registry",
    "check": "checker",
    "train": "training",
    "TrainResult": "training",
    "predict": "prediction",
    "evaluate": "prediction",
    "load": "prediction",
    "promote": "tracking",
    "reproduce": "reproduction",
    "compose": "composition",
    "Task": "card",
    "DataFormat": "card",
    "Reference": "card",
    "ModelCard": "card",
    "Model": "contract",
    "SparseModel": "sparse_model",
    "Recommender": "recommender",
    "EmbeddingRecommender": "embedding_recommender",
    "Settings": "settings",
    "PredictOptions": "settings",
    "errors": "errors",
}

__all__ = sorted(_WHERE)  # noqa: PLE0605 - one list of the names, not two


def _check_ghee() -> None:
    """On PyPI `ghee` is another project: what is installed under that name must be ours. It is not imported for that."""
    how = "python -m pip install ./packages/ghee ./packages/ghee_models (in a clone of ghee's repository)"
    found = importlib.util.find_spec("ghee")
    if found is None or found.origin is None:
        raise ImportError(f"ghee_models needs ghee, which is not installed: {how}", name="ghee")
    if not (Path(found.origin).parent / "pipeline.py").is_file():
        try:
            version = importlib.metadata.version("ghee")
        except importlib.metadata.PackageNotFoundError:
            version = "of no known version"
        raise ImportError(
            f"the `ghee` that is installed ({version}, {found.origin}) is another project of that name, from PyPI, and not "
            f"what ghee_models is made on. Remove it (python -m pip uninstall ghee), then: {how}",
            name="ghee",
        )


_check_ghee()


def __getattr__(name: str) -> Any:
    """Loads a public name: importing ghee_models itself must stay cheap, torch and MLflow take seconds."""
    if name not in _WHERE:
        raise AttributeError(f"module 'ghee_models' has no attribute {name!r}")
    module = importlib.import_module(f"ghee_models.{_WHERE[name]}")
    return module if name == _WHERE[name] else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
