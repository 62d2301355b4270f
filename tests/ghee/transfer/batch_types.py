"""Every kind of batch that travels, and what must hold of one that has arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy
import pandas
import pyarrow as pa
import torch

Make = Callable[[int], Any]


class Point:
    """A plain object with an array in it."""

    def __init__(self, rows: int) -> None:
        self.rows = numpy.arange(rows)
        self.name = "point"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and same(self.rows, other.rows) and self.name == other.name

    __hash__ = None  # type: ignore[assignment]


class Pair(NamedTuple):
    """A tuple with names."""

    x: Any
    y: Any


def _read_only(rows: int) -> Any:
    array = numpy.arange(rows, dtype=numpy.float64)
    array.flags.writeable = False
    return array


def _structured(rows: int) -> Any:
    array = numpy.zeros(rows, [("a", "<i4"), ("b", "<f8"), ("c", "S3")])
    array["a"] = range(rows)
    return array


def _table(rows: int) -> pa.Table:
    names = pa.array([None if number % 5 == 0 else f"name {number}" for number in range(rows)], pa.string())
    lists = pa.array([[number] * (number % 3) for number in range(rows)], pa.list_(pa.int64()))
    columns = {"x": pa.array(range(rows), pa.int64()), "name": names, "lists": lists}
    return pa.table({**columns, "kind": names.dictionary_encode()})


def _record_batch(rows: int) -> Any:
    return _table(rows).combine_chunks().to_batches()[0]


BATCHES: dict[str, Make] = {
    "array": lambda n: numpy.arange(n, dtype=numpy.float32),
    "matrix": lambda n: numpy.arange(n * 3).reshape(n, 3),
    "fortran order": lambda n: numpy.asfortranarray(numpy.arange(n * 3).reshape(n, 3)),
    "strided": lambda n: numpy.arange(n * 6).reshape(n, 6)[:, ::2],
    "reversed": lambda n: numpy.arange(n)[::-1],
    "read-only": _read_only,
    "read-only fortran order": lambda n: numpy.broadcast_to(numpy.arange(3), (n, 3)),
    "bool": lambda n: numpy.arange(n) % 2 == 0,
    "datetime": lambda n: numpy.arange(n).astype("datetime64[s]"),
    "big endian": lambda n: numpy.arange(n, dtype=">i8"),
    "unicode": lambda n: numpy.array([f"row {number}" for number in range(n)]),
    "structured": _structured,
    "objects": lambda n: numpy.array([{"row": number} for number in range(n)], dtype=object),
    "no rows": lambda n: numpy.empty((0, n), numpy.int16),
    "scalar array": numpy.array,
    "dict": lambda n: {"x": numpy.arange(n), "y": numpy.ones(n, bool)},
    "tuple": lambda n: (numpy.arange(n), numpy.ones((n, 2), numpy.float16)),
    "named tuple": lambda n: Pair(numpy.arange(n), torch.arange(n)),
    "nested": lambda n: {"a": [numpy.arange(n), {"b": (torch.ones(n), "text", None)}], "n": n},
    "shared array": lambda n: (lambda array: {"x": array, "same": array})(numpy.arange(n)),
    "tensor": torch.arange,
    "bfloat16": lambda n: torch.arange(n).to(torch.bfloat16),
    "float8": lambda n: torch.arange(n).to(torch.float8_e4m3fn).view(torch.uint8).view(torch.float8_e4m3fn),
    "complex": lambda n: torch.complex(torch.ones(n), torch.arange(n).float()),
    "bool tensor": lambda n: torch.arange(n) % 2 == 0,
    "transposed tensor": lambda n: torch.arange(n * 3).reshape(3, n).T,
    "tensor with gradient": lambda n: torch.ones(n, requires_grad=True),
    "expanded tensor": lambda n: torch.ones(1, 3).expand(n, 3),
    "scalar tensor": torch.tensor,
    "empty tensor": lambda n: torch.empty(0, n),
    "record batch": _record_batch,
    "slice": lambda n: _record_batch(n + 20).slice(7, n),
    "table": _table,
    "table of chunks": lambda n: pa.concat_tables([_table(n), _table(3)]),
    "table slice": lambda n: _table(n + 20).slice(5, n),
    "frame": lambda n: _table(n).select(["x", "name"]).to_pandas(),
    "series": lambda n: pandas.Series(range(n), name="x"),
    "bytes": lambda n: b"x" * n,
    "text": lambda n: "ü" * n,
    "list": lambda n: list(range(n)),
    "dict of nothing": lambda n: {},
    "object": Point,
}


def same(one: Any, other: Any) -> bool:
    """Whether two batches are of one type and hold the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, numpy.ndarray):
        return bool(one.dtype == other.dtype and one.shape == other.shape and (one == other).all())
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape and one.requires_grad == other.requires_grad
        return alike and torch.equal(_bits(one), _bits(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, pandas.DataFrame | pandas.Series):
        return bool(one.equals(other))
    return bool(one == other)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def arrays_in(batch: Any) -> Iterator[Any]:
    """Every array and tensor inside, one by one."""
    if isinstance(batch, numpy.ndarray | torch.Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from arrays_in(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from arrays_in(value)
    elif isinstance(batch, Point):
        yield batch.rows


def overwrite(batch: Any) -> int:
    """Write into every array and tensor inside; how many there were. Raises where one is read-only."""
    count = 0
    for array in arrays_in(batch):
        if isinstance(array, torch.Tensor):
            if array.numel():
                array.detach().view(torch.uint8 if array.element_size() == 1 else array.dtype).zero_()
        elif array.size:
            array[...] = array.flat[0] if array.dtype.hasobject else numpy.zeros((), array.dtype)
        count += 1
    return count
