"""A dataset as a node of a hydra configuration. The only file that imports hydra and omegaconf.

Only the resolved node enters a build id: other nodes, hydra's own settings, and interpolations that come to the same
value change nothing. A resolver that reads the clock or the environment is refused inside a dataset node.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cumin.building import Progress, build_recipe, quiet
from cumin.config import recipe_from
from cumin.dataset import Dataset
from cumin.errors import ConfigError
from cumin.recipe import Recipe
from cumin.store import Store, open_store

_RESOLVER = re.compile(r"\$\{\s*([A-Za-z_][\w.]*)\s*:")
_PURE_RESOLVERS = frozenset({"oc.select", "oc.decode", "oc.create", "oc.dict.keys", "oc.dict.values", "oc.deprecated"})


@dataclass
class DatasetConf:
    """The fields of a dataset, as `cumin.config` reads them; `???` must be given."""

    name: str = MISSING
    sql: str | None = None
    sql_file: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = MISSING
    engine: dict[str, Any] = field(default_factory=dict)
    partition_by: list[str] = field(default_factory=list)
    order_key: list[str] = field(default_factory=list)
    determinism: Any = "strict"
    salt: str | None = None
    layout: dict[str, Any] | None = None
    lookback: dict[str, Any] | None = None
    partitions: list[Any] | None = None
    store: str | None = None


def register(group: str = "dataset", name: str = "base") -> None:
    """Put `DatasetConf` into hydra's store, so that a config of the group can start from it."""
    ConfigStore.instance().store(group=group, name=name, node=DatasetConf)


def recipe(node: DictConfig) -> Recipe:
    """The recipe of a dataset node. Raises ConfigError for a missing value or a resolver that is not pure."""
    return recipe_from({key: value for key, value in _values(node).items() if key != "store"}, store=_store(node))


def build(node: DictConfig, *, progress: Progress = quiet) -> Dataset:
    """The dataset of a node; see `cumin.build`."""
    return build_recipe(recipe(node), _store(node), progress=progress)


def _store(node: DictConfig) -> Store:
    return open_store(_values(node).get("store"))


def _values(node: DictConfig) -> dict[str, Any]:
    raw = OmegaConf.to_container(node, resolve=False)
    problems = [
        f"{place}: the resolver {name!r} may give another value in every run. Resolve it outside and pass the value."
        for place, text in _texts(raw, "dataset")
        for name in _RESOLVER.findall(text)
        if name not in _PURE_RESOLVERS
    ]
    if problems:
        raise ConfigError(problems)
    try:
        values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"The dataset node does not resolve: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if value is not None}


def _texts(value: Any, place: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _texts(item, f"{place}.{key}")]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in _texts(item, f"{place}[{index}]")]
    return [(place, value)] if isinstance(value, str) else []
