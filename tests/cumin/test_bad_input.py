"""What the caller, the disk and the lake may do wrong: a clear error or the right result, and a whole store."""

import json
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cumin
from cumin.inputs.files import FileTable
from cumin.store import Store
from cumin.verify import verify

FIRST_DAY = date(2026, 1, 1)


def build(recipe: dict[str, Any], **more: Any) -> cumin.Dataset:
    return cumin.build("clicks", **{**recipe, **more})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sql": "SELEC 1"}, "does not parse|one SELECT"),
        ({"sql": "SELECT FROM WHERE"}, "does not parse"),
        ({"sql": "SELECT 1; SELECT 2"}, "got 2 statements \\(after line 1, column 9\\)"),
        ({"sql": ""}, "got 0 statements"),
        ({"sql": "DROP TABLE lake.events"}, "got DROP"),
        ({"sql": "CREATE TABLE x AS SELECT 1"}, "got CREATE"),
        ({"sql": "COPY lake.events TO 'x'"}, "one SELECT; got COPY"),
        ({"sql": "ATTACH 'x'"}, "one SELECT; got"),
        ({"sql": "SELECT nothing FROM lake.events"}, 'Referenced column "nothing" not found'),
        ({"sql": "SELECT * FROM lake.other, lake.events"}, "reads the table 'lake.other', which is not declared"),
        ({"sql": "SELECT 1 AS x"}, "the query does not read it"),
        ({"sql": "no/such/file.sql"}, "cannot be read"),
        ({"params": {}}, ":since at line 1, column 64 is not a parameter"),
        ({"params": {"since": FIRST_DAY, "more": 1}}, "'more' is declared and not used"),
        ({"params": {"since": 5}}, "does not bind"),
        ({"partition_by": "day"}, "partition_by names 'day', which the query does not give. Columns: dt, user_id, n"),
        (
            {"inputs": {"lake.events": cumin.hive("/nowhere", partition="dt")}},
            "'lake.events': /nowhere has no folder dt=",
        ),
        ({"inputs": {"lake.events": "lake/events"}}, "write cumin.files, hive, delta"),
        ({"lookback": {"lake.users": -1}}, "lookback names 'lake.users'"),
    ],
)
def test_bad_input_is_a_clear_error_and_leaves_no_store(
    recipe: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    if "params" not in change and "sql" in change:
        change = {**change, "params": {}}
    with pytest.raises(cumin.RecipeError, match=message):
        build(recipe, **change)
    assert not Path(recipe["store"]).exists()


def test_tables_and_columns_that_differ_only_in_case(lake: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    inputs = {name: cumin.hive(lake / "events", partition="dt") for name in ("lake.events", "Lake.Events")}
    with pytest.raises(cumin.ConfigError, match="differ only in case"):
        build(recipe, inputs=inputs)
    pq.write_table(pa.table({"a": [1], "A": [2]}), tmp_path / "twice.parquet")
    with pytest.raises(cumin.InputError, match="differ only in case"):
        cumin.plan("x", sql="SELECT * FROM t", inputs={"t": cumin.files(tmp_path / "twice.parquet")})
    ids = []
    for column in ("a", "A"):
        pq.write_table(pa.table({column: [1]}), tmp_path / f"{column}_.parquet")
        ds = cumin.build("x", sql="SELECT * FROM t", inputs={"t": cumin.files(tmp_path / f"{column}_.parquet")},
                         store=tmp_path / "store")  # fmt: skip
        ids.append((ds.build_id, ds.content_id, tuple(ds.schema.names)))
    assert len(set(ids)) == 2
    assert [names for _, _, names in ids] == [("a",), ("A",)]


def test_a_store_of_a_newer_format_is_left_alone(recipe: dict[str, Any]) -> None:
    store = Path(recipe["store"])
    store.mkdir()
    (store / "cumin.json").write_text('{"format": 2}')
    with pytest.raises(cumin.StoreFormatError, match="Update cumin"):
        build(recipe)
    (store / "cumin.json").write_text("{")
    with pytest.raises(cumin.CorruptError):
        build(recipe)
    assert [each.name for each in store.iterdir()] == ["cumin.json"]


ON_A_FULL_DISK = """
import json, os, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
import cumin
from cumin.verify import verify
disk, elsewhere = sys.argv[1:]
pq.write_table(pa.table({"a": np.random.default_rng(0).integers(0, 10**12, 200_000)}), elsewhere + "/a.parquet")
values = {"inputs": {"t": cumin.files(elsewhere + "/a.parquet")}, "store": disk + "/store"}
first = cumin.build("x", sql="SELECT max(a) AS a FROM t", **values)
said = []
for sql in ("SELECT a FROM t", "SELECT a + 1 AS a FROM t ORDER BY a"):  # full while rows come, and after all were sorted
    try:
        cumin.build("x", sql=sql, **values)
    except cumin.CuminError as error:
        said.append([type(error).__name__, str(error)])
store = cumin.open_store(values["store"])
left = os.listdir(disk + "/store/staging")
hit = cumin.build("x", sql="SELECT max(a) AS a FROM t", **values).hit
whole = verify(store, None, level="bytes") == [] and list(store.builds()) == [first.build_id]
print(json.dumps({"said": said, "whole": whole, "left": left, "hit": hit}))
"""


def test_a_full_disk_leaves_the_store_whole(tmp_path: Path) -> None:
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    disk.mkdir()
    elsewhere.mkdir()
    # A disk of 400 kB, seen by this command alone and gone with it.
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=400k none "$1" && shift && exec "$@"', "sh", str(disk)]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here: run as root, or allow user namespaces (unshare -rm true)")
    command = [*mounted, sys.executable, "-c", ON_A_FULL_DISK, str(disk), str(elsewhere)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [name for name, _ in found["said"]] == ["StoreError", "StoreError"]
    assert all("No space left on device" in text and "not published" in text for _, text in found["said"])
    assert (found["whole"], found["left"], found["hit"]) == (True, [], True)


def test_a_store_that_cannot_be_used_says_so(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the store's folder should be")
    with pytest.raises(cumin.StoreError, match="cannot be read"):
        build(recipe)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/leases").write_text("in the way of a folder")
    with pytest.raises(cumin.StoreError, match="cannot be written"):
        build(recipe, store=tmp_path / "other")


@pytest.mark.parametrize("how", ["missing", "short"])
@pytest.mark.parametrize("which", ["whole", "by partition"])
def test_a_hit_whose_files_are_damaged_is_built_again(recipe: dict[str, Any], tmp_path: Path, how: str, which: str) -> None:
    if which == "by partition":
        recipe |= {"lookback": {}}
    first = build(recipe)
    path = Path(first.files()[0])
    whole = path.read_bytes()
    path.chmod(0o644)
    path.unlink() if how == "missing" else path.write_bytes(whole[:-10])
    again = build(recipe)
    assert (again.content_id, again.hit) == (first.content_id, False)
    assert path.read_bytes() == whole
    assert verify(Store(recipe["store"]), None, level="bytes") == []
    assert build(recipe).hit


@pytest.mark.parametrize("value", ["not a date", ["2026-01-05", "not a date"]])
def test_a_parameter_of_the_wrong_type_is_named(recipe: dict[str, Any], value: Any) -> None:
    test = ">= :since" if isinstance(value, str) else "IN :since"
    sql = f"SELECT dt, user_id, count(*) AS n FROM lake.events WHERE dt {test} GROUP BY dt, user_id"
    with pytest.raises(cumin.ParameterError, match="'since' is the text 'not a date'"):
        build(recipe, sql=sql, params={"since": value})
    assert list(Store(recipe["store"]).builds()) == []


def test_an_input_that_goes_away_while_it_is_read_is_named(
    recipe: dict[str, Any], lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lake / f"events/dt={FIRST_DAY + timedelta(5)}/part-0.parquet"
    check = FileTable.check

    def checked(table: FileTable, parts: Any) -> None:
        check(table, parts)
        path.unlink()

    monkeypatch.setattr(FileTable, "check", checked)
    with pytest.raises(cumin.InputMovedError, match=r"dt=2026-01-06/part-0\.parquet"):
        build(recipe)


def test_an_unreadable_input_file_is_named(recipe: dict[str, Any], lake: Path) -> None:
    path = lake / f"events/dt={FIRST_DAY}/part-0.parquet"
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(cumin.InputError, match=r"part-0.parquet cannot be read as parquet"):
        build(recipe)


@pytest.mark.parametrize("engine_reads", ["itself", "through Arrow"])
def test_a_later_file_that_lacks_a_column_is_named(tmp_path: Path, engine_reads: str) -> None:
    root = tmp_path / ("lake" if engine_reads == "itself" else "x=1")  # DuckDB reads no path with a foreign name=value
    for value, columns in ((1, {"a": [1], "b": [2]}), (2, {"A": [5]}), (3, {"b": [1], "a": [2], "more": [3]})):
        (root / f"t/p={value}").mkdir(parents=True)
        pq.write_table(pa.table(columns), root / f"t/p={value}/f.parquet")
    values: dict[str, Any] = {"inputs": {"t": cumin.hive(root / "t", partition="p", key="a")}, "store": tmp_path / "store"}
    for sql in ("SELECT a, b FROM t", "SELECT a, row_number() OVER (ORDER BY a) AS n FROM t"):
        with pytest.raises(
            cumin.InputError, match=r"p=2/f.parquet lacks b, which the table's first file .*p=1/f.parquet has"
        ):
            cumin.build("x", sql=sql, **values)
    assert cumin.build("x", sql="SELECT a, b FROM t WHERE p <> 2", **values).to_table().num_rows == 2


def test_an_input_file_that_vanishes_before_it_is_read_is_named(recipe: dict[str, Any], lake: Path) -> None:
    path = lake / f"events/dt={FIRST_DAY + timedelta(5)}/part-0.parquet"

    def vanish(point: str) -> None:
        if point == "planned":
            path.unlink()

    with pytest.raises(cumin.InputError, match=r"dt=2026-01-06/part-0.parquet cannot be read"):
        cumin.build("clicks", **{**recipe, "store": Store(recipe["store"], reach=vanish)})
    assert list(Store(recipe["store"]).builds()) == []


def test_types_of_partitions_can_be_fixed(tmp_path: Path) -> None:
    for value in ("1", "2"):
        (tmp_path / f"t/p={value}").mkdir(parents=True)
        pq.write_table(pa.table({"a": [int(value)]}), tmp_path / f"t/p={value}/x.parquet")
    for kind, wanted in ((None, pa.int64()), ("string", pa.string())):
        made = cumin.plan("x", sql="SELECT * FROM t", inputs={"t": cumin.hive(tmp_path / "t", partition={"p": kind})})
        assert made.schema.field("p").type == wanted
    with pytest.raises(cumin.RecipeError, match="is no date32"):
        cumin.plan("x", sql="SELECT * FROM t WHERE p = DATE '2026-01-01'",
                   inputs={"t": cumin.hive(tmp_path / "t", partition={"p": "date"})})  # fmt: skip


def test_a_folder_is_no_file(lake: Path) -> None:
    with pytest.raises(cumin.InputError, match=r"lake is a folder\. Name its files"):
        cumin.plan("t", sql="SELECT 1 AS a FROM t", inputs={"t": cumin.files(lake)})
    with pytest.raises(cumin.InputError, match="s3://bucket names no file"):
        cumin.plan("t", sql="SELECT 1 AS a FROM t", inputs={"t": cumin.files("s3://bucket")})
    with pytest.raises(cumin.ConfigError, match="allowed: a path, a pattern, or a list"):
        cumin.files({"a": "b"})  # type: ignore[arg-type]
