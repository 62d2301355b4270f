"""The caller's functions in a query: what they are, and the hash of their code.

A function enters the build id by its source, the constants it closes over and the globals it reads, or by a version
that its owner declares. One whose code cannot be read and that has no version is refused.
"""

import builtins
import inspect
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cumin.encoding import encode
from cumin.errors import RecipeError

if TYPE_CHECKING:
    import pyarrow as pa

Function = Callable[..., Any]


@dataclass(frozen=True)
class Udf:
    """A scalar function of one row's values. Make one with `cumin.udf`."""

    function: Function
    arguments: tuple["pa.DataType", ...]
    returns: "pa.DataType"
    version: str | None = None

    def form(self, name: str) -> dict[str, Any]:
        """What enters the build id. Raises RecipeError naming what has no hash."""
        types_ = [str(kind) for kind in (*self.arguments, self.returns)]
        if self.version is not None:
            return {"types": types_, "version": self.version}
        return {"types": types_, "code": code_form(self.function, f"The function {name!r}")}


def udf(
    function: Function, *, arguments: Sequence["pa.DataType"], returns: "pa.DataType", version: str | None = None
) -> Udf:
    """A Python function that the query may call by the name it is given in ``udfs={name: …}``.

    It must give the same result for the same values. Its source, closure and globals enter the build id; where they
    cannot (a C function, an object without a canonical form), declare `version` and change it with the code.
    """
    return Udf(function, tuple(arguments), returns, version)


def code_form(function: Function, where: str, seen: frozenset[int] = frozenset()) -> dict[str, Any]:
    """Source, closure and globals of a function as a value with a canonical form."""
    remedy = "Declare version= and change it whenever the code changes."
    if not isinstance(function, types.FunctionType):
        raise RecipeError(f"{where} is a {type(function).__qualname__} without readable source. {remedy}")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise RecipeError(f"{where} has no readable source. {remedy}") from error
    variables = inspect.getclosurevars(function)
    outside = {**variables.globals, **variables.nonlocals}
    form: dict[str, Any] = {"source": source.strip(), "defaults": [], "outside": {}}
    form["defaults"] = _value(list(function.__defaults__ or ()), f"{where}, its defaults", remedy, seen)
    for name, value in sorted(outside.items()):
        form["outside"][name] = _outside(value, f"{where}, its variable {name!r}", remedy, seen | {id(function)})
    return form


def _outside(value: Any, where: str, remedy: str, seen: frozenset[int]) -> Any:
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__, str(getattr(value, "__version__", ""))]
    if getattr(value, "__module__", None) == builtins.__name__ or isinstance(value, types.BuiltinFunctionType):
        return ["builtin", value.__name__]
    if isinstance(value, types.FunctionType):
        return ["self"] if id(value) in seen else ["function", code_form(value, where, seen)]
    return ["value", _value(value, where, remedy, seen)]


def _value(value: Any, where: str, remedy: str, seen: frozenset[int]) -> Any:
    try:
        encode(value)
    except TypeError as error:
        raise RecipeError(f"{where}: {error} {remedy}") from error
    return value
