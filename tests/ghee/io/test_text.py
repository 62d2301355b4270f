"""Cutting text: a cut never falls into a record, whatever stands between quotes, and no row is lost."""

from __future__ import annotations

import csv
import io
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghee.io.formats import csv as csv_format
from ghee.io.formats.csv import header_end, last_record_end, record_starts
from ghee.io.opening import open_source

WORDS = st.text(st.sampled_from('ab",\n\r\t ü'), max_size=8)
ROWS = st.lists(st.tuples(WORDS, WORDS), max_size=30)


def _csv(rows: list[tuple[str, str]], header: tuple[str, str] = ("a", "b")) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerows([header, *rows])
    return out.getvalue().encode()


def _parsed(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


@given(ROWS, st.integers(1, 60), st.integers(1, 40))
def test_cuts_fall_between_records(rows: list[tuple[str, str]], every: int, block: int) -> None:
    data = _csv(rows, ("a\nx", 'b"'))
    start = header_end(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_format, "BLOCK", block)
        cuts = record_starts(io.BytesIO(data), start, len(data), every)
    edges = [start, *cuts, len(data)]
    parts = [data[a:b] for a, b in pairwise(edges)]
    assert b"".join(parts) == data[start:]
    assert [tuple(row) for part in parts for row in _parsed(part)] == rows
    assert all(b - a >= every for a, b in pairwise(edges[:-1]))


@given(ROWS, st.integers(0, 300))
def test_a_sample_ends_with_a_whole_record(rows: list[tuple[str, str]], size: int) -> None:
    data = _csv(rows)
    sample = data[:size]
    end = last_record_end(sample)
    assert _parsed(data)[: len(_parsed(sample[:end]))] == _parsed(sample[:end])
    assert end == 0 or sample[end - 1 : end] == b"\n"


def test_a_file_whose_quotes_do_not_pair_up_is_not_cut() -> None:
    assert record_starts(io.BytesIO(b'a\n5" disk\nb\nc\n'), 2, 14, 2) == []


@settings(max_examples=25)
@given(ROWS)
def test_rows_with_quotes_and_line_ends_are_read_as_written(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("ghee.io.plan.MIN_SPLIT_BYTES", 16)
        path = Path(folder) / "x.csv"
        path.write_bytes(_csv(rows))
        schema = pa.schema([("a", pa.string()), ("b", pa.string())])
        source = open_source(path, schema=schema)
        found: list[Any] = []
        for split in source.splits():
            for batch in source.read(split, epoch=0):
                found += [(row["a"], row["b"]) for row in batch.to_pylist()]
        assert found == rows
