"""The caller's functions in a query: what they are, and the hash of their code.

A function enters the build id by its compiled code and all that this reaches (`cumin.code_form`), or by a version that
its owner declares. One that has neither is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cumin.code_form import code_form
from cumin.encoding import digest

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
        return {"types": types_, "code": digest("cumin/function", code_form(self.function, f"The function {name!r}"))}


def udf(
    function: Function, *, arguments: Sequence["pa.DataType"], returns: "pa.DataType", version: str | None = None
) -> Udf:
    """A Python function that the query may call by the name it is given in ``udfs={name: …}``.

    It must give the same result for the same values. Its code and all that it reaches enter the build id: defaults,
    attributes, closure, globals, functions and classes of other modules. Where something cannot (a function of C, an
    object without a canonical form, the clock, chance, a file), declare `version` and change it with what it stands for.
    """
    return Udf(function, tuple(arguments), returns, version)
