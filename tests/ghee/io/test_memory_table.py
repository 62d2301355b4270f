"""Tables in memory as a source: cut like files, exact, mixed by a seed, and sent to ranks once."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest

import ghee
from ghee.errors import CheckpointError, PipelineError
from ghee.io.opening import open_source

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

pytestmark = pytest.mark.usefixtures("own_home")

ROWS, BATCH = 1000, 64
TABLE = pa.table({"id": range(ROWS), "name": pa.array([f"n{i % 5}" for i in range(ROWS)]).dictionary_encode()})


def pandas_frame() -> Any:
    return pytest.importorskip("pandas").DataFrame({"id": range(ROWS), "name": "x"})


def polars_frame() -> Any:
    columns = {"id": list(range(ROWS)), "name": ["x"] * ROWS, "words": [["a", "b"]] * ROWS, "in": [{"s": "x"}] * ROWS}
    return pytest.importorskip("polars").DataFrame(columns)


def arrays() -> dict[str, Any]:
    return {"id": np.arange(ROWS), "name": np.array(["x"] * ROWS), "image": np.zeros((ROWS, 3, 2), dtype="f4")}


def objects() -> dict[str, Any]:
    return {"id": np.arange(ROWS), "name": np.array([None, "x"] * (ROWS // 2), dtype=object)}


TABLES = {
    "table": lambda: TABLE,
    "chunks": lambda: pa.concat_tables([TABLE.slice(at, 90) for at in range(0, ROWS, 90)]),
    "record batch": lambda: TABLE.to_batches()[0],
    "pandas": pandas_frame,
    "polars": polars_frame,
    "arrays": arrays,
    "objects": objects,
}


def collect(batches: ghee.Batches) -> list[list[list[int]]]:
    """By epoch and batch the ids."""
    return [[[int(i) for i in batch["id"]] for batch in epoch] for epoch in batches.epochs()]


def kinds(batches: ghee.Batches) -> list[str]:
    return sorted({type(batch).__name__ for batch in batches})


@pytest.mark.parametrize("shuffle", [None, 5])
@pytest.mark.parametrize("kind", TABLES)
def test_batches_are_exact_and_hold_every_row_once(kind: str, shuffle: int | None) -> None:
    more = {} if shuffle is None else {"shuffle": shuffle, "shuffle_buffer": 200}
    source = ghee.read(TABLES[kind](), batch_size=BATCH, epochs=2, replicas=2, **more)  # type: ignore[arg-type]
    run = ghee.run(source.loop(collect, replicas=2, tail="pad"), on="inline", progress=False)
    orders = []
    for epoch in range(2):
        batches = [batch for of_rank in run.results["collect"] for batch in of_rank[epoch] if batch]
        assert sorted(len(batch) for batch in batches) == [ROWS % BATCH] + [BATCH] * (ROWS // BATCH)
        assert sorted(i for batch in batches for i in batch) == list(range(ROWS))
        orders.append(sorted(batches))
    assert (orders[0] == orders[1]) is (shuffle is None)
    assert run.report.balanced


@pytest.mark.parametrize("shuffle", [None, 5])
@pytest.mark.parametrize("kind", ["chunks", "arrays", "objects"])
def test_ranks_in_processes_read_what_was_laid_down_once(kind: str, shuffle: int | None) -> None:
    def pipeline(replicas: int) -> ghee.Pipeline:
        source = ghee.read(TABLES[kind](), batch_size=BATCH, epochs=2, shuffle=shuffle, replicas=replicas)
        return source.loop(collect, name="train", ordered=True)

    run = ghee.run(pipeline(2), on="local", progress=False)
    assert run.result == ghee.run(pipeline(1), on="inline", progress=False).result
    assert not list(run.folder.glob("source*")), "what was laid down is left"
    if shuffle is None:
        assert [i for batch in run.result[0] for i in batch] == list(range(ROWS))


def test_what_is_laid_down_travels_as_a_path(tmp_path: Path) -> None:
    for make in (TABLES["chunks"], arrays):
        source: Any = open_source(make(), batch_size=BATCH)
        splits = source.splits()
        whole = len(pickle.dumps(source))
        source.lay_down(tmp_path)
        data = pickle.dumps(source)
        assert len(data) < 2000 < whole
        there = pickle.loads(data)
        ids = [int(i) for split in splits for batch in there.read(split, epoch=0) for i in batch["id"]]
        assert ids == list(range(ROWS))
        source.pick_up()
        assert not list(tmp_path.iterdir())
        source.pick_up()


def test_batches_are_of_arrow_or_of_arrays() -> None:
    for make, kind in ((lambda: TABLE, "RecordBatch"), (arrays, "dict")):
        assert ghee.run(ghee.read(make()).loop(kinds), on="inline", progress=False).result == [kind]


def test_a_function_may_write_into_its_arrays() -> None:
    def change(batch: dict[str, Any]) -> dict[str, Any]:
        batch["id"] += 1
        return batch

    given = {"id": np.arange(ROWS)}
    run = ghee.run(ghee.read(given, epochs=2).map(change).loop(collect, ordered=True), on="inline", progress=False)
    assert run.result[0] == run.result[1]
    assert given["id"][0] == 0


def test_columns_filter_limit_and_drop_last() -> None:
    source = ghee.read(TABLE, columns=["id"], filter=[("id", ">=", 100)], limit=300, batch_size=BATCH, drop_last=True)
    run = ghee.run(source.loop(collect, ordered=True), on="inline", progress=False)
    assert [i for batch in run.result[0] for i in batch] == list(range(100, 400 - 300 % BATCH))
    assert run.report.stages[0].dropped == 300 % BATCH
    few = ghee.run(ghee.read(arrays(), columns=["id"], limit=3).loop(collect), on="inline", progress=False)
    assert few.result == [[[0, 1, 2]]]
    none = ghee.run(ghee.read(TABLE.slice(0, 0)).loop(collect), on="inline", progress=False)
    assert none.result == [[]]


def test_the_ranks_do_not_matter_to_what_is_shuffled() -> None:
    results = []
    for replicas in (1, 3):
        source = ghee.read(TABLE, shuffle=3, shuffle_buffer=128, batch_size=32, replicas=replicas)
        results.append(ghee.run(source.loop(collect, ordered=True), on="inline", progress=False).result)
    assert results[0] == results[1]
    (batches,) = results[0]
    assert Counter(i for batch in batches for i in batch) == Counter(range(ROWS))
    assert np.mean([max(batch) - min(batch) for batch in batches]) > ROWS / 2, "pieces from all over the table are mixed"


def test_a_run_goes_on_with_the_same_table_only() -> None:
    def keep(batches: ghee.Batches) -> tuple[list[int], dict[str, Any]]:
        for batch in batches:
            return [int(i) for i in batch["id"]], batches.state()
        raise AssertionError

    def pipeline(table: Any, function: Any) -> ghee.Pipeline:
        return ghee.read(table, batch_size=BATCH).loop(function, name="train", ordered=True)

    seen, place = ghee.run(pipeline(TABLE, keep), on="inline", progress=False).result
    rest = ghee.run(pipeline(TABLE, collect), on="inline", progress=False, resume=place).result
    assert seen + [i for batch in rest[0] for i in batch] == list(range(ROWS))
    other = TABLE.set_column(0, "id", pa.array(range(1, ROWS + 1)))
    with pytest.raises(CheckpointError, match="the input is not what run"):
        ghee.run(pipeline(other, collect), on="inline", progress=False, resume=place)


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (TABLE, {"format": "csv"}, "format: a Table in memory takes none of these"),
        (TABLE, {"columns": ["x"]}, r"The table has no columns \['x'\]; it has \['id', 'name'\]"),
        (TABLE, {"filter": [("x", ">", 3)]}, "The filter .* does not fit the table"),
        (TABLE, {"batch_size": 0}, "batch_size=0 must be a whole number of rows"),
        ({"a": np.arange(3)}, {"filter": [("a", ">", 1)]}, "filter: a dict in memory takes none of these"),
        ({"a": np.arange(3), "b": np.arange(4)}, {}, "needs arrays of equal length, got lengths {'a': 3, 'b': 4}"),
        ({"a": np.array(3)}, {}, "needs arrays of equal length, got lengths {'a': None}"),
        ({"a": [1, 2]}, {}, "dict is no source; .* Give a dict of numpy arrays of equal length"),
        ({}, {}, "dict is no source"),
    ],
)
def test_wrong_uses_say_what_to_do(source: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        open_source(source, **options)
