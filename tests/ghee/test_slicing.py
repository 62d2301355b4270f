"""Cutting rows out of batches and putting them together again: what comes out is what went in, of the same type."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from ghee.codec import rows_of
from ghee.errors import BatchError
from ghee.slicing import check_rows, joined, sliced

ROWS = 23


class Pair(NamedTuple):
    x: Any
    k: int


def torch_tensor() -> Any:
    torch = pytest.importorskip("torch")
    return torch.arange(ROWS * 3).reshape(ROWS, 3)


def frame() -> Any:
    return pytest.importorskip("pandas").DataFrame({"a": range(ROWS), "b": [str(i) for i in range(ROWS)]})


def polars_frame() -> Any:
    return pytest.importorskip("polars").DataFrame({"a": list(range(ROWS))})


TABLE = pa.table({"a": range(ROWS), "b": pa.array([str(i % 3) for i in range(ROWS)]).dictionary_encode()})
BATCHES: dict[str, Callable[[], Any]] = {
    "record batch": lambda: TABLE.to_batches()[0],
    "table": lambda: TABLE,
    "Arrow array": TABLE["a"].combine_chunks,
    "Arrow chunks": lambda: TABLE["a"],
    "numpy": lambda: np.arange(ROWS * 2).reshape(ROWS, 2),
    "masked": lambda: np.ma.masked_array(np.arange(ROWS), np.arange(ROWS) % 2),
    "structured": lambda: np.zeros(ROWS, dtype=[("a", "i4"), ("b", "f8")]),
    "list": lambda: [str(i) for i in range(ROWS)],
    "dict": lambda: {"x": np.arange(ROWS), "l": list(range(ROWS)), "shape": (3, 4), "name": "all", "none": None},
    "tuple": lambda: (np.arange(ROWS), 5, TABLE["a"]),
    "named tuple": lambda: Pair(np.arange(ROWS), 7),
    "torch": torch_tensor,
    "pandas": frame,
    "polars": polars_frame,
}


def same(left: Any, right: Any) -> bool:
    """Equal, of one type."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and bool(np.ma.allequal(left, right)) if left.dtype.names is None else True
    return bool(left.equals(right)) if hasattr(left, "equals") else bool(np.all(np.asarray(left == right)))


@pytest.mark.parametrize("cuts", [(0, 23), (0, 1, 23), (0, 5, 5, 11, 23)])
@pytest.mark.parametrize("kind", BATCHES)
def test_there_and_back(kind: str, cuts: tuple[int, ...]) -> None:
    batch = BATCHES[kind]()
    check_rows(batch)
    parts = [sliced(batch, begin, end - begin) for begin, end in pairwise(cuts)]
    assert [rows_of(part) for part in parts] == [end - begin for begin, end in pairwise(cuts)]
    assert same(joined(parts), batch)


def test_slices_are_views() -> None:
    array = np.arange(10)
    assert np.shares_memory(sliced(array, 2, 3), array)
    assert np.shares_memory(sliced({"x": array}, 2, 3)["x"], array)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (3, "got a int, which"),
        ("text", "got a str, which"),
        (None, "got a NoneType"),
        (np.float64(3), "got a float64"),
        ({}, "got a dict with no array in it"),
        ({"a": 3}, "got a dict with no array in it"),
        ({"a": np.arange(3), "b": [1, 2]}, "got a dict with columns of 2 and 3 rows"),
        ((np.arange(3), np.arange(5)), "got a tuple with columns of 3 and 5 rows"),
        (OrderedDict(a=np.arange(3)), "got a OrderedDict, which"),
    ],
)
def test_what_has_no_rows(batch: object, said: str) -> None:
    with pytest.raises(BatchError, match=said):
        check_rows(batch)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([{"a": np.arange(3)}, {"b": np.arange(3)}], r"one has the keys \['a'\], another \['b'\]"),
        (
            [{"a": np.arange(3), "k": 1}, {"a": np.arange(3), "k": 2}],
            "'k' belongs to all rows of a batch and is not the same",
        ),
        ([pa.table({"a": [1]}), pa.table({"a": ["x"]})], "could not be put together by .rebatch.."),
        ([np.arange(3), [1, 2]], "they are of different kinds, or have no rows: ndarray, list"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "could not be put together"),
        ([(np.arange(3),), (np.arange(3), 4)], "could not be put together"),
    ],
)
def test_what_does_not_go_together(batches: list[Any], said: str) -> None:
    with pytest.raises(BatchError, match=said):
        joined(batches)
