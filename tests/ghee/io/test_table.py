"""What a sink of files takes as a batch."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ghee.errors import BatchError
from ghee.io.sinks.table import as_table


def test_every_kind_of_batch_becomes_the_same_table() -> None:
    pandas = pytest.importorskip("pandas")
    wanted = {"x": [1, 2], "y": ["a", "b"]}
    table = pa.table(wanted)
    for batch in (
        table,
        table.to_batches()[0],
        {"x": np.array([1, 2]), "y": np.array(["a", "b"])},
        {"x": [1, 2], "y": pa.array(["a", "b"])},
        {"x": (1, 2), "y": np.array(["a", "b"], dtype=object)},
        pandas.DataFrame(wanted, index=[5, 7]),
        [{"x": 1, "y": "a"}, {"y": "b", "x": 2}],
    ):
        assert as_table(batch).to_pydict() == wanted
        assert as_table(batch).schema.names == ["x", "y"]


def test_numpy_types_keep_their_width_and_dimensions() -> None:
    table = as_table(
        {
            "f": np.zeros((3, 2), dtype=np.float32),
            "g": np.arange(12, dtype=np.int8).reshape(3, 2, 2),
            "h": np.arange(6)[::2],
            "t": np.array(["2024-01-01", "NaT", "2024-01-03"], dtype="datetime64[ns]"),
            "b": np.array([True, False, True]),
            "e": np.arange(3, dtype=">i4"),
            "fortran": np.asfortranarray(np.arange(6).reshape(3, 2)),
        }
    )
    assert table.schema.field("f").type == pa.list_(pa.float32(), 2)
    assert table.schema.field("g").type == pa.list_(pa.list_(pa.int8(), 2), 2)
    assert table["g"].to_pylist()[1] == [[4, 5], [6, 7]]
    assert table["h"].to_pylist() == [0, 2, 4]
    assert table["t"].to_pylist()[1] is None
    assert table["e"].to_pylist() == [0, 1, 2]
    assert table["fortran"].to_pylist() == [[0, 1], [2, 3], [4, 5]]
    assert as_table({"x": np.zeros((0, 3))}).num_rows == 0


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    table = as_table(
        {
            "x": torch.arange(4, dtype=torch.float32, requires_grad=True),
            "y": torch.ones(4, 3, dtype=torch.bfloat16),
            "z": torch.arange(8)[::2],
        }
    )
    assert table.schema.types == [pa.float32(), pa.list_(pa.float32(), 3), pa.int64()]
    assert table["x"].to_pylist() == [0, 1, 2, 3]


def test_rows_may_lack_keys() -> None:
    table = as_table([{"x": 1}, {"y": datetime.date(2024, 1, 1)}])
    assert table.to_pydict() == {"x": [1, None], "y": [None, datetime.date(2024, 1, 1)]}


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (3, ["int", "allowed are an Arrow record batch"]),
        ("text", ["str"]),
        (None, ["NoneType"]),
        ((np.arange(3), np.arange(3)), ["tuple", "return a dict"]),
        (np.zeros((3, 2)), ["numpy.ndarray of shape (3, 2)", "return a dict"]),
        ({}, ["empty dict"]),
        ({1: [2]}, ["column name 1 is int"]),
        ({"x": [1, 2], "y": [1]}, ["different lengths: {'x': 2, 'y': 1}"]),
        ({"x": 1.0, "y": "abc", "z": np.float64(3)}, ["'x': float", "'y': str", "'z': numpy.float64"]),
        ({"x": np.array(3)}, ["without dimensions"]),
        ({"x": np.array([1 + 2j])}, ["complex128"]),
        ({"x": [1, "a"]}, ["column 'x'"]),
        ({"x": [object()]}, ["column 'x'"]),
        ([1, 2], ["a list that holds int"]),
        ([{"x": 1}, {"x": "a"}], ["list of dicts"]),
        ([{1: 1}], ["keys of rows"]),
    ],
)
def test_what_is_no_batch_is_said_with_what_is_allowed(batch: Any, words: list[str]) -> None:
    with pytest.raises(BatchError) as caught:
        as_table(batch)
    for word in words:
        assert word in str(caught.value)
