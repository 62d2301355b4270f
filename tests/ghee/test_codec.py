"""Batches to frames and back: whatever comes, it comes back the same, and its bytes are not in the pickled header."""

from __future__ import annotations

import threading
from typing import Any

import numpy
import pandas
import pyarrow as pa
import pytest
import torch
from batch_types import BATCHES, overwrite, same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ghee.codec import decode, encode, no_rows, rows_of
from ghee.errors import BatchError

IN_THE_HEADER = {"objects", "bytes", "text", "list"} | ({"frame"} if int(pandas.__version__.split(".")[0]) < 3 else set())
"""What consists of Python objects is pickled, there is nothing else to do with it: before pandas 3 text in a frame, too."""


def travel(batch: Any) -> Any:
    """As through a carrier: the buffers are copied once."""
    encoded = encode(batch)
    return decode(encoded.header, [bytearray(buffer) for buffer in encoded.buffers])


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("rows", [1, 5000])
def test_round_trip(kind: str, rows: int) -> None:
    batch = BATCHES[kind](rows)
    arrived = travel(batch)
    assert same(batch, arrived)
    overwrite(arrived)
    assert same(batch, BATCHES[kind](rows))


@pytest.mark.parametrize("kind", [kind for kind in BATCHES if kind not in IN_THE_HEADER])
def test_the_header_does_not_grow_with_the_rows(kind: str) -> None:
    few, many = (len(encode(BATCHES[kind](rows)).header) for rows in (100, 100_000))
    assert many <= few + 200


def test_a_slice_takes_only_its_own_rows_along() -> None:
    whole = pa.record_batch({"x": pa.array(range(1_000_000)), "s": pa.array(["text"] * 1_000_000)})
    for batch in (whole.slice(500_000, 10), pa.Table.from_batches([whole]).slice(500_000, 10)):
        assert encode(batch).size < 10_000
        assert travel(batch).equals(batch)


N = 50_000
words = pa.array([None if number % 5 == 0 else f"text number {number}" for number in range(N)])
numbers = pa.array(range(N))
codes = pa.array(["a", "b"] * (N // 2)).dictionary_encode()
ends = pa.array(range(0, N + 1, 2), pa.int32())
halves = pa.array([0, 1] * (N // 2), pa.int8())

ARROW = {
    "numbers": numbers,
    "words": words,
    "large": words.cast(pa.large_string()),
    "view": words.cast(pa.string_view()),
    "dictionary": codes,
    "null": pa.nulls(N),
    "list": pa.ListArray.from_arrays(ends, words),
    "list of dictionary": pa.ListArray.from_arrays(ends, codes),
    "list view": pa.ListViewArray.from_arrays(ends[:-1], pa.array([2] * (N // 2), pa.int32()), words),
    "fixed list": pa.FixedSizeListArray.from_arrays(numbers, 2),
    "struct": pa.StructArray.from_arrays([codes, words], ["k", "x"]),
    "struct of view": pa.StructArray.from_arrays([words.cast(pa.string_view())], ["v"]),
    "map": pa.MapArray.from_arrays(ends, numbers, codes),
    "sparse union": pa.UnionArray.from_sparse(halves, [numbers, words]),
    "dense union": pa.UnionArray.from_dense(halves, pa.array(range(N), pa.int32()), [numbers, words]),
    "run ends": pa.RunEndEncodedArray.from_arrays(pa.array(range(2, 2 * N + 2, 2), pa.int32()), numbers),
    "extension": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16] * N, pa.binary(16))),
}


@pytest.mark.parametrize("kind", ARROW)
@given(start=st.integers(0, N // 2), length=st.integers(0, 30))
@settings(max_examples=15, deadline=None)
def test_a_slice_of_any_arrow_type_arrives_without_its_parent(kind: str, start: int, length: int) -> None:
    part = ARROW[kind].slice(start, length)
    batch = pa.record_batch({"x": part})
    for sent in (part, pa.chunked_array([part, part]), batch, pa.Table.from_batches([batch])):
        assert encode(sent).size < 10_000
        arrived = travel(sent)
        assert type(arrived) is type(sent)
        assert arrived.equals(sent)
        assert (arrived.schema if hasattr(sent, "schema") else arrived.type) == (
            sent.schema if hasattr(sent, "schema") else sent.type
        )


@pytest.mark.parametrize("make", [pa.record_batch, pa.table])
def test_rows_without_columns(make: Any) -> None:
    assert travel(make({"x": [1, 2, 3]}, metadata={"a": "b"}).select([])).num_rows == 3


class Local(torch.Tensor):
    """A subclass without rules of its own."""


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_tensors_of_every_layout() -> None:
    image = torch.arange(120.0).reshape(2, 3, 4, 5)
    for sent in (image.to(memory_format=torch.channels_last), image.permute(3, 0, 2, 1), image.as_subclass(Local)[:1]):
        arrived = travel(sent)
        assert type(arrived) is type(sent)
        assert arrived.stride() == sent.stride()
        assert torch.equal(arrived, sent)
    sliced = travel(image.to(memory_format=torch.channels_last)[:, :, ::2])
    assert sliced.is_contiguous(memory_format=torch.channels_last)
    for sent in (torch.ones(5, dtype=torch.complex64).conj(), torch.eye(9).to_sparse(), torch.eye(9).to_sparse_csr()):
        arrived = travel(sent)
        assert arrived.layout is sent.layout
        assert torch.equal(arrived.to_dense(), sent.resolve_conj().to_dense())


@pytest.mark.filterwarnings("ignore")
def test_quantized_and_nested_tensors() -> None:
    whole = torch.arange(100_000.0)
    by_tensor = torch.quantize_per_tensor(whole, 0.5, 1, torch.qint8)
    by_channel = torch.quantize_per_channel(torch.eye(3), torch.ones(3), torch.zeros(3), 0, torch.quint8)
    whole_points = torch.quantize_per_channel(torch.eye(3), torch.ones(3), torch.zeros(3, dtype=torch.int64), 0, torch.qint8)
    for sent in (by_tensor, by_tensor[7:12], by_channel, whole_points):
        arrived = travel(sent)
        assert arrived.is_quantized
        assert arrived.qscheme() == sent.qscheme()
        assert torch.equal(arrived.dequantize(), sent.dequantize())
    assert encode(by_tensor[7:12]).size < 2_000
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([torch.ones(3), torch.zeros(5)], layout=layout)
        arrived = travel(nested)
        assert arrived.layout is layout
        assert [part.tolist() for part in arrived.unbind()] == [[1.0] * 3, [0.0] * 5]
        assert rows_of(nested) == 2


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_kinds_of_numpy_arrays(tmp_path: Any) -> None:
    rows = 20_000
    mapped = numpy.memmap(tmp_path / "map", "f8", "w+", shape=(rows,))
    masked = numpy.ma.masked_array(numpy.arange(rows), numpy.arange(rows) % 2, fill_value=7)
    records = numpy.rec.fromarrays([numpy.arange(rows), numpy.arange(rows) * 1.0], names="a,b")
    strings = numpy.array(["ü", "a longer text"] * (rows // 2), numpy.dtypes.StringDType())
    for sent in (mapped, masked, records, strings, numpy.asmatrix(numpy.eye(100)), strings.reshape(-1, 4).T, masked[3:5]):
        encoded, arrived = encode(sent), travel(sent)
        assert len(encoded.header) < 1_000
        assert type(arrived) is type(sent)
        assert (arrived.dtype, arrived.shape) == (sent.dtype, sent.shape)
        assert arrived.tolist() == sent.tolist()
    assert travel(masked).fill_value == 7
    assert travel(records).b[3] == 3.0
    missing = numpy.array(["a", None], numpy.dtypes.StringDType(na_object=None))
    assert travel(missing).tolist() == ["a", None]


def test_a_type_that_only_this_place_knows_holds_a_slice() -> None:
    class Mine:
        def __init__(self, x: Any) -> None:
            self.x = x

    assert encode(Mine(numbers.slice(5, 10))).size < 10_000
    assert travel(Mine(numbers.slice(5, 10))).x.equals(numbers.slice(5, 10))


dtypes = st.one_of(
    arrays.boolean_dtypes(), arrays.integer_dtypes(endianness="?"), arrays.floating_dtypes(endianness="?"),
    arrays.complex_number_dtypes(), arrays.datetime64_dtypes(), arrays.byte_string_dtypes(), arrays.unicode_string_dtypes(),
)  # fmt: skip


@given(arrays.arrays(dtypes, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)), st.data())
@settings(max_examples=150, deadline=None)
def test_any_array_and_any_view_of_it(array: Any, data: st.DataObject) -> None:
    if array.ndim:
        array = array[data.draw(arrays.basic_indices(array.shape, allow_newaxis=True))]
        array = numpy.asarray(array)
    if data.draw(st.booleans()):
        array = array.T
    array.flags.writeable = data.draw(st.booleans())
    arrived = travel(array)
    assert (arrived.dtype, arrived.shape) == (array.dtype, array.shape)
    assert arrived.tobytes() == array.tobytes()
    assert arrived.flags.writeable


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(plain)
@settings(deadline=None)
def test_any_nest_of_plain_objects(value: Any) -> None:
    assert travel(value) == value


def test_a_class_that_only_this_place_knows() -> None:
    class Local:
        def __init__(self, rows: Any) -> None:
            self.rows = rows

    arrived = travel(Local(numpy.arange(100_000)))
    assert isinstance(arrived, Local)
    assert len(encode(Local(numpy.arange(100_000))).header) < 10_000
    assert same(arrived.rows, numpy.arange(100_000))


def test_what_cannot_be_pickled_is_named() -> None:
    with pytest.raises(BatchError, match=r"got a dict that cannot be sent to the next stage.*_thread\.lock"):
        encode({"x": numpy.arange(3), "guard": threading.Lock()})


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (numpy.zeros((4, 2)), 4), ({"n": 3, "x": numpy.zeros(5)}, 5), ((1, numpy.zeros(6)), 6), ([1, 2], 2), ("text", 1),
        (None, 1), ({}, 1), (numpy.array(3), 1), (pa.table({"x": [1, 2, 3]}), 3), ({"x": {"y": numpy.zeros(7)}}, 7),
        ({"x": pa.array([1, 2])}, 2), ({"shape": [3, 4, 4], "image": numpy.zeros((8, 2))}, 8), ({"words": ["a", "b"]}, 2),
    ],
)  # fmt: skip
def test_rows(batch: Any, rows: int) -> None:
    assert rows_of(batch) == rows


def test_a_batch_without_its_rows() -> None:
    assert no_rows({"x": numpy.ones((3, 2)), "n": 1})["x"].shape == (0, 2)  # type: ignore[index]
    assert rows_of(no_rows(pa.table({"x": [1, 2]}))) == 0
    with pytest.raises(BatchError, match='tail="pad"'):
        no_rows(object())
