"""Trained, evaluated and predicted through ghee: on this machine's processes once, else in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ghee_models as gm
from ghee_models import prediction
from ghee_models.cli import import_plugin, main
from ghee_models.errors import ConfigError, DataError, TrainingError

CLICKS = {
    "data": {
        "fields": {"user": "user", "item": "item", "tags": "categories", "amount": "numeric"},
        "label": "label",
    },
    "trainer": {"epochs": 3, "batch_size": 128},
    "tracking": {"enabled": False},
}
EVENTS = {
    "data": {"user": "user", "item": "item"},
    "trainer": {"epochs": 3, "batch_size": 128},
    "tracking": {"enabled": False},
}


def override(settings: dict[str, Any], group: str, **values: Any) -> dict[str, Any]:
    return {**settings, group: {**settings[group], **values}}


def read(folder: Path | str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


def test_a_click_model_from_data_to_predictions(clicks: Path, tmp_path: Path) -> None:
    result = gm.train("fm", str(clicks), config={"lr": 0.05}, settings=CLICKS, save_to=tmp_path / "fm", on="inline")
    assert result.rows + 1 < 600  # the hash split has left rows for validation and test
    assert len(result.history) == 3
    assert {"auc", "logloss", "accuracy", "gauc"} <= set(result.metrics)
    done = gm.predict(str(tmp_path / "fm"), str(clicks), out=str(tmp_path / "out"), on="inline")
    assert done.rows == 600
    found = read(tmp_path / "out")
    assert len(found) == 600
    assert set(found[0]) == {"user", "item", "amount", "probability", "values_cut"}
    measured = gm.evaluate(str(tmp_path / "fm"), str(clicks), on="inline")
    assert 0.5 < measured["auc"] <= 1


def test_values_of_lists_longer_than_any_of_training_are_counted(clicks: Path, tmp_path: Path) -> None:
    gm.train("logreg", str(clicks), settings=CLICKS, save_to=tmp_path / "m", on="inline")
    rows = pq.read_table(clicks).slice(0, 3)
    tags = pa.array([["t1"] * 7, None, ["t1"]], pa.list_(pa.string()))  # three at most in training
    longer = rows.set_column(rows.schema.get_field_index("tags"), "tags", pa.array(tags.fill_null([])))
    pq.write_table(longer, tmp_path / "longer.parquet")
    (batch,) = gm.predict(str(tmp_path / "m"), str(tmp_path / "longer.parquet"), on="inline")
    assert batch.column("values_cut").to_pylist() == [4, 0, 0]


def test_predictions_are_made_while_they_are_taken(clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gm.train("logreg", str(clicks), settings=CLICKS, save_to=tmp_path / "m", on="inline")
    made: list[int] = []
    call = prediction.Predict.__call__
    monkeypatch.setattr(prediction.Predict, "__call__", lambda self, given: made.append(1) or call(self, given))
    batches = gm.predict(str(tmp_path / "m"), str(clicks), batch_size=2, on="inline")
    assert not made  # nobody has asked yet
    assert next(batches).num_rows == 2
    batches.close()  # and its threads end: the fixture looks
    assert 0 < len(made) < 150, "most of the 300 batches are never made"
    assert sum(batch.num_rows for batch in gm.predict(str(tmp_path / "m"), str(clicks), batch_size=2, on="inline")) == 600


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_same_on_processes_of_this_machine_with_several_replicas(clicks: Path, tmp_path: Path) -> None:
    """With a model from a file that the processes cannot find: its code travels with it."""
    import_plugin(str(Path(__file__).with_name("plugin_fwfm.py")))
    given = override(CLICKS, "trainer", preprocess_replicas=2, epochs=2)
    here = gm.train("fwfm", str(clicks), settings=given, save_to=tmp_path / "a", on="inline")
    there = gm.train("fwfm", str(clicks), settings=given, save_to=tmp_path / "b", on="local")
    assert there.rows == here.rows
    # Batches come in the order of the source, whoever preprocessed them: nothing may differ but rounding
    assert there.metrics == pytest.approx(here.metrics, abs=1e-6)
    gm.predict(str(tmp_path / "b"), str(clicks), out=str(tmp_path / "out"), replicas=2, batch_size=64, on="local")
    alone = gm.predict(str(tmp_path / "b"), str(clicks), on="inline")
    expected = [row for batch in alone for row in batch.to_pylist()]
    key = lambda row: (row["user"], row["item"], row["amount"])  # noqa: E731
    assert sorted(map(str, map(key, read(tmp_path / "out")))) == sorted(map(str, map(key, expected)))
    for one, other in zip(sorted(read(tmp_path / "out"), key=key), sorted(expected, key=key), strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


@pytest.mark.parametrize("id", ["popularity", "ease", "bpr-mf"])
def test_a_recommender_from_data_to_lists_for_new_users_too(id: str, events: Path, tmp_path: Path) -> None:
    result = gm.train(id, str(events), settings=EVENTS, save_to=tmp_path / "m", on="inline")
    assert {"ndcg@10", "recall@10", "coverage@10", "gini@10"} <= set(result.metrics)
    (tmp_path / "users").mkdir()
    pq.write_table(pa.table({"user": [1, 2, 777]}), tmp_path / "users" / "u.parquet")
    rows = [r for b in gm.predict(str(tmp_path / "m"), str(tmp_path / "users"), on="inline") for r in b.to_pylist()]
    assert [row["known"] for row in sorted(rows, key=lambda row: row["user"])] == [True, True, False]
    assert all(len(row["items"]) == 10 for row in rows if not row["known"])


def test_bad_data_is_refused_before_and_while_it_streams(clicks: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"price: the column is missing"):
        gm.train("fm", str(clicks), settings=override(CLICKS, "data", fields={"price": "numeric"}), save_to="m", on="inline")
    # A null in the middle of a file: the sample of first and last row groups cannot see it, the stream does
    rows = pq.read_table(clicks / "a.parquet")
    amount = rows["amount"].to_pylist()
    amount[150] = None
    bad = rows.set_column(rows.schema.get_field_index("amount"), "amount", pa.array(amount, pa.float64()))
    pq.write_table(bad, clicks / "a.parquet", row_group_size=100)
    given = {**CLICKS, "split": {"kind": "given", "valid": str(clicks / "b.parquet")}}
    with pytest.raises(DataError) as caught:
        gm.train("fm", str(clicks / "a.parquet"), settings=given, save_to="m", on="inline")
    violation = caught.value.report.violations[0]
    assert (violation.field, violation.rule, violation.row_group, violation.row) == ("amount", "null", 1, 150)
    assert not Path("m").exists()


def test_predict_data_of_other_types_or_without_a_column_is_refused(clicks: Path, tmp_path: Path) -> None:
    gm.train("logreg", str(clicks), settings=CLICKS, save_to=tmp_path / "m", on="inline")
    rows = pq.read_table(clicks)
    text = rows.set_column(0, "user", rows["user"].cast(pa.string())).drop_columns(["tags"])
    pq.write_table(text, tmp_path / "bad.parquet")
    with pytest.raises(DataError) as caught:
        gm.predict(str(tmp_path / "m"), str(tmp_path / "bad.parquet"), out="out", on="inline")
    rules = {(v.field, v.rule) for v in caught.value.report.violations}
    assert rules == {("user", "the type is not that of training"), ("tags", "the column is missing")}
    assert not Path("out").exists()


def test_what_no_sample_shows_is_found_while_rows_stream(clicks: Path, tmp_path: Path) -> None:
    gm.train("logreg", str(clicks), settings=CLICKS, save_to=tmp_path / "m", on="inline")
    rows = pq.read_table(clicks)
    amount, user = rows["amount"].to_pylist(), rows["user"].to_pylist()
    amount[250], user[350] = float("nan"), None  # neither in the first nor in the last row group
    bad = rows.set_column(rows.schema.get_field_index("amount"), "amount", pa.array(amount))
    bad = bad.set_column(rows.schema.get_field_index("user"), "user", pa.array(user))
    path = str(tmp_path / "middle.parquet")
    pq.write_table(bad, path, row_group_size=100)
    places = {("amount", "not a finite number", 2, 250), ("user", "null", 3, 350)}
    calls = (
        lambda: gm.predict(str(tmp_path / "m"), path, out="out", on="inline"),
        lambda: gm.evaluate(str(tmp_path / "m"), path, on="inline"),
        lambda: gm.train("logreg", path, settings=CLICKS, save_to="again", on="inline"),
    )
    for call in calls:
        with pytest.raises(DataError) as caught:
            call()
        assert {(v.field, v.rule, v.row_group, v.row) for v in caught.value.report.violations} == places
    assert not Path("out").exists()
    assert not Path("again").exists()


def test_empty_data_one_class_and_a_lost_loss_give_clear_errors_and_no_model(clicks: Path, tmp_path: Path) -> None:
    rows = pq.read_table(clicks)
    pq.write_table(rows.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="there is no row"):
        gm.train("fm", str(tmp_path / "empty.parquet"), settings=CLICKS, save_to="m", on="inline")
    ones = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array([1] * rows.num_rows))
    pq.write_table(ones, tmp_path / "ones.parquet")
    with pytest.raises(DataError, match="one class only"):
        gm.train("fm", str(tmp_path / "ones.parquet"), settings=CLICKS, save_to="m", on="inline")
    with pytest.raises(TrainingError, match="not finite"):
        gm.train("fm", str(clicks), config={"lr": 1e30}, settings=CLICKS, save_to="m", on="inline")
    assert not Path("m").exists()


def test_a_model_that_would_be_kept_nowhere_is_refused(clicks: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kept nowhere"):
        gm.train("fm", str(clicks), settings=CLICKS, on="inline")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        gm.train("fm", str(clicks), settings=CLICKS, save_to=tmp_path / "there", on="inline")


def test_the_commands_from_training_to_predictions(events: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [f"data.path={events}", "data.user=user", "data.item=item"]
    train = ["train", "model=ease", *data, "--save-to", "m", "--on", "inline", "--json", "tracking.enabled=false"]
    assert main(train) == 0
    result = json.loads(capsys.readouterr().out)[0]
    assert result["model_uri"].endswith("/m")
    assert main(["evaluate", "--kept", "m", "--data", str(events), "--on", "inline", "--k", "5", "--json"]) == 0
    assert "ndcg@5" in json.loads(capsys.readouterr().out)
    predict = ["predict", "--kept", "m", "--data", str(events), "--out", "recs", "--k", "3", "--on", "inline"]
    assert main(predict) == 0
    assert "600 rows predicted" in capsys.readouterr().out
    assert {len(row["items"]) for row in read("recs")} == {3}
    assert main(["check", *data, "model=ease", "--kept", "m"]) == 0
    capsys.readouterr()
    assert main(["describe", "--kept", "m", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert (kept["id"], kept["schema"]["user"]) == ("ease", "user, int64")
    assert kept["settings"]["model"]["l2"] == 250
    assert kept["metrics"] == result["metrics"]
    assert main(["describe", "--kept", "m"]) == 0
    assert main(["describe", "ease", "--kept", "m"]) == 2
    capsys.readouterr()
    for length in (["--k", "0"], ["--k", "-3"]):
        assert main([*predict, "--overwrite", *length]) == 2
        assert main(["evaluate", "--kept", "m", "--data", str(events), "--on", "inline", *length]) == 2
        assert "it must be" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="output is 'itmes'; allowed: items, vectors"):
        gm.PredictOptions(output="itmes")
    assert main(predict) == 1  # it is there already
    assert "recs" in capsys.readouterr().err
    assert main(["predict", "--kept", "nowhere", "--data", str(events), "--out", "x", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "ConfigError"


def test_the_commands_that_look_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--task", "recommendation", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == gm.list_models(task="recommendation")
    assert main(["describe", "lightgcn"]) == 0
    assert "arXiv:2002.02126" in capsys.readouterr().out
    assert main(["describe", "lightgnc"]) == 2
    assert "Did you mean lightgcn" in capsys.readouterr().err
    assert main(["list", "--task", "cooking"]) == 2
    assert main(["list", "--plugin", "no_such_module"]) == 2
    plugin = str(Path(__file__).with_name("plugin_fwfm.py"))
    capsys.readouterr()
    assert main(["list", "--plugin", plugin]) == 0
    assert "fwfm" in capsys.readouterr().out


@pytest.mark.slow
def test_reproduce_passes_its_gate_on_the_published_split_and_fails_on_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "ease", "popularity", "--on", "inline"]) == 0
    shown = capsys.readouterr().out
    assert "0.3295" in shown
    assert "e488fd4abc5b7202" in shown
    assert main(["reproduce", "ease", "split.seed=2021", "--on", "inline"]) == 1
    assert "not e488fd4abc5b7202" in capsys.readouterr().out
