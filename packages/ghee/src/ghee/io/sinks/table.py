"""From a user's batch to an Arrow table that can be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ghee.errors import BatchError
from ghee.io.arrays import from_numpy

ALLOWED = (
    "an Arrow record batch or table, a dict of columns (numpy arrays, torch tensors, lists, Arrow arrays), "
    "a pandas DataFrame, a list of dicts"
)


def as_table(batch: object) -> Any:
    """The batch as a pyarrow.Table; arrays of two and more dimensions become fixed-size lists.

    Raises BatchError saying what was got and what is allowed, with every column that is wrong.
    """
    if isinstance(batch, pa.Table):
        return batch
    if isinstance(batch, pa.RecordBatch):
        return pa.Table.from_batches([batch])
    if isinstance(batch, Mapping):
        return _from_columns(batch)
    if isinstance(batch, list):
        return _from_rows(batch)
    if type(batch).__module__.partition(".")[0] == "pandas" and hasattr(batch, "columns"):
        try:
            return pa.Table.from_pandas(batch, preserve_index=False).replace_schema_metadata(None)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise BatchError(f"The DataFrame cannot be written: {error}") from error
    advice = " Give the columns names: return a dict." if isinstance(batch, tuple) or hasattr(batch, "shape") else ""
    raise BatchError(f"A sink of files got {_kind(batch)}; allowed are {ALLOWED}.{advice}")


def _kind(value: object) -> str:
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    shape = getattr(value, "shape", None)
    return name if shape is None else f"{name} of shape {tuple(shape)}"


def _from_columns(batch: Mapping[Any, Any]) -> Any:
    if not batch:
        raise BatchError("A sink of files got an empty dict; a batch has at least one column.")
    arrays: dict[str, Any] = {}
    problems: list[str] = []
    for name, values in batch.items():
        if not isinstance(name, str):
            problems.append(f"the column name {name!r} is {_kind(name)}, not str")
            continue
        try:
            arrays[name] = as_array(values)
        except (BatchError, pa.ArrowException, TypeError, ValueError) as error:
            problems.append(f"column {name!r}: {error}")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        problems.append(f"the columns have different lengths: {lengths}")
    if problems:
        raise BatchError("The dict is no batch: " + "; ".join(problems) + ".")
    return pa.Table.from_pydict(arrays)  # pa.table() imports pandas


def _from_rows(rows: list[Any]) -> Any:
    wrong = next((row for row in rows if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise BatchError(f"A sink of files got a list that holds {_kind(wrong)}; allowed are {ALLOWED}.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not all(isinstance(name, str) for name in names):
        raise BatchError(f"The keys of rows must be str; they are {names}.")
    try:
        # Column by column: Table.from_pylist leaves out the keys that only later rows have.
        return pa.Table.from_pydict({name: pa.array([row.get(name) for row in rows]) for name in names})
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise BatchError(f"The list of dicts is no batch: {error}") from error


def as_array(values: Any) -> Any:
    """One column as an Arrow array."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        values = _from_tensor(values)
    if isinstance(values, np.ndarray):
        return _from_numpy(values)
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        raise BatchError(f"{_kind(values)} is no column; a column is an array, tensor or list with one value per row")
    if type(values).__module__.partition(".")[0] == "pandas":
        return pa.array(values)
    values = list(values)
    if values and isinstance(values[0], np.ndarray):
        return pa.array([value.tolist() for value in values])
    return pa.array(values)


def _from_tensor(tensor: Any) -> Any:
    """torch's tensors without importing torch; numpy has no bfloat16, and float32 holds all its values."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().numpy() if hasattr(tensor, "resolve_conj") else tensor.numpy()


def _from_numpy(values: Any) -> Any:
    if values.ndim == 0:
        raise BatchError("an array without dimensions is no column; a column has one value per row")
    if values.dtype.names or values.dtype.kind in "cV":
        raise BatchError(f"arrays of {values.dtype} cannot be written; split them into columns")
    flat = from_numpy(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        if size == 0:
            raise BatchError(f"an array of shape {values.shape} holds no values")
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat
