"""Preprocessing: every value has its number, what is unknown has the first of its field."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
from features import FIELDS, GENRE_SLOTS, GENRES, OFFSET, SIZE, WIDTH, preprocess
from hypothesis import given
from hypothesis import strategies as st

ROW: dict[str, Any] = {
    "user_id": 7,
    "item_id": 9,
    "rating": 4.0,
    "time": dt.datetime(1998, 3, 27, 22, 23),  # a Friday
    "age": 40,
    "gender": "M",
    "occupation": "student",
    "genres": ["Action", "War"],
    "year": 1990,
}
SCHEMA = pa.schema(
    {
        "user_id": pa.int32(),
        "item_id": pa.int32(),
        "rating": pa.float32(),
        "time": pa.timestamp("ms"),
        "age": pa.int16(),
        "gender": pa.string(),
        "occupation": pa.string(),
        "genres": pa.list_(pa.string()),
        "year": pa.int16(),
    }
)


def prepared(*rows: dict[str, Any]) -> dict[str, np.ndarray]:
    return preprocess(pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA))


def places(index: np.ndarray) -> dict[str, int]:
    """The number of each field's value within the field, of one row."""
    return {name: int(index[slot]) - OFFSET[name] for slot, name in enumerate(FIELDS) if name != "genre"}


def test_every_field_of_a_row() -> None:
    batch = prepared(ROW)
    assert places(batch["index"][0]) == {
        "user": 7, "item": 9, "age": 9, "gender": 2, "occupation": 19,
        "decade": 8, "film age": 9, "month": 3, "weekday": 5, "hour": 23,
    }  # fmt: skip
    genres = batch["index"][0, -GENRE_SLOTS:] - OFFSET["genre"]
    assert genres.tolist() == [1, 17, 0, 0, 0, 0]
    assert batch["value"][0].tolist() == [1.0] * 10 + [0.5, 0.5, 0, 0, 0, 0]
    assert (batch["user_id"][0], batch["item_id"][0], batch["rating"][0]) == (7, 9, 4.0)


def test_unknown_values_are_the_first_of_their_field() -> None:
    batch = prepared({**ROW, "age": None, "gender": "X", "occupation": None, "genres": None, "year": None})
    found = places(batch["index"][0])
    assert [found[name] for name in ("age", "gender", "occupation", "decade", "film age")] == [0] * 5
    assert batch["value"][0, -GENRE_SLOTS:].tolist() == [0] * GENRE_SLOTS


def test_of_too_many_genres_the_first_count() -> None:
    batch = prepared({**ROW, "genres": GENRES[:8].to_pylist()}, {**ROW, "genres": ["War"]})
    genres = batch["index"][:, -GENRE_SLOTS:] - OFFSET["genre"]
    assert genres.tolist() == [[1, 2, 3, 4, 5, 6], [17, 0, 0, 0, 0, 0]]
    assert np.allclose(batch["value"][:, -GENRE_SLOTS:].sum(1), 1)


def test_a_batch_without_rows() -> None:
    assert prepared()["index"].shape == (0, WIDTH)


def test_a_row_is_the_same_alone_and_in_a_slice_of_a_batch() -> None:
    others = [{**ROW, "genres": ["Drama"] * n, "age": n} for n in range(4)]
    whole = pa.RecordBatch.from_pylist(others, schema=SCHEMA)
    part = preprocess(whole.slice(2, 1))
    assert np.array_equal(part["index"], prepared(others[2])["index"])
    assert np.array_equal(part["value"], prepared(others[2])["value"])


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "user_id": st.integers(-5, 2_000),
                "item_id": st.integers(-5, 3_000),
                "rating": st.just(1.0),
                "time": st.datetimes(dt.datetime(1960, 1, 1), dt.datetime(2100, 1, 1)),
                "age": st.none() | st.integers(-1, 200),
                "gender": st.sampled_from([None, "F", "M", "", "f"]),
                "occupation": st.sampled_from([None, "none", "student", "", "é"]),
                "genres": st.none() | st.lists(st.none() | st.sampled_from(["Drama", "War", "?"]), max_size=9),
                "year": st.none() | st.integers(0, 3_000),
            }
        ),
        max_size=5,
    )
)
def test_every_number_lies_in_its_field_whatever_comes(rows: list[dict[str, Any]]) -> None:
    batch = prepared(*rows)
    assert batch["index"].shape == batch["value"].shape == (len(rows), WIDTH)
    assert batch["index"].max(initial=0) < SIZE
    for row in batch["index"]:
        assert all(0 <= place < FIELDS[name] for name, place in places(row).items())
        assert (row[-GENRE_SLOTS:] >= OFFSET["genre"]).all()
