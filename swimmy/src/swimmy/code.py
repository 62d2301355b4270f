"""Pickling what a run calls, so that it loads in an image that knows none of the user's files."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from swimmy import pickling
from swimmy.errors import SpecError


def _installed(module: ModuleType) -> bool:
    """Whether the module comes with Python or an installed package, so that the image can be expected to have it."""
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    path = Path(file).resolve()
    prefixes = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(path.is_relative_to(prefix) for prefix in prefixes)


@contextlib.contextmanager
def _by_value(modules: Iterable[ModuleType]) -> Iterator[None]:
    registered = []
    try:
        for module in modules:
            if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def own_modules(function: Callable[..., Any]) -> list[ModuleType]:
    """The modules to send along: of those the user's process has loaded, the ones that lie beside the function's own."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or module.__name__ in ("__main__", "__mp_main__") or _installed(module):
        return []
    name = module.__name__.partition(".")[0]
    if name == "swimmy":  # an editable install of this very package: the image has it too, or no agent would run
        return []
    root = sys.modules.get(name, module)
    return [root]


def dumps(
    function: Callable[..., Any],
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    modules: Iterable[ModuleType] = (),
) -> bytes:
    """The pickled call; raises SpecError, before anything is started, for what cannot be pickled."""
    if not callable(function):
        raise SpecError(f"{function!r} cannot be called; pass a function")
    try:
        with _by_value([*own_modules(function), *modules]):
            return pickling.dumps((function, tuple(args), dict(kwargs or {})))
    except Exception as error:
        name = getattr(function, "__qualname__", repr(function))
        raise SpecError(
            f"{name} or its arguments cannot be sent to a Pod: {type(error).__name__}: {error}. Open files, locks, "
            "sockets and the like must "
            "be made inside the function"
        ) from error
