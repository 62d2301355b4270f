"""A dataset's handle: in a set, in a worker process, in a notebook."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cumin


def test_a_dataset_is_equal_to_itself_wherever_it_was_loaded(recipe: dict[str, Any]) -> None:
    first = cumin.build("clicks", **recipe)
    loaded = cumin.load("clicks", store=recipe["store"])
    other = cumin.build("clicks", **{**recipe, "salt": "other"})
    assert first == loaded
    assert hash(first) == hash(loaded)
    assert first != other  # the same rows of another build
    assert first != "clicks"
    assert len({first, loaded, other}) == 2


def test_a_dataset_travels_to_another_process(recipe: dict[str, Any]) -> None:
    dataset = cumin.build("clicks", **recipe)
    again = pickle.loads(pickle.dumps(dataset))
    assert (again, again.files(), copy.deepcopy(dataset)) == (dataset, dataset.files(), dataset)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(cumin.Dataset.to_table, dataset).result().num_rows == dataset.rows


def test_a_handle_is_one_line_and_a_table_in_a_notebook(recipe: dict[str, Any], lake: Path) -> None:
    dataset = cumin.build("clicks", **recipe)
    assert repr(dataset) == (
        f"<cumin.Dataset clicks@v1 {dataset.build_id[:15]} {dataset.content_id[:15]}, {dataset.rows:,} rows>"
    )
    values = {name: value for name, value in recipe.items() if name != "store"}
    plan = cumin.plan("clicks", **values, lookback={"lake.events": 0})
    assert repr(plan) == f"<cumin.Plan clicks {plan.build_id[:15]} over lake.events, 7 partitions>"
    shown = dataset._repr_html_()
    assert dataset.content_id in shown
    assert "<th>column user_id</th><td>int64</td>" in shown
    sql = 'SELECT count(*) AS "<b>" FROM lake.events WHERE dt > :since'
    odd = cumin.build("odd", **{**recipe, "sql": sql, "partition_by": (), "order_key": ()})
    assert "<b>" not in odd._repr_html_()


def test_a_dataset_has_a_length_and_is_true_without_rows(recipe: dict[str, Any]) -> None:
    dataset = cumin.build("clicks", **recipe)
    empty = cumin.build("empty", **{**recipe, "sql": recipe["sql"].replace("WHERE", "WHERE user_id < 0 AND")})
    assert len(dataset) == dataset.rows == dataset.to_arrow().num_rows == len(dataset.to_pandas())
    assert list(dataset.to_pandas().columns) == ["dt", "user_id", "n"]
    assert len(empty) == 0
    assert empty
