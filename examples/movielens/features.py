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

OCCUPATIONS = (
    "administrator artist doctor educator engineer entertainment executive healthcare homemaker lawyer librarian "
    "marketing none other programmer retired salesman scientist student technician writer"
).split()
GENRES = (
    "Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western unknown"
).split()
GENRE_SLOTS = 6  # no film of the data set has more

# How many values each field has, the unknown included.
FIELDS = {
    "user": 944,
    "item": 1683,
    "age": 16,
    "gender": 3,
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
    fields = {
        "user": batch["user_id"],
        "item": batch["item_id"],
        "age": pc.add(pc.divide(batch["age"], 5), 1),
        "gender": _place(batch["gender"], ["F", "M"]),
        "occupation": _place(batch["occupation"], OCCUPATIONS),
        "decade": pc.subtract(pc.divide(batch["year"], 10), 191),
        "film age": pc.add(pc.subtract(pc.year(batch["time"]), batch["year"]), 1),
        "month": pc.month(batch["time"]),
        "weekday": pc.add(pc.day_of_week(batch["time"]), 1),
        "hour": pc.add(pc.hour(batch["time"]), 1),
    }
    index = np.empty((batch.num_rows, WIDTH), np.int32)
    value = np.ones((batch.num_rows, WIDTH), np.float32)
    for slot, (name, numbers) in enumerate(fields.items()):
        known = pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False)
        index[:, slot] = OFFSET[name] + np.clip(known, 0, FIELDS[name] - 1)
    index[:, len(fields) :], value[:, len(fields) :] = _genres(batch["genres"])
    plain = {name: batch[name].to_numpy().copy() for name in ("user_id", "item_id", "rating")}
    return {"index": index, "value": value, **plain}


def _place(names: pa.Array, known: list[str]) -> pa.Array:
    """1 + the place of each name among the known ones; null where it is none of them."""
    return pc.add(pc.index_in(names, value_set=pa.array(known)), 1)


def _genres(lists: pa.ListArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """A film's genres side by side, each with weight 1 / their number; empty slots have weight 0."""
    numbers = pc.fill_null(_place(lists.flatten(), GENRES), 0).to_numpy(zero_copy_only=False)
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    taken = np.arange(GENRE_SLOTS) < counts[:, None]
    index = np.full(taken.shape, OFFSET["genre"], np.int32)
    index[taken] += numbers[_first(counts)] if counts.size and counts.max() > GENRE_SLOTS else numbers
    value = taken / np.maximum(counts, 1)[:, None]
    return index, value.astype(np.float32)


def _first(counts: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which of the flattened genres stand among the first GENRE_SLOTS of their film."""
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return place < GENRE_SLOTS
