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
from typing import Any

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


def __getattr__(name: str) -> Any:
    """Loads a public name: importing ghee_models itself must stay cheap, torch and MLflow take seconds."""
    if name not in _WHERE:
        raise AttributeError(f"module 'ghee_models' has no attribute {name!r}")
    module = importlib.import_module(f"ghee_models.{_WHERE[name]}")
    return module if name == _WHERE[name] else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
