"""Batches to frames and back: a small header and the raw buffers, which are never pickled through.

Everything travels by pickle protocol 5 with its buffers out of band (PEP 574): numpy arrays, torch tensors, pandas
frames, Arrow batches and tables, and containers of these. What arrives is private to the receiver and writable, whatever
it was at the sender; Arrow data is immutable by its own rules.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ghee import pickling
from ghee.errors import BatchError

Buffer = bytes | bytearray | memoryview

_dispatch: dict[type, Callable[[Any], Any]] = {}
"""How a type that pickle alone would copy gives out its buffers; filled when the type's module is first seen."""


@dataclass(frozen=True)
class Encoded:
    """A batch as it travels: `header` rebuilds the object around `buffers`; `rows` is the number of rows in it."""

    header: bytes
    buffers: list[memoryview]
    rows: int

    @property
    def size(self) -> int:
        """Bytes of header and buffers."""
        return len(self.header) + sum(buffer.nbytes for buffer in self.buffers)


def encode(batch: object) -> Encoded:
    """Take a batch apart without copying its buffers.

    Raises BatchError if something in it cannot be pickled; the message names it.
    """
    _learn()
    buffers: list[pickle.PickleBuffer] = []
    out = io.BytesIO()
    try:
        pickler = pickle.Pickler(out, protocol=5, buffer_callback=buffers.append)
        pickler.dispatch_table = _dispatch
        pickler.dump(batch)
    except Exception:  # a class of the user's script is known to cloudpickle only
        out, buffers = io.BytesIO(), []
        try:
            pickling.Pickler(out, protocol=5, buffer_callback=buffers.append).dump(batch)
        except Exception as error:
            raise BatchError(
                f"got a {type(batch).__name__} that cannot be sent to the next stage: {error}; a batch may be an Arrow "
                "record batch or table, a dict or tuple of arrays or tensors, a pandas frame, or any object that pickles"
            ) from error
    return Encoded(out.getvalue(), [buffer.raw() for buffer in buffers], rows_of(batch))


def decode(header: Buffer, buffers: Sequence[Buffer]) -> object:
    """Rebuild the batch around the buffers, which it goes on using. Only for headers of an authenticated peer."""
    return pickle.loads(header, buffers=buffers)


def rows_of(batch: object) -> int:
    """The number of rows of a batch: the length of its first array; 1 for an object that has none."""
    if isinstance(batch, Mapping):
        return next((rows_of(value) for value in batch.values() if _has_rows(value)), 1)
    if isinstance(batch, tuple):
        return next((rows_of(value) for value in batch if _has_rows(value)), 1)
    if isinstance(batch, list):
        return len(batch)
    rows = getattr(batch, "num_rows", None)
    if rows is None:
        shape = getattr(batch, "shape", None)
        rows = shape[0] if shape else 1
    return int(rows)


def no_rows(batch: object) -> object:
    """The same kind of batch without rows: what a rank gets to whom `tail="pad"` gives no batch.

    Raises BatchError for a batch that has no rows to take away.
    """
    if isinstance(batch, Mapping):
        return {key: no_rows(value) if _has_rows(value) else value for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(no_rows(value) if _has_rows(value) else value for value in batch)
    if hasattr(batch, "num_rows"):
        return batch.slice(0, 0)  # type: ignore[attr-defined]
    if isinstance(batch, list) or getattr(batch, "shape", None):
        return batch[:0]  # type: ignore[index]
    raise BatchError(
        f'tail="pad" needs batches with rows (arrays, tensors, frames, tables), got {type(batch).__name__}; '
        'allowed for it: tail="drop", "repeat" or "error"'
    )


def _has_rows(value: object) -> bool:
    return isinstance(value, (list, Mapping, tuple)) or hasattr(value, "num_rows") or bool(getattr(value, "shape", None))


def _learn() -> None:
    """Meet the types of the modules that the user has imported; those that are absent cost nothing."""
    for module, learn in _LESSONS.items():
        if module in sys.modules and module not in _known:
            _known.add(module)
            learn()


_known: set[str] = set()


def _learn_numpy() -> None:
    import numpy

    def reduce(array: Any) -> Any:
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            array = numpy.ascontiguousarray(array)  # or its bytes would be pickled through
        dated = array.dtype.kind in "mMV"  # numpy gives no buffer of times: their bytes would be pickled through
        if array.dtype.hasobject or not array.dtype.itemsize or (array.flags.writeable and not dated):
            return array.__reduce_ex__(5)
        # Pickle would mark a read-only buffer as such for the receiver too, whose copy is its own.
        order = "C" if array.flags.c_contiguous else "F"
        return _array, (pickle.PickleBuffer(_unlocked(array)), array.dtype, array.shape, order)

    _dispatch[numpy.ndarray] = reduce


def _unlocked(array: Any) -> Any:
    """The bytes of a read-only array as a buffer that does not say so; only ever read from."""
    import ctypes

    view = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    view._owner = array
    return view


def _array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> object:
    import numpy

    return numpy.frombuffer(buffer, dtype).reshape(shape, order=order)


def _learn_torch() -> None:
    import torch

    def reduce(tensor: Any) -> Any:
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            return tensor.__reduce_ex__(5)
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        dtype = str(tensor.dtype).removeprefix("torch.")
        return _tensor, (flat.numpy(), dtype, tuple(tensor.shape), tensor.requires_grad)

    _dispatch[torch.Tensor] = reduce


def _tensor(flat: Any, dtype: str, shape: tuple[int, ...], requires_grad: bool) -> object:
    import torch

    tensor = torch.from_numpy(flat).view(getattr(torch, dtype)).reshape(shape)
    return tensor.requires_grad_() if requires_grad else tensor


def _learn_pyarrow() -> None:
    import pyarrow

    def reduce_batch(batch: Any) -> Any:
        if batch.get_total_buffer_size() <= batch.nbytes + batch.nbytes // 8 + 1024:
            return batch.__reduce_ex__(5)
        # A slice would take the buffers of the whole with it: the IPC format takes what belongs to it.
        return _record_batch, (batch.schema, pickle.PickleBuffer(batch.serialize()))

    def reduce_table(table: Any) -> Any:
        return _table, (table.schema, table.to_batches())

    _dispatch[pyarrow.RecordBatch] = reduce_batch
    _dispatch[pyarrow.Table] = reduce_table


def _record_batch(schema: Any, buffer: Any) -> object:
    import pyarrow

    return pyarrow.ipc.read_record_batch(pyarrow.py_buffer(buffer), schema)


def _table(schema: Any, batches: list[Any]) -> object:
    import pyarrow

    return pyarrow.Table.from_batches(batches, schema)


_LESSONS: dict[str, Callable[[], None]] = {
    "numpy": _learn_numpy,
    "torch": _learn_torch,
    "pyarrow": _learn_pyarrow,
}
