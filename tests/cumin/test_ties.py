"""hydra, MLflow, Delta, Iceberg, CSV and JSON: the real libraries, on this machine's disk."""

from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import cumin
from cumin.gc import collect
from cumin.store import Store

FIRST_DAY = date(2026, 1, 1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


# -- tables ---------------------------------------------------------------------------------------


def test_delta_is_read_at_its_version_and_rebuilt_from_it(tmp_path: Path) -> None:
    import deltalake

    uri, store = str(tmp_path / "t"), tmp_path / "store"
    rows = pa.table({"dt": ["a", "a", "b"], "x": [1, 2, 3]})
    deltalake.write_deltalake(uri, rows, partition_by=["dt"])
    sql = "SELECT dt, sum(x) AS s FROM t WHERE dt = 'a' GROUP BY dt"
    first = cumin.build("d", sql=sql, inputs={"t": cumin.delta(uri)}, store=store)
    assert first.to_table().to_pydict() == {"dt": ["a"], "s": [3]}
    assert first.manifest["inputs"][0]["strength"] == "snapshot"
    deltalake.write_deltalake(uri, pa.table({"dt": ["b"], "x": [9]}), mode="append")
    assert cumin.build("d", sql=sql, inputs={"t": cumin.delta(uri)}, store=store).hit  # the query cannot read dt=b
    deltalake.write_deltalake(uri, pa.table({"dt": ["a"], "x": [9]}), mode="append")
    third = cumin.build("d", sql=sql, inputs={"t": cumin.delta(uri)}, store=store)
    assert third.to_table().to_pydict()["s"] == [12]
    assert cumin.build("d", sql=sql, inputs={"t": cumin.delta(uri, version=0)}, store=store).build_id == first.build_id
    from cumin.rebuild import rebuild

    assert rebuild(Store(store), first.build_id).content_id == first.content_id
    with pytest.raises(cumin.InputError, match="cannot be read"):
        cumin.plan("d", sql=sql, inputs={"t": cumin.delta(tmp_path / "nothing")})


def test_delta_by_partitions_of_every_type_is_read_by_its_log(tmp_path: Path) -> None:
    import deltalake

    kinds = {
        "timestamp": (pa.array([0, 1_000_000], pa.timestamp("us")), "p > TIMESTAMP '1970-01-01 00:00:00'"),
        "timestamptz": (pa.array([0, 1_000_000], pa.timestamp("us", "UTC")), "p > TIMESTAMPTZ '1970-01-01 00:00:00+00'"),
        "decimal": (pa.array([Decimal("0.50"), Decimal("10.50")]), "p > 1"),
        "double": (pa.array([0.5, 1.5]), "p > 1"),
        "date": (pa.array([0, 1], pa.date32()), "p > DATE '1970-01-01'"),
        "text": (pa.array(["a/b", "100% = 日"]), "p = '100% = 日'"),
        "encoded": (pa.array(["a b", "a%20b"]), "p = 'a%20b'"),
    }
    for what, (values, condition) in kinds.items():
        path = tmp_path / what
        deltalake.write_deltalake(path, pa.table({"p": values, "v": [1, 2]}), partition_by=["p"])
        whole = cumin.build("d", sql="SELECT v, p FROM t", inputs={"t": cumin.delta(path)}, store=tmp_path / "store")
        rows = {row["v"]: row["p"] for row in whole.to_table().to_pylist()}
        assert rows == dict(zip([1, 2], values.to_pylist(), strict=True)), what
        some = cumin.build(
            "d", sql=f"SELECT v FROM t WHERE {condition}", inputs={"t": cumin.delta(path)}, store=tmp_path / "store"
        )
        assert some.to_table().to_pydict() == {"v": [2]}, what
        assert len(some.manifest["inputs"][0]["partitions"]) == 1, what
    deltalake.write_deltalake(tmp_path / "binary", pa.table({"p": [b"a", b"b"], "v": [1, 2]}), partition_by=["p"])
    with pytest.raises(cumin.InputError, match="partitioned by p, which is binary"):
        cumin.plan("d", sql="SELECT v FROM t", inputs={"t": cumin.delta(tmp_path / "binary")})


def test_files_of_delta_that_are_older_than_a_column_have_null_there(tmp_path: Path) -> None:
    import deltalake

    path = tmp_path / "t"
    deltalake.write_deltalake(path, pa.table({"a": [1]}))
    deltalake.write_deltalake(path, pa.table({"a": [2], "b": [3]}), mode="append", schema_mode="merge")
    ds = cumin.build("d", sql="SELECT a, b FROM t", inputs={"t": cumin.delta(path)}, order_key="a", store=tmp_path / "store")
    assert ds.to_table().to_pydict() == {"a": [1, 2], "b": [None, 3]}


def test_iceberg_is_read_at_its_snapshot_with_deletes_and_new_columns(tmp_path: Path) -> None:
    from pyiceberg.catalog import load_catalog

    properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    catalog = load_catalog("local", **properties)
    catalog.create_namespace("lake")
    table = catalog.create_table("lake.t", schema=pa.schema([("k", pa.int64()), ("x", pa.int64())]))
    source = cumin.iceberg("lake.t", catalog="local", properties=properties)
    with pytest.raises(cumin.InputError, match="no snapshot yet"):
        cumin.plan("i", sql="SELECT * FROM t", inputs={"t": source})
    table.append(pa.table({"k": [1, 2], "x": [10, 20]}))
    store, sql = tmp_path / "store", "SELECT sum(x) AS s FROM t"
    first = cumin.build("i", sql=sql, inputs={"t": source}, store=store)
    assert first.to_table().to_pydict() == {"s": [30]}
    assert cumin.build("i", sql=sql, inputs={"t": source}, store=store).hit
    table.delete("k = 1")
    with table.update_schema() as update:
        from pyiceberg.types import StringType

        update.add_column("note", StringType())
    table.append(pa.table({"k": [3], "x": [5], "note": ["n"]}))
    second = cumin.build("i", sql=sql, inputs={"t": source}, store=store)
    assert second.to_table().to_pydict() == {"s": [25]}
    old = cumin.iceberg(
        "lake.t", catalog="local", properties=properties, snapshot=first.manifest["inputs"][0]["source"]["snapshot"]
    )
    assert cumin.build("i", sql=sql, inputs={"t": old}, store=store).content_id == first.content_id
    catalog.close()


def test_a_partition_of_iceberg_is_built_alone(tmp_path: Path) -> None:
    from pyiceberg.catalog import load_catalog
    from pyiceberg.transforms import IdentityTransform

    properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    catalog = load_catalog("local", **properties)
    catalog.create_namespace("lake")
    schema = pa.schema([("k", pa.int64()), ("dt", pa.date32()), ("x", pa.int64())])
    table = catalog.create_table("lake.t", schema=schema)
    with table.update_spec() as update:
        update.add_field("dt", IdentityTransform(), "day_of")

    def rows(day: int, *xs: int) -> pa.Table:
        return pa.table({"k": list(range(len(xs))), "dt": [date(2026, 1, day)] * len(xs), "x": list(xs)}, schema=schema)

    for day in (1, 2, 3):
        table.append(rows(day, day, 10 * day))
    table.append(pa.table({"k": [9], "dt": pa.array([None], pa.date32()), "x": [7]}, schema=schema))
    source = cumin.iceberg("lake.t", catalog="local", properties=properties)
    sql, store = "SELECT dt, sum(x) AS s FROM t GROUP BY dt", tmp_path / "store"
    values: dict[str, Any] = {"sql": sql, "inputs": {"t": source}, "partition_by": "dt", "lookback": {}, "store": store}
    first = cumin.build("i", **values)
    assert first.partitions == ["dt=2026-01-01", "dt=2026-01-02", "dt=2026-01-03", "dt=__HIVE_DEFAULT_PARTITION__"]
    some = "SELECT count(*) AS n FROM t WHERE dt >= DATE '2026-01-03'"
    before = cumin.plan("n", sql=some, inputs={"t": source})
    assert list(before.state["t"]) == ["dt=2026-01-03"]
    table.append(rows(2, 100))
    assert cumin.plan("n", sql=some, inputs={"t": source}).build_id == before.build_id
    table.delete("k = 1 AND x = 10")  # a row of the first day
    second = cumin.build("i", **values)
    stats = second.manifest["stats"]
    assert (stats["partitions_built"], stats["partitions_reused"]) == (2, 2)
    assert sorted(second.to_table()["s"].to_pylist()) == [1, 7, 33, 122]
    with table.update_schema() as update:
        update.rename_column("x", "y")
    table.append(rows(3, 1000).rename_columns(["k", "dt", "y"]))
    third = cumin.build("i", **{**values, "sql": values["sql"].replace("(x)", "(y)")})
    assert sorted(third.to_table()["s"].to_pylist()) == [1, 7, 122, 1033]
    catalog.close()


@pytest.mark.parametrize("format", ["csv", "tsv", "json"])
def test_text_files_are_read(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"t.{format}"
    lines = {"csv": "a,b\n1,x\n2,y\n", "tsv": "a\tb\n1\tx\n2\ty\n", "json": '{"a": 1, "b": "x"}\n{"a": 2, "b": "y"}\n'}
    path.write_text(lines[format])
    source = cumin.files(tmp_path / "*sv" if format != "json" else path, delimiter="\t" if format == "tsv" else ",")
    ds = cumin.build("x", sql="SELECT * FROM t", inputs={"t": source}, order_key="a", store=tmp_path / "store")
    assert ds.to_table().to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


def test_a_root_with_an_equals_sign_is_no_partition(tmp_path: Path, write_day: Callable[..., Path]) -> None:
    write_day(tmp_path / "env=prod/events", 0)
    ds = cumin.build(
        "x",
        sql="SELECT * FROM t",
        inputs={"t": cumin.hive(tmp_path / "env=prod/events", partition="dt")},
        store=tmp_path / "s",
    )
    assert ds.schema.names == ["event_id", "user_id", "item_id", "amount", "dt"]
    assert set(ds.to_table()["dt"].to_pylist()) == {FIRST_DAY}


# -- hydra ----------------------------------------------------------------------------------------


def test_only_the_resolved_node_enters_the_id(lake: Path, tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from cumin import hydra

    hydra.register()
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/config.yaml").write_text("defaults: [dataset: clicks]\nseed: 1\nday: '2026-01-04'\n")
    (tmp_path / "conf/dataset/clicks.yaml").write_text(
        "defaults: [base]\nname: clicks\n"
        "sql: SELECT user_id, count(*) AS n FROM e WHERE dt >= CAST(:since AS DATE) GROUP BY user_id\n"
        f"params: {{since: '${{day}}'}}\n"
        f"inputs: {{e: {{kind: hive, root: {lake}/events, partition: dt}}}}\nstore: {tmp_path}/store\n"
    )
    try:
        with initialize_config_dir(str(tmp_path / "conf"), version_base=None):
            first = hydra.build(compose("config").dataset)
            assert hydra.build(compose("config", ["seed=2"]).dataset).hit
            assert hydra.build(compose("config", ["dataset.params.since='2026-01-04'"]).dataset).hit
            assert hydra.build(compose("config", ["day='2026-01-05'"]).dataset).build_id != first.build_id
            with pytest.raises(cumin.ConfigError, match=r"dataset.params.since: the resolver 'now'"):
                hydra.build(compose("config", ["dataset.params.since='${now:%Y-%m-%d}'"]).dataset)
            with pytest.raises(cumin.ConfigError, match="does not resolve"):
                hydra.build(compose("config", ["dataset.name=???"]).dataset)
    finally:
        GlobalHydra.instance().clear()


# -- MLflow ---------------------------------------------------------------------------------------


@pytest.fixture
def tracking(tmp_path: Path) -> Iterator[str]:
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = mlflow.MlflowClient()
    mlflow.set_experiment(experiment_id=client.create_experiment("e", artifact_location=f"file://{tmp_path}/artifacts"))
    yield uri
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def test_a_registered_model_leads_back_to_query_and_inputs(recipe: dict[str, Any], tracking: str, capsys: Any) -> None:
    import mlflow

    from cumin import mlflow as ties
    from cumin.cli import main

    ds = cumin.build("clicks", **recipe)
    with pytest.raises(cumin.StoreError, match="No MLflow run is active"):
        ties.log_input(ds)
    with mlflow.start_run() as run:
        ties.log_input(ds, context="training")
    logged = mlflow.get_run(run.info.run_id)
    assert logged.inputs.dataset_inputs[0].dataset.digest == ds.content_id
    assert logged.data.tags["cumin.build_id"] == ds.build_id
    client = mlflow.MlflowClient()
    client.create_registered_model("fm")
    client.create_model_version("fm", source=f"{logged.info.artifact_uri}/model", run_id=run.info.run_id)
    code = main(["lineage", "--mlflow", run.info.run_id, "--tracking-uri", tracking, "--store", str(recipe["store"])])
    printed = capsys.readouterr().out
    assert code == 0
    assert [line.strip().split("  ")[0] for line in printed.splitlines()] == [
        "fm version 1",
        f"MLflow run {logged.info.run_name}",
        "clicks@v1",
        "lake.events",
    ]
    with pytest.raises(cumin.NotFoundError):
        ties.lineage("0" * 32, uri=tracking)
    source = ties.CuminSource.from_dict({"store": str(recipe["store"]), "build_id": ds.build_id})
    assert source.load().content_id == ds.content_id


def test_gc_keeps_what_a_run_names_and_stops_where_it_cannot_ask(
    recipe: dict[str, Any], tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from cumin import mlflow as ties

    first = cumin.build("clicks", **recipe)
    second = cumin.build("clicks", **{**recipe, "salt": "2"})
    with mlflow.start_run() as run:
        ties.log_input(first)
    store = Store(recipe["store"])
    done = collect(store, dry_run=True, keep=1, markers=ties.builds_named)
    assert set(done.kept) == {first.build_id, second.build_id}
    with pytest.raises(cumin.StoreError, match=r"cannot be asked. Nothing was deleted"):
        collect(store, dry_run=False, keep=1)
    mlflow.MlflowClient().delete_run(run.info.run_id)
    assert collect(store, dry_run=True, keep=1, markers=ties.builds_named).marked == [first.build_id]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(cumin.StoreError, match="cannot be asked which builds"):
        ties.builds_named("http://127.0.0.1:9")
