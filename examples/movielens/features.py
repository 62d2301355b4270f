"""`preprocess`: a record batch of ratings in, the sparse input of a Factorization Machine out.

Every feature is categorical: a field is a range of numbers, a value of the field is one number of that range, and the
first number of every range stands for what is unknown. So a row is `WIDTH` pairs (index, value); a film's genres share
one field of several slots, each with the value 1 / (number of its genres).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

GENDERS = pa.array(["F", "M"])
OCCUPATIONS = pa.array(
    [
        "administrator",
        "artist",
        "doctor",
        "educator",
        "engineer",
        "entertainment",
        "executive",
        "healthcare",
        "homemaker",
        "lawyer",
        "librarian",
        "marketing",
        "none",
        "other",
        "programmer",
        "retired",
        "salesman",
        "scientist",
        "student",
        "technician",
        "writer",
    ]
)
GENRES = pa.array(
    [
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
        "Film-Noir",
        "Horror",
        "Musical",
        "Mystery",
        "Romance",
        "Sci-Fi",
        "Thriller",
        "War",
        "Western",
        "unknown",
    ]
)
GENRE_SLOTS = 6  # no film of the data set has more

# How many values each field has, the unknown included.
FIELDS = {
    "user": 944,
    "item": 1683,
    "age": 16,
    "gender": len(GENDERS) + 1,
    "occupation": len(OCCUPATIONS) + 1,
    "decade": 10,
    "film age": 12,
    "month": 13,
    "weekday": 8,
    "hour": 25,
    "genre": len(GENRES) + 1,
}
OFFSET = dict(zip(FIELDS, np.cumsum([0, *FIELDS.values()]).tolist(), strict=False))
SIZE = sum(FIELDS.values())
WIDTH = len(FIELDS) - 1 + GENRE_SLOTS


def preprocess(batch: pa.RecordBatch) -> dict[str, np.ndarray]:
    """`index` (rows x WIDTH, int32) and `value` (rows x WIDTH, float32) of a batch, with its ids and `rating`."""
    time, year = batch["time"].to_numpy(), _numbers(batch["year"])
    places = {
        "user": batch["user_id"].to_numpy(),
        "item": batch["item_id"].to_numpy(),
        "age": 1 + _numbers(batch["age"]) // 5,
        "gender": 1 + _numbers(pc.index_in(batch["gender"], value_set=GENDERS)),
        "occupation": 1 + _numbers(pc.index_in(batch["occupation"], value_set=OCCUPATIONS)),
        "decade": year // 10 - 191,
        "film age": np.where(year < 0, 0, 1 + _count(time, "Y") + 1970 - year),
        "month": 1 + _count(time, "M") % 12,
        "weekday": 1 + (_count(time, "D") + 3) % 7,  # day 0, the first of 1970, was a Thursday
        "hour": 1 + _count(time, "h") % 24,
    }
    index = np.empty((batch.num_rows, WIDTH), np.int32)
    value = np.ones((batch.num_rows, WIDTH), np.float32)
    for slot, (name, place) in enumerate(places.items()):
        np.clip(place, 0, FIELDS[name] - 1, out=index[:, slot], casting="unsafe")
        index[:, slot] += OFFSET[name]
    index[:, len(places) :], value[:, len(places) :] = _genres(batch["genres"])
    plain = {name: batch[name].to_numpy().copy() for name in ("user_id", "item_id", "rating")}
    return {"index": index, "value": value, **plain}


def _numbers(array: pa.Array) -> npt.NDArray[np.integer]:
    """The array with -1 for null."""
    return (array.fill_null(-1) if array.null_count else array).to_numpy()


def _count(time: npt.NDArray[np.datetime64], unit: str) -> npt.NDArray[np.int64]:
    """Whole units since the start of 1970."""
    return time.astype(f"datetime64[{unit}]").astype(np.int64)


def _genres(lists: pa.ListArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """A film's genres side by side, each with weight 1 / their number; empty slots have weight 0."""
    counts = np.maximum(_numbers(lists.value_lengths()), 0)
    numbers = 1 + _numbers(pc.index_in(lists.flatten(), value_set=GENRES))
    if counts.max(initial=0) > GENRE_SLOTS:  # of more genres than there are slots, the first
        place = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
        numbers, counts = numbers[place < GENRE_SLOTS], np.minimum(counts, GENRE_SLOTS)
    taken = np.arange(GENRE_SLOTS) < counts[:, None]
    index = np.full(taken.shape, OFFSET["genre"], np.int32)
    index[taken] += numbers
    return index, (taken / np.maximum(counts, 1)[:, None]).astype(np.float32)
