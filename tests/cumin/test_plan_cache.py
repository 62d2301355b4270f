"""What a plan remembers of a query: right, or asked again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cumin
import cumin.study
from cumin import plan_cache, versions

SQL = "SELECT user_id, count(*) AS n FROM events WHERE dt >= :since GROUP BY user_id"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that a parser and an engine were asked. The process begins with an empty memory."""
    calls: list[str] = []
    study = cumin.study.study

    def counted(recipe: Any, rendered: Any, tables: Any) -> plan_cache.Study:
        calls.append(rendered.text)
        return study(recipe, rendered, tables)

    monkeypatch.setattr("cumin.study.study", counted)
    plan_cache._known.clear()
    return calls


def made(lake: Path, **more: Any) -> Any:
    values = {
        "sql": SQL,
        "params": {"since": "2026-01-05"},
        "inputs": {"events": cumin.hive(lake / "events", partition={"dt": "date"})},
        **more,
    }
    return cumin.plan("clicks", **values)


def test_an_equal_plan_asks_nothing(lake: Path, asked: list[str]) -> None:
    first = made(lake)
    again = made(lake)
    plan_cache._known.clear()  # as in another process
    from_disk = made(lake)
    assert len(asked) == 1
    for other in (again, from_disk):
        assert (other.build_id, other.form, other.executed, other.study, other.schema) == (
            first.build_id, first.form, first.executed, first.study, first.schema)  # fmt: skip


def _other_schema(lake: Path) -> dict[str, Any]:
    path = _first_file(lake)
    pq.write_table(pq.read_table(path, partitioning=None).append_column("more", pa.array([1] * 40)), path)
    return {}


def _one_more_partition(lake: Path) -> dict[str, Any]:
    folder = lake / "events" / "dt=2026-03-01"
    folder.mkdir()
    (folder / "part-0.parquet").write_bytes(min((lake / "events").rglob("*.parquet")).read_bytes())
    return {}


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "the query": lambda lake: {"sql": SQL.replace("count(*)", "count(user_id)")},
    "a parameter": lambda lake: {"params": {"since": "2026-01-06"}},
    "the first file's columns": _other_schema,
    "a partition": _one_more_partition,
    "a partition column's type": lambda lake: {
        "inputs": {"events": cumin.hive(lake / "events", partition={"dt": "string"})}
    },
    "the mode": lambda lake: {"determinism": cumin.Determinism(mode="decimal")},
    "the time zone": lambda lake: {"engine": cumin.duckdb(timezone="Asia/Tokyo")},
    "the columns to partition by": lambda lake: {"partition_by": ["user_id"]},
    "the columns to sort by": lambda lake: {"order_key": ["user_id"]},
    "the declared key": lambda lake: {
        "inputs": {"events": cumin.hive(lake / "events", partition={"dt": "date"}, key="event_id")}
    },
    "what is allowed": lambda lake: {"determinism": cumin.Determinism(allow=("limit",))},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_an_answer_follows_from_makes_it_ask_again(change: str, lake: Path, asked: list[str]) -> None:
    made(lake)
    changed = CHANGES[change](lake)
    found = made(lake, **changed)
    assert len(asked) == 2
    plan_cache._known.clear()
    (Path(os.environ["CUMIN_CACHE"]) / "plans").rename(lake / "away")
    assert made(lake, **changed).study == found.study  # as one that remembers nothing says


def test_other_code_asks_again(lake: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made(lake)
    monkeypatch.setattr(versions, "_AT_IMPORT", "another")
    made(lake)
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["sqlglot", "pyarrow", "duckdb"])
def test_another_version_of_a_library_asks_again(
    name: str, lake: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(lake)
    monkeypatch.setattr(f"{name}.__version__", "99.0.0")
    made(lake)
    assert len(asked) == 2


def test_another_python_asks_again(lake: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made(lake)
    monkeypatch.setattr(sys, "version", sys.version.replace("3.", "4.", 1))
    made(lake)
    assert len(asked) == 2


def _first_file(lake: Path) -> Path:
    return min((lake / "events").rglob("*.parquet"))


def _rename_a_column(lake: Path) -> None:
    table = pq.read_table(_first_file(lake), partitioning=None)
    pq.write_table(table.rename_columns(["event_id", "user_id", "item_id", "price"]), _first_file(lake))


REPLACED: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "the first file": lambda lake, patch: _rename_a_column(lake),
    "a library": lambda lake, patch: patch.setattr("sqlglot.__version__", "99.0.0"),
    "the package": lambda lake, patch: patch.setattr(versions, "_own_code", lambda: "another"),
}


@pytest.mark.parametrize("what", REPLACED)
def test_what_is_replaced_while_a_plan_is_made_lends_its_name_to_none(
    what: str, lake: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    studied = cumin.study.study

    def slow(recipe: Any, rendered: Any, tables: Any) -> plan_cache.Study:
        REPLACED[what](lake, monkeypatch)
        return studied(recipe, rendered, tables)

    with monkeypatch.context() as while_made:
        while_made.setattr("cumin.study.study", slow)
        made(lake)
    assert not plan_cache._known
    assert not (Path(os.environ["CUMIN_CACHE"]) / "plans").exists()


def test_a_package_without_source_keeps_no_plan(
    lake: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled files alone do not say which code they are."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "empty" / "versions.pyc"))
    monkeypatch.setattr(versions, "_AT_IMPORT", versions.own_code(again=True))
    made(lake)
    made(lake)
    assert len(asked) == 2


def test_the_types_of_a_function_ask_again(lake: Path, asked: list[str]) -> None:
    sql = "SELECT user_id, twice(user_id) AS n FROM events"
    for kind in (pa.int64(), pa.float64()):
        udf = cumin.udf(lambda value: value * 2, arguments=[pa.int64()], returns=kind, version="1")
        assert made(lake, sql=sql, params={}, udfs={"twice": udf}).schema.field("n").type == kind
    assert len(asked) == 2


def test_the_name_of_a_function_asks_again(lake: Path, asked: list[str]) -> None:
    for name in ("twice", "double"):
        udf = cumin.udf(lambda value: value * 2, arguments=[pa.int64()], returns=pa.int64(), version="1")
        made(lake, sql="SELECT user_id AS n FROM events", params={}, udfs={name: udf})
    assert len(asked) == 2


def test_the_arguments_of_a_function_ask_again(lake: Path, asked: list[str]) -> None:
    for kind in (pa.int64(), pa.float64()):
        udf = cumin.udf(lambda value: 2, arguments=[kind], returns=pa.int64(), version="1")
        made(lake, sql="SELECT twice(user_id) AS n FROM events", params={}, udfs={"twice": udf})
    assert len(asked) == 2


@pytest.mark.parametrize("reading", [{"delimiter": ";"}, {"format": "json"}])
def test_another_way_to_read_a_file_asks_again(reading: dict[str, str], tmp_path: Path, asked: list[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text('{"a": 1, "b": 2}\n')
    for how in ({}, reading):
        cumin.plan("t", sql="SELECT count(*) AS n FROM t", inputs={"t": cumin.files(path, **how)})
    assert len(asked) == 2


def test_two_tables_with_equal_files_are_two(lake: Path, asked: list[str]) -> None:
    """A hard link is the same file: name, size, times and inode say no more than that."""
    for name in ("a", "b"):
        folder = lake / name / "dt=2026-01-01"
        folder.mkdir(parents=True)
    os.link(_first_file(lake), lake / "a/dt=2026-01-01/x.parquet")
    os.link(_first_file(lake), lake / "b/dt=2026-01-01/x.parquet")
    for name in ("a", "b"):
        cumin.plan("t", sql="SELECT count(*) AS n FROM t", inputs={"t": cumin.hive(lake / name, partition="dt")})
    assert len(asked) == 2


@pytest.mark.parametrize("damage", [b"", b"no seal", None], ids=["empty", "other bytes", "one byte changed"])
def test_a_damaged_entry_is_as_good_as_none(damage: bytes | None, lake: Path, asked: list[str]) -> None:
    first = made(lake)
    (path,) = (Path(os.environ["CUMIN_CACHE"]) / "plans").glob("*.json")
    body = path.read_bytes()
    path.write_bytes(body.replace(b"user_id", b"user_ie", 1) if damage is None else damage)
    plan_cache._known.clear()
    assert made(lake).build_id == first.build_id
    assert len(asked) == 2
    assert path.read_bytes() == body


def test_the_disk_keeps_a_bounded_number(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "_ON_DISK", 4)
    for day in range(1, 9):
        made(lake, params={"since": f"2026-01-{day:02}"})
    assert len(list((Path(os.environ["CUMIN_CACHE"]) / "plans").iterdir())) <= 4


def test_a_refused_query_is_refused_each_time(lake: Path, asked: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(cumin.DeterminismError):
            made(lake, sql="SELECT user_id, random() AS n FROM events", params={})
    assert len(asked) == 2


COMMAND = """
import json, sys
import cumin
plan = cumin.plan("clicks", sql=sys.argv[1], params={"since": "2026-01-05"},
                  inputs={"events": cumin.hive(sys.argv[2], partition={"dt": "date"})})
heavy = [name for name in ("duckdb", "sqlglot", "pyarrow", "pandas", "numpy") if name in sys.modules]
print(json.dumps([plan.build_id, heavy]))
"""


def test_a_process_that_finds_its_plan_imports_neither_engine_nor_parser(lake: Path) -> None:
    def run() -> Any:
        command = [sys.executable, "-c", COMMAND, SQL, str(lake / "events")]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    (first, loaded), (again, left) = run(), run()
    assert "duckdb" in loaded
    assert (again, left) == (first, [])
