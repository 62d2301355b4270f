"""Settings from YAML: hydra's groups, the user's own folders, overrides and sweeps. The only file that imports hydra.

The nodes are the dataclasses themselves. hydra lets `+key=value` add to a node what its dataclass does not have, so what
it composes is checked once more, strictly. What a user's file says never decides what is imported.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ghee_models import registry
from ghee_models.errors import ConfigError, UnknownModelError
from ghee_models.settings import (
    DataConfig,
    EvalConfig,
    SamplerConfig,
    Settings,
    SplitConfig,
    TrackingConfig,
    TrainerConfig,
    build,
    check_settings,
)

_GROUPS: dict[str, type] = {
    "data": DataConfig,
    "split": SplitConfig,
    "sampler": SamplerConfig,
    "trainer": TrainerConfig,
    "eval": EvalConfig,
    "tracking": TrackingConfig,
}


@dataclass(frozen=True)
class Composed:
    """One resolved configuration: the model's id and settings, and all others."""

    model: str
    config: Any
    settings: Settings
    overrides: tuple[str, ...]


def compose(overrides: Sequence[str] = (), folders: Sequence[str] = ()) -> Composed:
    """The configuration of one training.

    overrides: hydra's, such as `model=fm`, `trainer.epochs=3`, `experiment=ml100k-fm`; folders: the user's own
    configuration folders, laid out like ours (model/, data/, experiment/ ...).
    Raises ConfigError for a key, option or value that is unknown or of a wrong type; all that can be told at once.
    """
    _fill_store()
    search = [f"hydra.searchpath=[{','.join(Path(f).absolute().as_uri() for f in folders)}]"] if folders else []
    for folder in folders:
        if not Path(folder).is_dir():
            raise ConfigError(f"There is no configuration folder {folder}.")
    # The columns are the user's to name; hydra takes a mapping's new keys only with ++
    open_to_all = ("data.fields", "data.minimum", "data.maximum")
    given = [f"++{override}" if override.startswith(open_to_all) else override for override in overrides]
    try:
        whole = _compose([*search, *given])
        id = str(whole.hydra.runtime.choices["model"])
        OmegaConf.set_readonly(whole.hydra, False)
        chosen: dict[str, Any] = {}
        for name in [*_GROUPS, "model"]:
            chosen[name] = OmegaConf.to_container(whole[name], resolve=True)
        extra = [str(k) for k in whole if k not in {*chosen, "hydra"}]
    except HydraException as error:
        raise _clear(error) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"The configuration cannot be composed: {str(error).splitlines()[0]}") from error
    return _build(id, chosen, extra, tuple(overrides))


def _compose(overrides: list[str]) -> Any:
    """hydra's own composition. A key that it does not know is added, for `_build` names all of them, and the nearest."""
    try:
        with initialize_config_module("ghee_models.conf", version_base="1.3"):
            return hydra_compose("config", overrides=overrides, return_hydra_config=True)
    except HydraException as error:
        unknown = re.search(r"Could not override '([^']+)'", str(error))
        added = [f"+{o}" if unknown and o.partition("=")[0] == unknown[1] else o for o in overrides]
        if added == overrides:
            raise
        return _compose(added)


def _clear(error: HydraException) -> Exception:
    text = str(error)
    unknown = re.search(r"Could not find 'model/([^']+)'", text)
    if unknown:
        try:
            registry.card(unknown[1])
        except UnknownModelError as better:
            return better
    cause = f" ({str(error.__cause__).splitlines()[0]})" if error.__cause__ else ""
    kept = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Set the env")]
    return ConfigError(f"The configuration cannot be composed: {' '.join(kept[:12])}{cause}")


def _build(id: str, chosen: dict[str, Any], extra: list[str], overrides: tuple[str, ...]) -> Composed:
    card = registry.card(id)
    problems = [f"  {name} is unknown; known are model, {', '.join(_GROUPS)}." for name in extra]
    made: list[Any] = []
    for cls, values, where in [
        (card.config, chosen.pop("model") or {}, "model"),
        *((kind, chosen[name] or {}, name) for name, kind in _GROUPS.items()),
    ]:
        try:
            made.append(build(cls, values, where=where))
        except ConfigError as error:
            problems += str(error).splitlines()[1:]
    if problems:
        raise ConfigError("\n".join(["The settings are wrong:", *problems]))
    settings = Settings(*made[1:])
    check_settings(settings)
    return Composed(id, made[0], settings, overrides)


def sweep(overrides: Sequence[str], folders: Sequence[str] = ()) -> list[Composed]:
    """The configurations of a sweep: `model=fm,deepfm model.lr=1e-3,5e-3` gives four, in hydra's own syntax.

    All of them are composed, and so checked, before the first one runs.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"The overrides cannot be read: {str(error).splitlines()[0]}") from error
    choices = []
    for override in parsed:
        assert override.input_line is not None
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line])
    return [compose(list(each), folders) for each in itertools.product(*choices)]


def _fill_store() -> None:
    store = ConfigStore.instance()
    for group, cls in _GROUPS.items():
        store.store(group=group, name="default", node=cls, provider="ghee-models")
    for id, card in registry.cards().items():
        store.store(group="model", name=id, node=card.config, provider="ghee-models")
