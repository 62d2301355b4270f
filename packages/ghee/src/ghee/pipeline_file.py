"""Finds the pipeline that a command line names, and applies its settings: `FILE:PIPELINE --set name=value`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import sys
import types
import typing
from collections import defaultdict
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import cloudpickle

from ghee.errors import PipelineError
from ghee.pipeline import Pipeline, override

_STAGE_SETTING = re.compile(r"(?P<stage>.+)\.(?P<option>[a-z_]+)=(?P<value>.*)", re.DOTALL)
_PLAIN = (str, int, float, bool, Path)


def find_pipeline(target: str, settings: Sequence[str] = ()) -> Pipeline:
    """The pipeline of "train.py:pipeline" or "package.module:make", with `settings` such as "rate=0.1" applied.

    Runs the file, and calls the function if PIPELINE is one. What these raise is raised as it is.

    Raises PipelineError for a file, name or setting that does not exist or cannot be used: what there is, is listed.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise PipelineError(f"{target!r} is not FILE:PIPELINE, such as train.py:pipeline or package.module:pipeline")
    module = _load(place)
    found = getattr(module, name, None)
    if found is None:
        raise PipelineError(f"{place} has no {name!r}; pipelines and functions in it: {_candidates(module)}")
    if isinstance(found, Pipeline):
        return override(found, _stage_settings(settings, {}, f"{name!r} is a pipeline, which takes no arguments"))
    if not callable(found) or isinstance(found, type):
        raise PipelineError(f"{name!r} in {place} is a {type(found).__name__}: expected a pipeline or a function that "
                            f"returns one; pipelines and functions in it: {_candidates(module)}")  # fmt: skip
    parameters = inspect.signature(found).parameters
    takes = ", ".join(str(parameter) for parameter in parameters.values()) or "no arguments"
    arguments: dict[str, str] = {}
    of_stages = _stage_settings(settings, arguments, f"{name}() takes {takes}", parameters)
    made = found(**_convert_all(found, arguments, takes))
    if not isinstance(made, Pipeline):
        raise PipelineError(f"{name}() returned {made!r}: expected a pipeline (ghee.read(...)...)")
    return override(made, of_stages)


def stage_options(settings: Sequence[str]) -> dict[str, dict[str, object]]:
    """Settings of stages alone, such as "preprocess.replicas=4". Raises PipelineError for others."""
    return _stage_settings(settings, {}, "the pipeline is the run's, with its arguments as they were")


# ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _load(place: str) -> types.ModuleType:
    path = Path(place)
    if path.suffix == ".py" or os.sep in place or path.is_file():
        if not path.is_file():
            raise PipelineError(f"{place}: there is no such file (the current folder is {Path.cwd()})")
        return _load_file(path.resolve())
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise PipelineError(
                f"{place}: there is no such file in {Path.cwd()}, and no module of this name can be imported"
            ) from None
        raise


def _load_file(path: Path) -> types.ModuleType:
    """Run the file as `python FILE` would: modules beside it can be imported. Its functions travel by value."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of {path.parent}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PipelineError(f"{path}: expected a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    return module


def _candidates(module: types.ModuleType) -> str:
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, Pipeline)
        or (inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"))
    ]
    return ", ".join(names) or "none"


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _stage_settings(
    settings: Sequence[str], arguments: dict[str, str], takes: str, parameters: typing.Collection[str] = ()
) -> dict[str, dict[str, object]]:
    """Sort settings into `arguments` of the function, and options of stages, which are returned.

    A stage's name may hold "=" and "."; so what names an argument is one, and else the last "." before a "=" counts.
    """
    stages: dict[str, dict[str, object]] = defaultdict(dict)
    problems = []
    for setting in settings:
        name, equals, value = setting.partition("=")
        match = _STAGE_SETTING.fullmatch(setting)
        if equals and name in parameters:
            arguments[name] = value
        elif match:
            stages[match["stage"]][match["option"]] = _literal(match["value"])
        elif not equals:
            problems.append(f"--set {setting}: expected name=value or stage.option=value")
        else:
            problems.append(f"--set {setting}: {takes}; an option of a stage is set with stage.option=value")
    if problems:
        raise PipelineError("; ".join(problems))
    return stages


def _literal(text: str) -> object:
    """A value without a known type: a number, True, a list ... if it reads as one, otherwise the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert_all(function: Callable[..., Any], arguments: dict[str, str], takes: str) -> dict[str, object]:
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    converted: dict[str, object] = {}
    problems = []
    for name, text in arguments.items():
        default = parameters[name].default
        known = type(default) if default is not inspect.Parameter.empty and default is not None else None
        try:
            converted[name] = convert(text, hints.get(name, known))
        except ValueError as error:
            problems.append(f"--set {name}={text}: {error}")
    open_ = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty and parameter.name not in converted and parameter.kind not in open_
    ]
    if missing and not problems:
        problems.append(
            f"{getattr(function, '__name__', function)}() takes {takes}; give "
            + ", ".join(f"--set {name}=..." for name in missing)
        )
    if problems:
        raise PipelineError("; ".join(problems))
    return converted


def convert(text: str, kind: Any) -> object:
    """The value that a text of the command line stands for, as the type `kind`; None for an unknown type.

    Known are str, int, float, bool, Path, enums, Literal, and unions and lists of these. Raises ValueError.
    """
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(text, of)
    if origin is typing.Literal:
        allowed = {str(value): value for value in of}
        if text not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return allowed[text]
    if origin in (list, tuple) or kind in (list, tuple):
        item = of[0] if of else None
        items = [convert(part.strip(), item) for part in text.strip("[]()").split(",") if part.strip()]
        return tuple(items) if tuple in (origin, kind) else items
    if isinstance(kind, type) and issubclass(kind, Enum):
        if text not in kind.__members__:
            raise ValueError(f"expected one of {', '.join(kind.__members__)}")
        return kind[text]
    if kind is bool:
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ValueError("expected true or false")
        return text.lower() in ("true", "yes", "1")
    if kind in _PLAIN:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"expected {'a whole number' if kind is int else 'a number'}") from None
    return _literal(text)


def _convert_union(text: str, kinds: Sequence[Any]) -> object:
    if type(None) in kinds and text.lower() in ("none", ""):
        return None
    problems = []
    # Text fits every text, so it is tried last.
    for kind in sorted((kind for kind in kinds if kind is not type(None)), key=lambda kind: kind is str):
        try:
            return convert(text, kind)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(", or ".join(problems))
