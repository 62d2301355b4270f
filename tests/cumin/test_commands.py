"""The commands, from the shell's side: what they print, what they return, what they leave."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

import cumin
from cumin.cli import main
from cumin.gc import collect
from cumin.lineage import Graph, Vertex, svg
from cumin.store import Store
from cumin.verify import verify

FIRST_DAY = date(2026, 1, 1)


class Shell:
    """Runs a command in this process and keeps what it printed."""

    def __init__(self, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.store, self._capsys = store, capsys

    def __call__(self, *arguments: object, code: int = 0) -> str:
        assert main([*map(str, arguments), "--store", str(self.store)]) == code, self._capsys.readouterr()
        out, err = self._capsys.readouterr()
        return out + err

    def json(self, *arguments: object, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path / "store", capsys)


@pytest.fixture
def file(lake: Path) -> Path:
    """A dataset file beside the lake."""
    path = lake / "clicks.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "clicks",
                "sql": "SELECT dt, user_id, count(*) AS n FROM lake.events WHERE dt >= :since GROUP BY dt, user_id",
                "params": {"since": FIRST_DAY + timedelta(3)},
                "inputs": {"lake.events": {"kind": "hive", "root": "events", "partition": "dt"}},
                "engine": {"kind": "duckdb", "threads": 2},
                "partition_by": "dt",
                "order_key": "user_id",
            }
        )
    )
    return path


def test_from_plan_to_lineage(shell: Shell, file: Path, write_day: Callable[..., Path], tmp_path: Path) -> None:
    assert "it was never built" in shell("plan", file)
    assert "version     clicks@v1" in shell("build", file)
    assert "nothing to run, it is there" in shell("plan", file)
    assert shell.json("build", file)["hit"] is True
    write_day(file.parent / "events", 5, seed=3)
    plan = shell("plan", file)
    assert "differs from clicks@v1" in plan
    assert "1 changed: dt=2026-01-06" in plan
    assert "dt=2026-01-06: part-0.parquet changed" in plan
    built = shell.json("build", file)
    assert (built["version"], built["hit"]) == (2, False)
    why = shell("why", "clicks@v1", "clicks@v2")
    assert "inputs.lake.events.partitions" in why
    assert "content: c1:" in why
    diff = shell.json("diff", "clicks@v1", "clicks@v2", "--rows", "--key", "dt,user_id")
    assert diff["partitions_changed"] == ["dt=2026-01-06"]
    assert diff["columns_changed"] in (["n"], ["user_id", "n"])
    assert sum(diff["row_changes"][kind]["count"] for kind in ("added", "gone", "changed")) > 0
    shell("build", file, "-p", "since=2026-01-08")
    why = shell("why", "clicks@v1", "clicks@v3")
    assert "params.since: 2026-01-04 -> 2026-01-08" in why
    assert "no longer read: dt=2026-01-04" in why
    assert [each["version"] for each in shell.json("log", "clicks")] == [1, 2, 3]
    assert shell("log").strip() == "clicks"
    shown = shell("show", "clicks@v1")
    assert "SELECT dt, user_id, count(*) AS n" in shown
    assert shell.json("show", built["build_id"][:20])["build_id"] == built["build_id"]


def test_lineage_up_down_openlineage_and_drawing(shell: Shell, file: Path, tmp_path: Path) -> None:
    shell("build", file)
    first = cumin.load("clicks", store=shell.store)
    cumin.build(
        "totals",
        sql="SELECT user_id, sum(n) AS n FROM clicks GROUP BY user_id",
        inputs={"clicks": first},
        store=shell.store,
    )
    assert shell("lineage", "totals").splitlines()[0].startswith("totals@v1")
    assert shell("lineage", "totals").count("\n") == 3
    down = shell.json("lineage", "clicks", "--down")
    assert [each["title"] for each in down["vertices"]] == ["clicks@v1", "totals@v1"]
    event = shell.json("lineage", "totals", "--openlineage")
    assert event["outputs"][0]["facets"]["version"]["datasetVersion"].startswith("c1:")
    assert event["job"]["facets"]["sql"]["query"].startswith("SELECT user_id")
    drawing = tmp_path / "lineage.svg"
    shell("lineage", "totals", "--svg", drawing)
    import xml.etree.ElementTree as ET

    root = ET.parse(drawing).getroot()
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"totals@v1", "clicks@v1", "lake.events"} <= set(texts)
    assert len([p for p in root.iter("{http://www.w3.org/2000/svg}path") if p.get("marker-end")]) == 2


def test_what_is_drawn_fits_its_box() -> None:
    import xml.etree.ElementTree as ET

    drawn = Graph()
    long = drawn.add(
        Vertex("a", "input", "lake." + "W" * 60, ["hive by stat", "1000 partitions, " + "9" * 60 + " files"], 1)
    )
    made = drawn.add(Vertex("b", "build", "a_name_of_more_than_thirty_letters@v123", ["3 rows", "b1:" + "0" * 80]))
    drawn.connect(long.key, made.key)
    root = ET.fromstring(svg(drawn))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [each for each in root.iter(f"{space}rect") if each.get("rx")]
    texts = list(root.iter(f"{space}text"))
    assert len(texts) == 6
    for index, each in enumerate(texts):  # 0.7 of its size is as wide as a bold letter is on average in DejaVu Sans
        box, size = boxes[index // 3], int(each.get("font-size") or 11)
        right = float(each.get("x") or 0) + len(each.text or "") * size * 0.7 * (0.9 if size == 11 else 1)
        assert right <= float(box.get("x") or 0) + float(box.get("width") or 0)
    assert (texts[3].text or "").endswith("@v123")


def without_empty(value: Any) -> Any:
    """`value` without fields that hold nothing: the client writes those that may be left out."""
    if isinstance(value, dict):
        return {key: kept for key, each in value.items() if (kept := without_empty(each)) not in ({}, [])}
    return [without_empty(each) for each in value] if isinstance(value, list) else value


def test_the_openlineage_event_is_one_of_its_own_client(shell: Shell, file: Path) -> None:
    """Their classes are generated from the published schemas: they take no unknown field and check what they are given."""
    from openlineage.client import event_v2, serde
    from openlineage.client.generated import (
        dataset_version_dataset,
        output_statistics_output_dataset,
        schema_dataset,
        sql_job,
    )

    shell("build", file)
    event = shell.json("lineage", "clicks", "--openlineage")
    facets = {
        "sql": sql_job.SQLJobFacet,
        "schema": schema_dataset.SchemaDatasetFacet,
        "version": dataset_version_dataset.DatasetVersionDatasetFacet,
        "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
    }

    def made(given: dict[str, Any]) -> dict[str, Any]:
        result = {}
        for name, values in given.items():
            known = {key: value for key, value in values.items() if not key.startswith("_")}
            if name == "schema":
                known["fields"] = [schema_dataset.SchemaDatasetFacetFields(**each) for each in known["fields"]]
            result[name] = facets[name](**known, producer=values["_producer"])
        return result

    theirs = event_v2.RunEvent(
        eventTime=event["eventTime"],
        producer=event["producer"],
        run=event_v2.Run(event["run"]["runId"]),
        job=event_v2.Job(event["job"]["namespace"], event["job"]["name"], made(event["job"]["facets"])),
        eventType=event_v2.RunState[event["eventType"]],
        inputs=[event_v2.InputDataset(e["namespace"], e["name"], facets=made(e["facets"])) for e in event["inputs"]],
        outputs=[
            event_v2.OutputDataset(e["namespace"], e["name"], facets=made(e["facets"]), outputFacets=made(e["outputFacets"]))
            for e in event["outputs"]
        ],
    )
    assert without_empty(json.loads(serde.Serde.to_json(theirs))) == without_empty(event)


def test_rebuild_from_the_manifest_alone(shell: Shell, file: Path, write_day: Callable[..., Path], tmp_path: Path) -> None:
    shell("build", file)
    file.unlink()
    assert "built again with the same content" in shell("rebuild", "clicks@v1")
    manifest = next(shell.store.glob("manifests/*/*.json"))
    other = tmp_path / "other"
    assert "built again" in shell("rebuild", manifest, "--into", other)
    assert cumin.load("clicks", store=other).content_id == cumin.load("clicks", store=shell.store).content_id
    write_day(file.parent / "events", 5, seed=3)
    message = shell("rebuild", "clicks@v1", code=2)
    assert "cannot be built again" in message
    assert "dt=2026-01-06: part-0.parquet changed" in message


def test_verify_finds_each_of_a_hundred_bit_flips(shell: Shell, file: Path) -> None:
    shell("build", file)
    first = cumin.load("clicks", store=shell.store)
    cumin.build("rolling", sql="SELECT * FROM clicks", inputs={"clicks": first}, partition_by="dt", store=shell.store,
                lookback={"clicks": 0})  # fmt: skip
    for level in ((), ("--bytes",), ("--rows",)):
        assert "whole" in shell("verify", *level)
    assert "whole, by rebuild" in shell("verify", "clicks", "--rebuild")
    rng = random.Random(0)
    files = sorted(path for path in shell.store.rglob("*") if path.is_file() and path.name != "cumin.json")
    sizes = [path.stat().st_size for path in files]
    missed = []
    for _ in range(100):
        path = rng.choices(files, sizes)[0] if rng.random() < 0.5 else rng.choice(files)  # small files too
        data = bytearray(path.read_bytes())
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        if not verify(Store(shell.store), None, level="bytes"):
            missed.append((path, at, bit))
        data[at] ^= 1 << bit
        path.write_bytes(data)
    assert missed == []
    assert verify(Store(shell.store), None, level="bytes") == []
    victim = Path(first.files()[2])
    victim.unlink()
    assert "is missing" in shell("verify", code=7)
    shell("rebuild", "clicks@v1")  # the order is total, so the same bytes are made again and put back
    assert "whole" in shell("verify", "--bytes")


@pytest.mark.parametrize("wrong", [{"grace_days": -1.0}, {"keep": 0}, {"keep": -2}])
def test_gc_refuses_numbers_that_make_no_sense(wrong: dict[str, Any], shell: Shell) -> None:
    with pytest.raises(cumin.ConfigError, match="allowed: days of 0 or more, and to keep 1 or more"):
        collect(Store(shell.store), dry_run=True, **wrong)


def test_pins_and_names_keep_builds_from_gc(shell: Shell, file: Path) -> None:
    for day in (4, 5, 6):
        shell("build", file, "-p", f"since=2026-01-0{day}")
    ids = [each["build_id"] for each in shell.json("log", "clicks")]
    store, now = Store(shell.store), 1e11  # far in the future: everything is older than any grace
    assert shell.json("gc", "--dry-run")["marked"] == []
    shell("pin", "clicks@v1", "--label", "prod")
    assert "clicks@prod" in shell("pin", "clicks@v1", "--label", "prod")
    assert cumin.load("clicks@prod", store=shell.store).build_id == ids[0]
    planned = collect(store, dry_run=True, keep=1, clock=now)
    assert planned.marked == [ids[1]]
    assert [each for each in store.builds() if each not in ids] == []
    done = collect(store, dry_run=False, keep=1, clock=now)
    assert (done.marked, done.deleted) == ([ids[1]], [])  # a tombstone first
    assert store.entry(ids[1]) is not None
    done = collect(store, dry_run=False, keep=1, clock=now + 8 * 86_400)
    assert done.deleted == [ids[1]]
    assert store.entry(ids[1]) is None
    assert verify(store, None, level="bytes") == []
    shell("unpin", "clicks@prod")
    assert "is not pinned" in shell("unpin", "clicks@prod", code=6)
    shell("pin", "clicks")
    shell("unpin", "clicks")  # by what it was pinned by
    assert "Pins: none" in shell("unpin", "clicks", code=6)
    # A hit takes the tombstone away.
    collect(store, dry_run=False, keep=1, clock=now + 9 * 86_400)
    shell("build", file, "-p", "since=2026-01-04")
    done = collect(store, dry_run=False, clock=now + 99 * 86_400)
    assert ids[0] in done.kept


def test_gc_keeps_what_a_kept_build_was_made_from(shell: Shell, file: Path) -> None:
    shell("build", file)
    first = cumin.load("clicks", store=shell.store)
    cumin.build(
        "totals",
        sql="SELECT user_id, sum(n) AS n FROM clicks GROUP BY user_id",
        inputs={"clicks": first},
        store=shell.store,
    )
    shell("build", file, "-p", "since=2026-01-09")
    assert first.build_id in collect(Store(shell.store), dry_run=True, keep=1).kept


def test_check_says_what_passes_and_proves_it(shell: Shell, file: Path) -> None:
    assert "nothing in the query may vary" in shell("check", file, "--twice")
    values = yaml.safe_load(file.read_text())
    values["sql"] = values["sql"].replace("count(*)", "sum(amount)")
    file.write_text(yaml.safe_dump(values))
    assert "sum() adds up in an order that varies" in shell("check", file, code=3)
    values["determinism"] = {"mode": "tolerant", "digits": 6}
    file.write_text(yaml.safe_dump(values))
    assert "let pass by tolerant" in shell("check", file)
    values |= {"determinism": "decimal", "lookback": {"lake.events": 0}}
    file.write_text(yaml.safe_dump(values))
    assert "7 partitions depend on their look-back only" in shell("check", file, "--locality")


def test_doctor_looks_at_the_file_system(shell: Shell, file: Path) -> None:
    shell("build", file)
    assert all(each["well"] for each in shell.json("doctor"))
    assert list((shell.store / "staging").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"querry": 1}, "'querry' is not known. Allowed: name, sql"),
        ({"sql": None}, "one of 'sql'"),
        ({"inputs": {"lake.events": {"kind": "hive", "root": "events"}}}, "partition"),
        ({"inputs": {"lake.events": {"kind": "table"}}}, "kind 'table' is not known. Allowed: files, hive"),
        ({"inputs": {"lake.events": {"kind": "cumin", "dataset": "x", "like": 1}}}, "like is not known. Allowed: dataset"),
        ({"engine": {"kind": "trino"}}, "'trino' is not known. Allowed: duckdb, spark"),
        ({"engine": {"threads": 0}}, "threads=0"),
        ({"determinism": "loose"}, "'loose' is not known"),
        ({"name": "a b"}, "allowed are letters"),
    ],
)
def test_a_wrong_dataset_file_is_told_and_changes_nothing(
    shell: Shell, file: Path, change: dict[str, Any], message: str
) -> None:
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **change}))
    assert message in shell("build", file, code=2)
    assert message in shell.json("build", file, code=2)["message"]
    assert not shell.store.exists()


def test_parameters_on_the_command_line_have_the_files_types(shell: Shell, file: Path) -> None:
    assert "write a value of the type date" in shell("plan", file, "-p", "since=yesterday", code=2)
    assert "no such parameter. Declared: since" in shell("plan", file, "-p", "until=2026-01-01", code=2)
    assert "write NAME=VALUE" in shell("plan", file, "-p", "since", code=2)


def test_names_that_are_not_there(shell: Shell, file: Path) -> None:
    shell("build", file)
    for spec in ("clacks", "clicks@v9", "clicks@prod", "b1:0000", "c1:0000"):
        assert "Names there: clicks" in shell("show", spec, code=6)
    assert "was never built here" in shell("log", "clacks", code=2)


# -- functions of the caller's --------------------------------------------------------------------

FACTOR = 2


def double(x: int) -> int:
    return x * FACTOR


def other_double(x: int) -> int:
    return x + x


def test_functions_enter_the_id_by_their_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")

    def build(function: Callable[..., Any], version: str | None = None) -> cumin.Dataset:
        udf = cumin.udf(function, arguments=[pa.int64()], returns=pa.int64(), version=version)
        return cumin.build("x", sql="SELECT double(a) AS b FROM t", inputs={"t": cumin.files(tmp_path / "t.parquet")},
                           udfs={"double": udf}, store=tmp_path / "store")  # fmt: skip

    first = build(double)
    assert first.to_table().to_pydict() == {"b": [2, 4]}
    assert build(double).hit
    assert build(other_double).build_id != first.build_id
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert build(double).to_table().to_pydict() == {"b": [3, 6]}
    monkeypatch.setitem(globals(), "FACTOR", object())
    with pytest.raises(cumin.RecipeError, match=r"'FACTOR'.*has no canonical form.*Declare version="):
        build(double)
    with pytest.raises(cumin.RecipeError, match=r"whose code cannot be read. Declare version="):
        build(abs)
    assert build(abs, version="1").to_table().to_pydict() == {"b": [1, 2]}


LOADED = """
import sys
from cumin.cli import main
code = main(sys.argv[2:])
there = [name for name in sys.argv[1].split(",") if name in sys.modules]
sys.exit(f"imported {there}" if there else code)
"""


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        (["log"], "duckdb,fsspec,jinja2,numpy,pandas,pyarrow,rich,sqlglot,yaml"),
        (["plan", "FILE"], "fsspec,jinja2,pandas,pyarrow.dataset,rich,sqlite3"),
    ],
)
def test_a_command_imports_only_what_it_needs(file: Path, tmp_path: Path, command: list[str], unneeded: str) -> None:
    words = [str(file) if word == "FILE" else word for word in command]
    run = [sys.executable, "-c", LOADED, unneeded, *words, "--store", str(tmp_path / "store")]
    done = subprocess.run(run, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_public_names() -> None:
    assert all(hasattr(cumin, name) for name in cumin.__all__)
    with pytest.raises(AttributeError):
        _ = cumin.nothing
