"""Vocabularies, statistics and pairs: the same from any cutting of the rows."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghee_models.card import DataFormat
from ghee_models.settings import interactions_schema, sparse_schema
from ghee_models.state import Pairs, Scan, Statistics, Vocabulary
from ghee_models.testing import sample


@given(st.lists(st.one_of(st.none(), st.integers(-(2**40), 2**40)), max_size=30), st.sets(st.integers(-50, 50)))
def test_integers_encode_to_their_place_and_back(column: list[int | None], known: set[int]) -> None:
    values = sorted(known)
    vocabulary = Vocabulary(pa.array(values, pa.int64()))
    encoded = vocabulary.encode(pa.array(column, pa.int64()))
    assert encoded.tolist() == [values.index(v) + 1 if v in known else 0 for v in column]
    assert vocabulary.decode(encoded).to_pylist() == [v if v in known else None for v in column]


@given(st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=30), st.sets(st.text(max_size=2)))
def test_text_encodes_to_its_place_and_back(column: list[str | None], known: set[str]) -> None:
    values = sorted(known)
    vocabulary = Vocabulary(pa.array(values, pa.string()))
    plain, packed = pa.array(column, pa.string()), pa.array(column, pa.string()).dictionary_encode()
    expected = [values.index(v) + 1 if v in known else 0 for v in column]
    assert vocabulary.encode(plain).tolist() == expected
    assert vocabulary.encode(packed).tolist() == expected


@pytest.mark.parametrize("data", list(DataFormat))
@given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6), swap=st.booleans())
def test_scans_of_parts_merge_into_the_scan_of_all(data: DataFormat, sizes: list[int], swap: bool) -> None:
    described, rows = sample(data)
    schema = interactions_schema(described) if data is DataFormat.INTERACTIONS else sparse_schema(described)
    whole = Scan(schema).add(rows).state()
    edges = [0, *np.cumsum(sizes).clip(max=rows.num_rows).tolist(), rows.num_rows]
    scans = [Scan(schema).add(rows.slice(a, b - a)) for a, b in itertools.pairwise(edges)]
    merged = Scan(schema)
    for part in reversed(scans) if swap else scans:
        merged.merge(part)
    state = merged.state()
    assert state.rows == whole.rows
    assert state.labels == whole.labels
    assert state.widths == whole.widths
    for name, vocabulary in whole.vocabularies.items():
        assert state.vocabularies[name].values.equals(vocabulary.values)
    for name, moments in whole.statistics.items():
        assert state.statistics[name].mean == pytest.approx(moments.mean)
        assert state.statistics[name].std == pytest.approx(moments.std)
    if whole.pairs is not None and state.pairs is not None:
        assert state.pairs.users.tolist() == whole.pairs.users.tolist()
        assert state.pairs.items.tolist() == whole.pairs.items.tolist()


def test_rare_values_count_as_unknown() -> None:
    described, _ = sample(DataFormat.INTERACTIONS)
    rows = pa.record_batch({"user": [1, 1, 2], "item": ["a", "b", "a"]})
    state = Scan(interactions_schema(described), min_count=2).add(rows).state()
    assert state.vocabularies["user"].values.to_pylist() == [1]
    assert state.vocabularies["item"].values.to_pylist() == ["a"]
    assert state.pairs is not None
    assert (state.pairs.users.tolist(), state.pairs.items.tolist()) == ([1], [1])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 9)), max_size=40), st.lists(st.integers(0, 9), max_size=12))
def test_pairs_of_users_are_theirs(drawn: list[tuple[int, int]], asked: list[int]) -> None:
    users, items = np.array([u for u, _ in drawn], np.int64), np.array([i for _, i in drawn], np.int64)
    row, item = Pairs.of(users, items, 10).of_users(np.array(asked, np.int64))
    expected = sorted((n, i) for n, user in enumerate(asked) for u, i in set(drawn) if u == user)
    assert sorted(zip(row.tolist(), item.tolist(), strict=True)) == expected


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.integers(0, 50))
def test_statistics_merge(values: list[float], cut: int) -> None:
    array = np.array(values, np.float64)
    merged = Statistics.of(array[:cut]).merge(Statistics.of(array[cut:]))
    assert merged.count == len(values)
    if values:
        assert merged.mean == pytest.approx(array.mean(), abs=1e-6)
        assert merged.squares == pytest.approx(((array - array.mean()) ** 2).sum(), rel=1e-6, abs=1e-3)
