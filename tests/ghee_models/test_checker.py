"""The checker finds every violation at once, says where, and keeps what rows contain to itself."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghee_models.checker import Counter, check_batches, check_schema
from ghee_models.cli import main
from ghee_models.schema import Field, Schema, family

SCHEMA = Schema(
    (
        Field("user", "user"),
        Field("age", "numeric", minimum=0, maximum=120),
        Field("tags", "categories", nullable=True),
        Field("label", "binary"),
    ),
    unique=("user",),
)


def table(n: int, start: int = 0) -> pa.Table:
    users = list(range(start, start + n))
    columns = {"user": users, "age": [30.0] * n, "tags": [["a"]] * n, "label": [u % 2 for u in users]}
    return pa.table(
        columns,
        schema=pa.schema({"user": pa.int64(), "age": pa.float64(), "tags": pa.list_(pa.string()), "label": pa.int64()}),
    )


def save(folder: Path, *tables: pa.Table) -> str:
    folder.mkdir(exist_ok=True)
    for number, rows in enumerate(tables):
        pq.write_table(rows, folder / f"part-{number}.parquet", row_group_size=10)
    return str(folder)


def replace(rows: pa.Table, name: str, at: int, value: object) -> pa.Table:
    column = rows[name].to_pylist()
    column[at] = value
    return rows.set_column(rows.schema.get_field_index(name), name, pa.array(column, rows.schema.field(name).type))


def test_good_data_passes_with_a_bounded_sample(tmp_path: Path) -> None:
    report = check_schema(SCHEMA, save(tmp_path / "d", table(50)))
    assert report.ok
    assert (report.rows, report.total) == (20, 50)
    assert check_schema(SCHEMA, str(tmp_path / "d"), everything=True).rows == 50


def test_every_violation_is_reported_with_its_place(tmp_path: Path) -> None:
    second = table(30, 100)
    for name, at, value in [("age", 25, -1.0), ("age", 27, 500.0), ("user", 23, None), ("label", 21, 7)]:
        second = replace(second, name, at, value)
    second = replace(second, "user", 29, 3)  # a key of the first file
    report = check_schema(SCHEMA, save(tmp_path / "d", table(30), second), everything=True)
    found = {(v.field, v.rule): v for v in report.violations}
    assert set(found) == {
        ("age", "below 0"),
        ("age", "above 120"),
        ("user", "null"),
        ("label", "neither 0 nor 1"),
        ("user", "a repeated key"),
    }
    below = found["age", "below 0"]
    assert (below.row_group, below.row, below.count) == (2, 25, 1)
    assert below.file is not None
    assert below.file.endswith("part-1.parquet")
    assert all(violation.fix for violation in report.violations)


def test_metadata_alone_finds_missing_columns_and_wrong_types(tmp_path: Path) -> None:
    wrong = table(5).drop_columns(["tags"]).set_column(1, "age", pa.array(["x"] * 5))
    report = check_schema(SCHEMA, save(tmp_path / "d", table(5), wrong, wrong))
    found = {(v.field, v.rule): v for v in report.violations}
    assert found["tags", "the column is missing"].count == 2
    assert found["age", "the type is not allowed"].count == 2
    assert "got string" in str(report)


def test_emptiness_and_one_class_are_found(tmp_path: Path) -> None:
    assert "there is no row" in str(check_schema(SCHEMA, save(tmp_path / "empty", table(0))))
    ones = table(4).set_column(3, "label", pa.array([1, 1, 1, 1]))
    assert "one class only" in str(check_schema(SCHEMA, save(tmp_path / "ones", ones)))
    nulls = table(4).set_column(2, "tags", pa.array([None] * 4, pa.list_(pa.string())))
    assert "only nulls" in str(check_schema(SCHEMA, save(tmp_path / "nulls", nulls)))
    assert "no such file or folder" in str(check_schema(SCHEMA, str(tmp_path / "nowhere")))
    (tmp_path / "bare").mkdir()
    assert "no Parquet file" in str(check_schema(SCHEMA, str(tmp_path / "bare")))


def test_a_file_that_is_no_parquet_is_a_violation(tmp_path: Path) -> None:
    save(tmp_path / "d", table(5))
    (tmp_path / "d" / "part-9.parquet").write_bytes(b"PAR1 cut short")
    assert "cannot be read as Parquet" in str(check_schema(SCHEMA, str(tmp_path / "d")))


def test_data_to_predict_must_have_the_types_of_training(tmp_path: Path) -> None:
    trained = SCHEMA.with_types({"user": "int64", "age": "double", "tags": "list<element: string>"})
    text = table(5).set_column(0, "user", pa.array([str(n) for n in range(5)]))
    found = check_schema(trained, save(tmp_path / "d", text.drop_columns(["label"])), training=False)
    assert [v.rule for v in found.violations] == ["the type is not that of training"]
    assert check_schema(trained, save(tmp_path / "e", table(5).drop_columns(["label"])), training=False).ok


def test_contents_are_shown_only_when_asked_for(tmp_path: Path) -> None:
    bad = replace(table(5), "age", 2, 987654.0)
    path = save(tmp_path / "d", bad)
    assert "987654" not in str(check_schema(SCHEMA, path))
    assert "987654" in str(check_schema(SCHEMA, path, show_values=True))


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from([None, -1.0, 5.0, 200.0]), st.integers(0, 4)), min_size=1, max_size=30),
    st.integers(1, 30),
)
def test_counters_of_parts_merge_into_the_counter_of_all(drawn: list[tuple[float | None, int]], cut: int) -> None:
    schema = Schema((Field("user", "user"), Field("age", "numeric", minimum=0, maximum=120)), ("user",))
    rows = pa.record_batch({"user": pa.array([u for _, u in drawn]), "age": pa.array([a for a, _ in drawn], pa.float64())})
    whole = {(v.field, v.rule): v.count for v in check_batches(schema, [rows]).violations if v.rule != "a repeated key"}
    first, second = Counter(schema), Counter(schema)
    first.add(rows.slice(0, cut))
    second.add(rows.slice(cut))
    merged = {(v.field, v.rule): v.count for v in first.merge(second).finish(whole=True)}
    repeated = merged.pop(("user", "a repeated key"), 0)
    assert merged == whole
    assert bool(repeated) == (len({u for _, u in drawn}) < len(drawn))


def test_the_command_exits_with_2_and_gives_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "d", replace(table(5), "label", 0, None).drop_columns(["tags"]))
    fields = "data.fields={user: user, age: numeric, tags: categories}"
    arguments = ["check", "model=fm", f"data.path={path}", fields, "data.label=label", "--json"]
    assert main(arguments) == 2
    found = json.loads(capsys.readouterr().out)
    assert {v["field"] for v in found["violations"]} == {"tags", "label"}
    save(tmp_path / "d", table(5))
    assert main(arguments) == 0


def test_ranges_and_classes_of_the_settings_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(6).set_column(3, "label", pa.array(["a", "b", "a", "c", "b", "a"]))
    path = save(tmp_path / "d", replace(rows, "age", 4, 130.0))
    fields = ["data.fields={user: user, age: numeric, tags: categories}", "data.label=label", "data.label_kind=class"]
    rules = ["data.minimum.age=0", "data.maximum.age=120", "data.classes=[a,b]"]
    assert main(["check", "model=mlp", f"data.path={path}", *fields, *rules, "--json"]) == 2
    found = {(v["field"], v["rule"], v["row"]) for v in json.loads(capsys.readouterr().out)["violations"]}
    assert found == {("age", "above 120.0", 4), ("label", "no class that is allowed", 3)}
    assert main(["check", "model=mlp", f"data.path={path}", *fields]) == 0


@pytest.mark.parametrize(
    ("arrow", "expected"),
    [
        (pa.int8(), "integer"), (pa.uint64(), "integer"), (pa.large_string(), "text"), (pa.float32(), "number"),
        (pa.list_(pa.string()), "list<text>"), (pa.large_list(pa.int32()), "list<integer>"), (pa.bool_(), "boolean"),
        (pa.dictionary(pa.int32(), pa.string()), "text"),
    ],
)  # fmt: skip
def test_types_of_one_family(arrow: pa.DataType, expected: str) -> None:
    assert family(arrow) == expected
