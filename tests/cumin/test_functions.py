"""The caller's functions: whatever changes what one gives is another id; what cannot be known is refused."""

import datetime
import functools
import importlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cumin
from cumin.code_form import code_form
from cumin.encoding import encode
from cumin.errors import RecipeError

BODIES = {
    "a global": "F = {}\ndef f(x):\n    return x * F",
    "a global in a comprehension": "F = {}\ndef f(x):\n    return sum([x * F for _ in range(1)])",
    "a global in a lambda": "F = {}\ndef f(x):\n    return (lambda: x * F)()",
    "a global in an inner function": "F = {}\ndef f(x):\n    def g():\n        return x * F\n    return g()",
    "a decorator's body": (
        "import functools\ndef times(f):\n    @functools.wraps(f)\n    def g(x):\n        return f(x) * {}\n    return g\n"
        "@times\ndef f(x):\n    return x"
    ),
    "a decorator's argument": (
        "def times(n):\n    def outer(f):\n        return lambda x: f(x) * n\n    return outer\n"
        "@times({})\ndef f(x):\n    return x"
    ),
    "an attribute": "def f(x):\n    return x * f.k\nf.k = {}",
    "a default": "def f(x, *, k={}):\n    return x * k",
    "a method of a class": "class C:\n    def g(self, x):\n        return x * {}\ndef f(x):\n    return C().g(x)",
    "a base class": "class B:\n    k = {}\nclass C(B):\n    pass\ndef f(x):\n    return x * C.k",
    "a table": "TABLE = {{1: {}}}\ndef f(x):\n    return x * TABLE[1]",
    "a helper of a helper": "def h(x):\n    return x * {}\ndef g(x):\n    return h(x)\ndef f(x):\n    return g(x)",
    "one of two lambdas of a line": "f, g = ((lambda x: x * {0}), (lambda x: x * 7))",
    "a partial": "import functools\ndef g(k, x):\n    return k * x\nf = functools.partial(g, {})",
    "a module of the user's": "import helpers_{0}\ndef f(x):\n    return helpers_{0}.times(x)",
    "a name of a module of the user's": "import helpers_2, helpers_3\nh = helpers_{0}\ndef f(x):\n    return h.times(x)",
}


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for factor in (2, 3):
        (tmp_path / f"helpers_{factor}.py").write_text(f"FACTOR = {factor}\ndef times(x):\n    return x * FACTOR\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    for factor in (2, 3):
        sys.modules.pop(f"helpers_{factor}", None)


def made(source: str, factor: int) -> Callable[[int], int]:
    space: dict[str, Any] = {"__name__": "user_code"}
    exec(source.format(factor), space)
    found: Callable[[int], int] = space["f"]
    return found


@pytest.mark.parametrize("what", BODIES)
@pytest.mark.usefixtures("helpers")
def test_whatever_changes_a_function_is_another_form(what: str) -> None:
    one, again, other = (made(BODIES[what], factor) for factor in (2, 2, 3))
    assert (one(2), other(2)) == (4, 6)
    forms = [encode(code_form(each, "f")) for each in (one, again, other)]
    assert forms[0] == forms[1] != forms[2]


def test_a_changed_global_of_an_inner_function_is_no_hit(tmp_path: Path) -> None:
    pq.write_table(pa.table({"k": [1, 2, 3]}), tmp_path / "t.parquet")
    seen = []
    for factor in (2, 3):
        udf = cumin.udf(made(BODIES["a global in a comprehension"], factor), arguments=[pa.int64()], returns=pa.int64())
        values: dict[str, Any] = {"inputs": {"t": cumin.files(tmp_path / "t.parquet")}, "store": tmp_path / "store"}
        seen.append(cumin.build("x", sql="SELECT f(k) AS v FROM t", udfs={"f": udf}, **values).to_table()["v"].to_pylist())
    assert seen == [[2, 4, 6], [3, 6, 9]]


def test_a_set_has_one_form_whatever_its_order() -> None:
    forms = {encode(code_form(made("def f(x):\n    return x in {{'a', 'b', 'c', {}}}", 1), "f")) for _ in range(3)}
    assert len(forms) == 1


def draws(x: int) -> float:
    return x * random.random()


def draws_by_numpy(x: int) -> float:
    return float(np.random.rand()) * x


def reads_the_clock(x: int) -> int:
    return datetime.datetime.now().year + x


def reads_a_file(x: int) -> int:
    with open("numbers.txt") as file:
        return int(file.read()) + x


def hashes_text(x: int) -> int:
    return hash(str(x))


def imports_inside(x: int) -> int:
    import pyarrow as library

    return len(library.__name__) + x


def counts(x: int) -> int:
    global _count
    _count = x
    return x


_count = 0


@functools.lru_cache
def cached(x: int) -> int:
    return x


@pytest.mark.parametrize(
    "function", [draws, draws_by_numpy, reads_the_clock, reads_a_file, hashes_text, imports_inside, counts, cached, len]
)
def test_what_may_vary_or_cannot_be_known_needs_a_version(function: Any) -> None:
    with pytest.raises(RecipeError, match="version="):
        cumin.udf(function, arguments=[pa.int64()], returns=pa.int64()).form("f")
    cumin.udf(function, arguments=[pa.int64()], returns=pa.int64(), version="1").form("f")


def test_a_module_as_a_whole_is_refused() -> None:
    import types

    module = types.ModuleType("users_own")
    space: dict[str, Any] = {"own": module}
    exec("def f(x):\n    return getattr(own, 'g')(x)", space)
    with pytest.raises(RecipeError, match=r"Write users_own\.name"):
        code_form(space["f"], "f")
