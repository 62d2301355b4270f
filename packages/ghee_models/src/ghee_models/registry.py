"""Looking models up by id: the ones of installed packages (entry points) and the ones registered by a decorator.

Listing and describing read cards only; a model's own module is imported by `load_class`.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from ghee_models.card import DataFormat, ModelCard, Reference, Task
from ghee_models.errors import DuplicateModelError, UnknownModelError

if TYPE_CHECKING:
    from ghee_models.contract import Model

GROUP = "ghee_models.models"
C = TypeVar("C", bound=type)

_registered: dict[str, ModelCard] = {}
_classes: dict[str, type] = {}


def register(
    id: str,
    *,
    task: Task | str | tuple[Task, ...],
    config: type,
    data: DataFormat | str | None = None,
    summary: str = "",
    paper: str = "",
    references: tuple[Reference, ...] = (),
) -> Callable[[C], C]:
    """Class decorator that makes a model known by `id` in this process.

    `data` is taken from the base class when it is not given. A package that wants its models listed everywhere
    declares an entry point of the group `ghee_models.models` to a ModelCard (or to the decorated class).
    Raises DuplicateModelError when another class has the id.
    """
    tasks = task if isinstance(task, tuple) else (Task(task),)

    def decorate(cls: C) -> C:
        source = f"{cls.__module__}:{cls.__qualname__}"
        card = ModelCard(
            id=id,
            tasks=tasks,
            data=DataFormat(str(data or getattr(cls, "data_format", ""))),
            summary=summary or (cls.__doc__ or "").strip().partition("\n")[0],
            paper=paper,
            config=config,
            implementation=source,
            references=references,
        )
        other = _registered.get(id)
        if other is not None and other.implementation != source:
            raise DuplicateModelError(_duplicate(id, other.implementation, source))
        for point in entry_points(group=GROUP, name=id):
            if point.value != source and _card_of(point).implementation != source:
                raise DuplicateModelError(_duplicate(id, _origin(point), source))
        _registered[id], _classes[id] = card, cls
        setattr(cls, "card", card)  # noqa: B010 - C is any class to mypy
        return cls

    return decorate


def unregister(id: str) -> None:
    """Forgets a model that `register` made known; does nothing for others. For tests and notebooks."""
    _registered.pop(id, None)
    _classes.pop(id, None)


def cards() -> dict[str, ModelCard]:
    """The card of every known model, by id. Raises DuplicateModelError when two models have one id."""
    found: dict[str, ModelCard] = {}
    origins: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        try:
            card = _card_of(point)
        except (ImportError, AttributeError, SyntaxError) as error:  # another's package must not stop all the others
            text = f"The model {point.name!r} is left out, {_origin(point)} cannot be imported: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            continue
        if point.name in found and found[point.name].implementation != card.implementation:
            raise DuplicateModelError(_duplicate(point.name, origins[point.name], _origin(point)))
        found[point.name], origins[point.name] = card, _origin(point)
    for id, card in _registered.items():
        if id in found and found[id].implementation != card.implementation:
            raise DuplicateModelError(_duplicate(id, origins[id], card.implementation))
        found[id] = card
    return dict(sorted(found.items()))


def _card_of(point: EntryPoint) -> ModelCard:
    loaded = point.load()
    card = loaded if isinstance(loaded, ModelCard) else getattr(loaded, "card", None)
    if not isinstance(card, ModelCard):
        raise TypeError(f"The entry point {_origin(point)} is neither a ModelCard nor a class decorated by @register.")
    return card


def _origin(point: EntryPoint) -> str:
    dist = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
    return f"{point.value}{dist}"


def _duplicate(id: str, one: str, other: str) -> str:
    return f"Two models are called {id!r}: {one} and {other}. Rename one of them, or uninstall one package."


def list_models(task: Task | str | None = None, filter: str = "*") -> list[str]:
    """The ids of known models for a task, of those that match a pattern such as `*fm`; ordered."""
    wanted = None if task is None else Task(task)
    return [
        id for id, card in cards().items() if (wanted is None or wanted in card.tasks) and fnmatch.fnmatchcase(id, filter)
    ]


def card(id: str) -> ModelCard:
    """The card of a model. Raises UnknownModelError, naming the nearest ids."""
    known = cards()
    if id not in known:
        near = difflib.get_close_matches(id, known, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownModelError(f"There is no model {id!r}; known are {', '.join(known)}.{hint}")
    return known[id]


def describe(id: str) -> dict[str, Any]:
    """A model's tasks, settings with defaults, schema, reference figures and paper, as plain values."""
    return card(id).describe()


def load_class(id: str) -> type[Model[Any]]:
    """Imports a model's class. Raises UnknownModelError."""
    found = card(id)
    if id in _classes:
        return _classes[id]
    module, _, name = found.implementation.partition(":")
    cls: type[Model[Any]] = getattr(importlib.import_module(module), name)
    return cls
