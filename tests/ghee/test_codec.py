"""Batches to frames and back: whatever comes, it comes back the same, and its bytes are not in the pickled header."""

from __future__ import annotations

import threading
from typing import Any

import numpy
import pyarrow as pa
import pytest
from batch_types import BATCHES, overwrite, same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ghee.codec import decode, encode, no_rows, rows_of
from ghee.errors import BatchError

IN_THE_HEADER = {"objects", "bytes", "text", "list"}
"""What consists of Python objects is pickled, there is nothing else to do with it."""


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
    ],
)  # fmt: skip
def test_rows(batch: Any, rows: int) -> None:
    assert rows_of(batch) == rows


def test_a_batch_without_its_rows() -> None:
    assert no_rows({"x": numpy.ones((3, 2)), "n": 1})["x"].shape == (0, 2)  # type: ignore[index]
    assert rows_of(no_rows(pa.table({"x": [1, 2]}))) == 0
    with pytest.raises(BatchError, match='tail="pad"'):
        no_rows(object())
