"""Batches to frames and back: a small header and the raw buffers, which are never pickled through.

Everything travels by pickle protocol 5 with its buffers out of band (PEP 574): numpy arrays, torch tensors, pandas
frames, Arrow batches and tables, and containers of these. `ghee.codec_types` says how each goes and comes back.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ghee import pickling
from ghee.codec_types import Reducers
from ghee.errors import BatchError

Buffer = bytes | bytearray | memoryview

_REDUCERS = Reducers()


class _ByValue(pickling.Pickler):
    """Takes classes along that only this process knows."""

    dispatch_table: ClassVar[Any] = ChainMap(_REDUCERS, pickling.Pickler.dispatch_table)


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
    buffers: list[pickle.PickleBuffer] = []
    out = io.BytesIO()
    try:
        pickler = pickle.Pickler(out, protocol=5, buffer_callback=buffers.append)
        pickler.dispatch_table = _REDUCERS
        pickler.dump(batch)
    except Exception:  # a class of the user's script is known to cloudpickle only
        out, buffers = io.BytesIO(), []
        try:
            _ByValue(out, protocol=5, buffer_callback=buffers.append).dump(batch)
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
    """The number of rows of a batch: the length of its first array, or else of its first list; 1 without both."""
    if isinstance(batch, Mapping):
        return _rows_in(list(batch.values()))
    if isinstance(batch, tuple):
        return _rows_in(batch)
    if isinstance(batch, list):
        return len(batch)
    rows = _length(batch)
    return 1 if rows is None else rows


def _rows_in(values: Sequence[object]) -> int:
    # A list may be what describes a row, as the shape of an image does, so an array comes before it.
    with_rows = [value for value in values if _has_rows(value)]
    arrays = [value for value in with_rows if not isinstance(value, list)]
    return next((rows_of(value) for value in (*arrays, *with_rows)), 1)


def _length(array: object) -> int | None:
    """The rows of an array, tensor, frame or table; None for what is none of these, or has no axis."""
    if getattr(array, "is_nested", False):  # a nested tensor has no shape
        return int(array.size(0))  # type: ignore[attr-defined]
    for name in ("num_rows", "shape"):
        if (found := getattr(array, name, None)) is not None:
            return int(found) if name == "num_rows" else int(found[0]) if found else None
    arrow = sys.modules.get("pyarrow")
    return len(array) if arrow and isinstance(array, (arrow.Array, arrow.ChunkedArray)) else None


def no_rows(batch: object) -> object:
    """The same kind of batch without rows: what a rank gets to whom `tail="pad"` gives no batch.

    Raises BatchError for a batch that has no rows to take away.
    """
    if isinstance(batch, Mapping):
        return {key: no_rows(value) if _has_rows(value) else value for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(no_rows(value) if _has_rows(value) else value for value in batch)
    if isinstance(batch, list) or _length(batch) is not None:
        return batch.slice(0, 0) if hasattr(batch, "slice") else batch[:0]  # type: ignore[index]
    raise BatchError(
        f'tail="pad" needs batches with rows (arrays, tensors, frames, tables), got {type(batch).__name__}; '
        'allowed for it: tail="drop", "repeat" or "error"'
    )


def _has_rows(value: object) -> bool:
    return isinstance(value, (list, Mapping, tuple)) or _length(value) is not None
