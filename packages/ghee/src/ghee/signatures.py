"""Whether a function can be called as its stage calls it, found before anything starts. Pure."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

_GIVEN = {"map": "one batch", "loop": "the stream of batches"}


def problem_of(kind: str, function: Callable[..., Any]) -> str | None:
    """What is wrong with the function of a map or loop, in a sentence; None where nothing is known to be."""
    return _problem_of_arguments(kind, function) or (_problem_of_epochs(function) if kind == "loop" else None)


def _problem_of_arguments(kind: str, function: Callable[..., Any]) -> str | None:
    is_class = kind == "map" and _is_class(function)
    if is_class and (wrong := _mismatch(function)):
        return (
            f"{_called(function)} is a class, which each rank makes without arguments ({wrong}): "
            "give the others with functools.partial, or a default each"
        )
    called: Any = function
    if is_class:
        made = function.func if isinstance(function, functools.partial) else function
        if not callable(getattr(made, "__call__", None)) or "__call__" not in dir(made):  # noqa: B004 - of its instances
            return None
        called = functools.partial(made.__call__, None)  # type: ignore[operator]
    if wrong := _mismatch(called, None):
        return (
            f".{kind}() calls {_called(function)} with {_GIVEN[kind]} and nothing else ({wrong}): "
            f"{'give the others with functools.partial' if 'missing' in wrong else 'let it take one argument'}"
        )
    return None


def _is_class(function: object) -> bool:
    return isinstance(function, type) or (isinstance(function, functools.partial) and isinstance(function.func, type))


def _mismatch(function: Callable[..., Any], *arguments: object) -> str | None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some compiled functions have none
        return None
    try:
        signature.bind(*arguments)
    except TypeError as error:
        return str(error)
    return None


def _called(function: Any) -> str:
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    code = getattr(inner, "__code__", None)
    name = getattr(inner, "__name__", None) or type(inner).__name__
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name


def _problem_of_epochs(function: Callable[..., Any]) -> str | None:
    """`for epoch in batches:` gives batches; over whose columns the inner loop would go without a word."""
    if not inspect.isfunction(function) or not function.__code__.co_argcount:
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source, or a lambda in the midst of a line
        return None
    stream = function.__code__.co_varnames[0]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.For) and isinstance(node.iter, ast.Name) and node.iter.id == stream):
            continue
        if isinstance(node.target, ast.Name) and node.target.id.startswith("epoch"):
            return (
                f"{_called(function)} has `for {node.target.id} in {stream}:`, which gives the batches of all epochs in a "
                f"row: write `for {node.target.id} in {stream}.epochs():`, or `for batch in {stream}:`"
            )
    return None
