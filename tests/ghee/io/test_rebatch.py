from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ghee.io.rebatch import rebatch, shuffled, sliced

SIZES = st.lists(st.integers(0, 40), max_size=8)


def _batches(sizes: list[int]) -> list[Any]:
    batches, at = [], 0
    for size in sizes:
        batches.append(pa.RecordBatch.from_pydict({"x": list(range(at, at + size))}, pa.schema([("x", pa.int64())])))
        at += size
    return batches


def _values(batches: list[Any]) -> list[int]:
    return [value for batch in batches for value in batch.column(0).to_pylist()]


@given(SIZES, st.integers(1, 50))
def test_batches_are_full_but_the_last(sizes: list[int], size: int) -> None:
    out = list(rebatch(_batches(sizes), size))
    assert _values(out) == list(range(sum(sizes)))
    assert all(batch.num_rows == size for batch in out[:-1])
    assert all(0 < batch.num_rows <= size for batch in out)


@given(SIZES, st.integers(0, 150), st.none() | st.integers(0, 150))
def test_a_range_of_rows(sizes: list[int], skip: int, take: int | None) -> None:
    wanted = list(range(sum(sizes)))[skip:]
    assert _values(list(sliced(_batches(sizes), skip, take))) == (wanted if take is None else wanted[:take])


@given(SIZES, st.integers(1, 60), st.integers(1, 20), st.integers(0, 9))
def test_a_shuffle_keeps_every_row_and_mixes_within_its_buffer(
    sizes: list[int], buffer: int, batch_size: int, seed: int
) -> None:
    def values() -> list[int]:
        return _values(list(shuffled(_batches(sizes), (seed, 0, 0), buffer=buffer, batch_size=batch_size)))

    mixed = values()
    assert sorted(mixed) == list(range(sum(sizes)))
    assert mixed == values()
    rounded = -(-buffer // batch_size) * batch_size
    assert all(place // rounded == value // rounded for place, value in enumerate(mixed))


def test_reading_stops_after_the_last_row_that_is_taken() -> None:
    def batches() -> Any:
        yield from _batches([5])
        raise AssertionError("read on")

    assert _values(list(sliced(batches(), 1, 4))) == [1, 2, 3, 4]


def test_dictionaries_that_differ_are_joined() -> None:
    batches = [pa.RecordBatch.from_arrays([pa.array([word]).dictionary_encode()], names=["x"]) for word in ("a", "b", "c")]
    assert _values(list(rebatch(batches, 2))) == ["a", "b", "c"]
