"""Rows of a batch, whatever it is made of: some of them without a copy, and several batches put together.

A batch has rows here when it is an Arrow record batch or table, an array (numpy, Arrow), a tensor (torch), a frame (pandas,
polars), a list, or a dict or tuple of these with equal numbers of rows. What else is in a dict or tuple (numbers, text,
tuples) belongs to all of its rows, and is the same in batches that are put together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ghee.codec import rows_of
from ghee.errors import BatchError

_ALLOWED = (
    "an Arrow record batch or table, a numpy array, a torch tensor, a pandas or polars frame, a list, or a dict or tuple of "
    "these with equal numbers of rows (what belongs to all rows may be beside them as a number, a string or a tuple)"
)


def check_rows(batch: object) -> None:
    """Raise BatchError if a batch has no rows that could be cut."""
    said = f"got a {type(batch).__name__}"
    if type(batch) is dict or isinstance(batch, tuple):
        counts = _counts(batch)
        if len(counts) == 1:
            return
        said += f" with columns of {' and '.join(map(str, sorted(counts)))} rows" if counts else " with no array in it"
    elif _kind(batch) is not None:
        return
    raise BatchError(f"{said}, which .rebatch() cannot cut by rows; it cuts {_ALLOWED}")


def _counts(batch: Any) -> set[int]:
    values = batch.values() if isinstance(batch, Mapping) else batch
    return {rows_of(value) for value in values if _kind(value) is not None}


def sliced(batch: Any, skip: int, take: int) -> Any:
    """The rows from `skip` on, `take` of them: views, where the batch's type has such."""
    return _each(batch, lambda value: _slice(value, skip, take))


def joined(batches: Sequence[Any]) -> Any:
    """One batch of the rows of several of one type, in this order.

    Raises BatchError where they do not go together.
    """
    first = batches[0]
    try:
        if isinstance(first, Mapping):
            for batch in batches:
                if batch.keys() != first.keys():
                    raise BatchError(f"one has the keys {list(first)}, another {list(batch)}")
            return {key: _column(repr(key), [batch[key] for batch in batches]) for key in first}
        if isinstance(first, tuple):
            values = [_column(f"item {n}", column) for n, column in enumerate(zip(*batches, strict=True))]
            return type(first)(*values) if hasattr(first, "_fields") else tuple(values)
        return _concat(batches)
    except Exception as error:  # each library raises its own for what does not go together
        kinds = sorted({type(batch).__name__ for batch in batches})
        raise BatchError(
            f"batches ({', '.join(kinds)}) could not be put together by .rebatch(): {error}; "
            "the function before it must give batches with the same columns and types each time"
        ) from error


def _each(batch: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(batch, Mapping):
        return {key: change(value) if _kind(value) else value for key, value in batch.items()}
    if isinstance(batch, tuple):
        values = [change(value) if _kind(value) else value for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
    return change(batch)


def _column(name: str, values: Sequence[Any]) -> Any:
    if _kind(values[0]) is not None:
        return _concat(values)
    for value in values:
        if value is not values[0] and not bool(value == values[0]):
            raise BatchError(f"{name} belongs to all rows of a batch and is not the same in each: make it a column")
    return values[0]


def _kind(value: Any) -> str | None:
    """What cuts it: its library."""
    if isinstance(value, list):
        return "list"
    if isinstance(value, str | bytes | Mapping | tuple) or value is None:
        return None
    root = type(value).__module__.partition(".")[0]
    if root == "torch":
        torch: Any = sys.modules["torch"]
        is_dense = not getattr(value, "is_nested", False) and value.layout is torch.strided
        return "torch" if is_dense and value.dim() else None
    if root in ("pandas", "polars"):
        return root if hasattr(value, "shape") else None
    if hasattr(value, "num_rows") and hasattr(value, "slice"):
        return "arrow"
    arrow = sys.modules.get("pyarrow")  # no rank loads it that has none of its data
    if arrow is not None and isinstance(value, arrow.Array | arrow.ChunkedArray):
        return "array"
    return "numpy" if hasattr(value, "__array__") and getattr(value, "shape", None) else None


def _slice(value: Any, skip: int, take: int) -> Any:
    kind = _kind(value)
    if kind in ("arrow", "array", "polars"):
        return value.slice(skip, take)
    return value.iloc[skip : skip + take] if kind == "pandas" else value[skip : skip + take]


def _concat(values: Sequence[Any]) -> Any:
    kinds = {_kind(value) for value in values}
    if len(kinds) > 1 or None in kinds:
        raise TypeError(f"they are of different kinds, or have no rows: {', '.join(type(v).__name__ for v in values)}")
    (kind,) = kinds
    if kind == "list":
        return [item for value in values for item in value]
    if kind == "numpy":
        masked = any(isinstance(value, np.ma.MaskedArray) for value in values)
        concatenate: Any = np.ma.concatenate if masked else np.concatenate
        return concatenate(values)
    if kind == "torch":
        return sys.modules["torch"].cat(list(values))  # who made a tensor has loaded it
    if kind == "pandas":
        return sys.modules["pandas"].concat(values)
    if kind == "polars":
        return sys.modules["polars"].concat(values)
    pa: Any = sys.modules["pyarrow"]
    if all(isinstance(value, pa.RecordBatch) for value in values):
        return pa.concat_batches(values)
    if kind == "arrow":
        tables = [value if isinstance(value, pa.Table) else pa.Table.from_batches([value]) for value in values]
        return pa.concat_tables(tables)
    chunks = [chunk for value in values for chunk in (value.chunks if isinstance(value, pa.ChunkedArray) else [value])]
    return pa.chunked_array(chunks) if isinstance(values[0], pa.ChunkedArray) else pa.concat_arrays(chunks)
