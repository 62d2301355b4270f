"""The one table that says how a type of arrays goes to frames and back; `ghee.codec` asks it about all that it meets.

Each entry takes an object apart into a function that rebuilds it and that function's arguments, as `__reduce__` does.
What is bytes goes as a `pickle.PickleBuffer` (PEP 574), and is neither copied nor pickled through. Rules for every entry:

* values, type, dtype and the layout in memory (the order of axes) arrive as they were sent;
* what arrives can be written to, whatever it was at the sender; Arrow data is immutable by its own rules;
* a slice takes its own rows along and not those of its parent. The dictionary of a dictionary column belongs to its type,
  so it goes whole.

A subclass goes as its base does, unless it has its own way to be pickled. What is not in the table has its own rules.
"""

from __future__ import annotations

import copyreg
import ctypes
import pickle
import sys
import weakref
from collections.abc import Callable
from functools import reduce
from typing import Any

TakeApart = Callable[[Any], Any]


class Reducers(dict[type, TakeApart]):
    """How to take apart what is of a type; knows the types of the table, their subclasses, and those of `copyreg`.

    Looked up by type; KeyError for one that is pickled by its own rules.
    """

    def __init__(self) -> None:
        super().__init__()
        self._others: weakref.WeakSet[type] = weakref.WeakSet()

    def __missing__(self, kind: type) -> TakeApart:
        if kind not in self._others:
            if (take_apart := _look_up(kind)) is not None:
                self[kind] = take_apart
                return take_apart
            self._others.add(kind)
        return copyreg.dispatch_table[kind]


def _look_up(kind: type) -> TakeApart | None:
    for base in kind.__mro__:
        for (module, name), take_apart in TABLE.items():
            # A module that nobody has imported has no objects; importing it here would cost seconds.
            owner: Any = sys.modules.get(module)
            if owner is not None and reduce(getattr, name.split("."), owner) is base:
                return take_apart if _pickles_as(kind, base) else None
    return None


def _pickles_as(kind: type, base: type) -> bool:
    names = ("__reduce_ex__", "__reduce__", "__setstate__", "__torch_dispatch__")
    return all(getattr(kind, name, None) == getattr(base, name, None) for name in names)


# ── numpy ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _take_array(array: Any) -> Any:
    import numpy

    if type(array) is not numpy.ndarray:  # a record array, a memory map (of whose file nothing is there), a matrix
        return _view, (numpy.asarray(array), type(array))
    if array.dtype.kind == "T":
        return _take_strings(array)
    if array.dtype.hasobject or not array.dtype.itemsize:
        return array.__reduce_ex__(5)
    axes = None
    if not array.flags.c_contiguous:
        axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
        array = numpy.ascontiguousarray(array.transpose(axes))
    # Pickle would mark a read-only buffer as such for the receiver too, whose copy is its own; of times, and of structures
    # that may hold them, numpy gives no buffer.
    is_plain = array.flags.writeable and array.dtype.kind not in "mMV"
    return _array, (pickle.PickleBuffer(array if is_plain else _bytes_of(array)), array.dtype, array.shape, axes)


def _array(buffer: Any, dtype: Any, shape: tuple[int, ...], axes: list[int] | None) -> Any:
    import numpy

    array = numpy.frombuffer(buffer, dtype).reshape(shape)
    return array if axes is None else array.transpose(numpy.argsort(axes))


def _view(array: Any, kind: Any) -> object:
    return array.view(kind)


def _bytes_of(array: Any) -> Any:
    """The bytes of an array as a buffer that does not say that it is read-only; only ever read from."""
    view = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    view._owner = array
    return view


def _take_strings(array: Any) -> Any:
    """An array of `numpy.dtypes.StringDType`, which has no buffer to give: as Arrow's strings."""
    import pyarrow

    missing = getattr(array.dtype, "na_object", _NOTHING)
    values = [None if _is_missing(value, missing) else value for value in array.ravel().tolist()]
    return _strings, (pyarrow.array(values, pyarrow.large_string()), array.dtype, array.shape)


_NOTHING = object()


def _is_missing(value: object, missing: object) -> bool:
    return value is missing or (isinstance(value, float) and value != value)


def _strings(values: Any, dtype: Any, shape: tuple[int, ...]) -> object:
    import numpy

    missing = getattr(dtype, "na_object", None)
    whole = numpy.empty(len(values), dtype)
    whole[:] = [missing if value is None else value for value in values.to_pylist()]
    return whole.reshape(shape)


def _take_masked(array: Any) -> Any:
    import numpy

    mask = numpy.ma.getmask(array)
    mask = None if mask is numpy.ma.nomask else mask
    return _masked, (array.data, mask, array.fill_value, array.hardmask, type(array))


def _masked(data: Any, mask: Any, fill_value: Any, hard: bool, kind: Any) -> object:
    import numpy

    mask = numpy.ma.nomask if mask is None else mask
    array = numpy.ma.MaskedArray(data, mask, fill_value=fill_value, hard_mask=hard)
    return array if kind is numpy.ma.MaskedArray else array.view(kind)


# ── torch ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _take_tensor(tensor: Any) -> Any:
    import torch

    if type(tensor) is not torch.Tensor or tensor.__dict__:
        return _dressed, (_undressed(tensor), type(tensor), dict(tensor.__dict__))
    if tensor.device.type != "cpu":
        return tensor.__reduce_ex__(5)
    if tensor.is_nested:
        return _take_nested(tensor)
    if tensor.layout is torch.sparse_coo:
        parts = (tensor._indices().detach(), tensor._values().detach(), tuple(tensor.shape), tensor.is_coalesced())
        return _sparse, (*parts, tensor.requires_grad)
    if tensor.layout is not torch.strided or tensor.is_quantized:
        if tensor.is_quantized and tensor.qscheme() is torch.per_channel_affine_float_qparams:  # torch cannot clone it
            return tensor.__reduce_ex__(5)
        return tensor.detach().clone().requires_grad_(tensor.requires_grad).__reduce_ex__(5)  # the clone is no slice
    dense = tensor.detach().resolve_conj().resolve_neg()
    if not dense.is_contiguous() and torch.empty_like(dense, device="meta").stride() != dense.stride():
        dense = dense.clone()  # keeps the order of axes
    flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
    dtype = str(dense.dtype).removeprefix("torch.")
    strides = None if dense.is_contiguous() else dense.stride()
    return _tensor, (flat.numpy(), dtype, tuple(dense.shape), strides, tensor.requires_grad)


def _tensor(flat: Any, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, requires_grad: bool) -> object:
    import torch

    tensor = torch.from_numpy(flat).view(getattr(torch, dtype))
    tensor = tensor.reshape(shape) if strides is None else tensor.as_strided(shape, strides)
    return tensor.requires_grad_() if requires_grad else tensor


def _undressed(tensor: Any) -> Any:
    """The tensor without its class and its attributes."""
    import torch

    plain = tensor.detach().as_subclass(torch.Tensor)
    return plain.requires_grad_(tensor.requires_grad)


def _dressed(tensor: Any, kind: Any, attributes: dict[str, Any]) -> object:
    import torch

    dressed = tensor if kind is torch.Tensor else tensor.detach().as_subclass(kind).requires_grad_(tensor.requires_grad)
    dressed.__dict__.update(attributes)
    return dressed


def _take_nested(tensor: Any) -> Any:
    return _nested, (
        [part.detach() for part in tensor.unbind()],
        str(tensor.dtype).removeprefix("torch."),
        tensor.requires_grad,
    )


def _nested(parts: list[Any], dtype: str, requires_grad: bool) -> object:
    import torch

    tensor = torch.nested.nested_tensor(parts, dtype=getattr(torch, dtype), layout=torch.strided)
    return tensor.requires_grad_() if requires_grad else tensor


def _sparse(indices: Any, values: Any, shape: tuple[int, ...], coalesced: bool, requires_grad: bool) -> object:
    import torch

    # Without checks, which torch would else warn of: the parts are those of a tensor.
    return torch.sparse_coo_tensor(
        indices, values, shape, is_coalesced=coalesced, requires_grad=requires_grad, check_invariants=False
    )


# ── Arrow ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _take_arrow_array(array: Any) -> Any:
    return _own_part(array).__reduce__()


def _own_part(array: Any) -> Any:
    """The array on buffers that hold nothing but what belongs to it; itself, if it already stands on such."""
    import pyarrow

    kinds = _kinds(array.type)
    size = array.get_total_buffer_size()
    if size <= _SPARE or (not kinds & _VIEWS and size <= 9 * _used(array) // 8):
        return array
    if "dense_union" in kinds:  # concatenating would keep the whole of its children
        return _taken(array)
    array = pyarrow.concat_arrays([array])
    plain = _without_views(array.type)
    return array if plain == array.type else array.cast(plain).cast(array.type)


def _used(array: Any) -> int:
    """Bytes of the buffers that belong to the array; 0 where Arrow cannot tell (before 22, of a view of lists)."""
    import pyarrow

    try:
        return int(array.nbytes)
    except pyarrow.ArrowException:
        return 0


_SPARE = 1024
"""Bytes so few that to look for spare ones among them is not worth it."""

_VIEWS = {"string_view", "binary_view"}
"""Their data may be anywhere in their buffers, all of which Arrow counts as theirs."""


def _kinds(kind: Any) -> set[str]:
    """The names of a type and of all types in it."""
    import pyarrow

    if isinstance(kind, pyarrow.BaseExtensionType):
        return _kinds(kind.storage_type)
    if pyarrow.types.is_dictionary(kind):
        return {"dictionary"}
    name = "dense_union" if pyarrow.types.is_union(kind) and kind.mode == "dense" else str(kind)
    return {name}.union(*(_kinds(kind.field(number).type) for number in range(kind.num_fields)))


def _taken(array: Any) -> Any:
    import pyarrow

    try:
        return array.take(pyarrow.array(range(len(array)), pyarrow.int64()))
    except pyarrow.ArrowNotImplementedError:  # of a type that it cannot take from: whole, which is right and only larger
        return array


def _without_views(kind: Any) -> Any:
    """The type with plain strings in place of views, to which and from which Arrow casts."""
    import pyarrow

    types = pyarrow.types
    if types.is_string_view(kind):
        return pyarrow.large_string()
    if types.is_binary_view(kind):
        return pyarrow.large_binary()
    fields = [kind.field(number) for number in range(kind.num_fields)]
    fields = [field.with_type(_without_views(field.type)) for field in fields]
    if types.is_struct(kind):
        return pyarrow.struct(fields)
    if types.is_map(kind):
        return pyarrow.map_(kind.key_field.with_type(_without_views(kind.key_type)), _without_item_views(kind))
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(fields[0], kind.list_size)
    if types.is_large_list(kind):
        return pyarrow.large_list(fields[0])
    return pyarrow.list_(fields[0]) if types.is_list(kind) else kind


def _without_item_views(kind: Any) -> Any:
    return kind.item_field.with_type(_without_views(kind.item_type))


def _take_chunks(chunks: Any) -> Any:
    return _chunks, (chunks.chunks, chunks.type)


def _chunks(chunks: list[Any], kind: Any) -> object:
    import pyarrow

    return pyarrow.chunked_array(chunks, kind)


def _take_record_batch(batch: Any) -> Any:
    return _record_batch, (batch.columns, batch.schema, batch.num_rows)


def _record_batch(columns: list[Any], schema: Any, rows: int) -> object:
    import pyarrow

    if columns:
        return pyarrow.RecordBatch.from_arrays(columns, schema=schema)
    counted = pyarrow.record_batch([pyarrow.nulls(rows)], names=[""])  # only a batch with a column can be told its rows
    return counted.select([]).replace_schema_metadata(schema.metadata)


def _take_table(table: Any) -> Any:
    return _table, (table.columns, table.schema, table.num_rows)


def _table(columns: list[Any], schema: Any, rows: int) -> object:
    import pyarrow

    if columns:
        return pyarrow.Table.from_arrays(columns, schema=schema)
    # Metadata first: to replace it without columns would lose the rows.
    return pyarrow.table([pyarrow.nulls(rows)], names=[""], metadata=schema.metadata).select([])


TABLE: dict[tuple[str, str], TakeApart] = {
    ("numpy", "ma.MaskedArray"): _take_masked,
    ("numpy", "ndarray"): _take_array,
    ("torch", "Tensor"): _take_tensor,
    ("pyarrow", "Array"): _take_arrow_array,
    ("pyarrow", "ChunkedArray"): _take_chunks,
    ("pyarrow", "RecordBatch"): _take_record_batch,
    ("pyarrow", "Table"): _take_table,
}
"""Module and name of each type, and how what is of it is taken apart. Pandas frames consist of these."""
