"""MLflow for real, on SQLite: runs, versions, aliases, pyfunc; and what must not happen."""

from __future__ import annotations

import contextlib
import shutil
import socket
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

import ghee_models as gm
from ghee_models import artifact, registry, tracking
from ghee_models.errors import ConfigError, PromotionError, TrackingError
from ghee_models.settings import Settings, TrackingConfig
from ghee_models.testing import fitted

# MLflow warns of its own code: deprecations, a type hint of its own evaluation module
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore:.*type hint:UserWarning"
)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with its tables: making them takes MLflow seconds, so it is made once and copied."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def settings(store: str, **more: Any) -> Settings:
    tracked = TrackingConfig(uri=store, experiment="tests", system_metrics=False, **more)
    model, _ = fitted(registry.load_class("popularity"))
    return Settings(data=model.data, tracking=tracked)


def keep(given: Settings, folder: Path, ndcg: float = 0.5) -> str:
    """What rank 0 does at the end of a training."""
    model, _ = fitted(registry.load_class("popularity"))
    handle = tracking.start("popularity", model.config, given, "0123abcd")
    with tracking.RunLog(handle, given) as log:
        log.metrics({"loss": 1.0, "valid_ndcg@10": ndcg}, 0)
        log.dataset("d" * 32, 600)
        saved = artifact.save(model, given, {"ndcg@10": ndcg}, folder)
        uri = log.model(model, saved, {"ndcg@10": ndcg}, {"ghee.model": "popularity"})
    tracking.finish(handle, True)
    return uri


def test_a_model_is_registered_promoted_loaded_and_served_as_pyfunc(store: str, tmp_path: Path) -> None:
    import pandas as pd

    given = settings(store, register_as="items", alias="candidate")
    assert keep(given, tmp_path / "one", 0.3) == "models:/items/1"
    assert keep(given, tmp_path / "two", 0.4) == "models:/items/2"
    with pytest.raises(PromotionError, match=r"ndcg@10 is 0\.3, required is >= 0\.31") as caught:
        tracking.promote("items", 1, "champion", {"ndcg@10": ">=0.31", "auc": ">0"}, store)
    assert "no metric auc" in str(caught.value)
    assert "champion" not in MlflowClient(store).get_registered_model("items").aliases
    assert tracking.promote("items", 2, "champion", {"ndcg@10": ">=0.31"}, store) == "models:/items@champion"
    aliases = MlflowClient(store).get_registered_model("items").aliases
    assert {name: int(version) for name, version in aliases.items()} == {"candidate": 2, "champion": 2}
    for uri in ("models:/items@champion", "items@champion", "models:/items/2", str(tmp_path / "two")):
        assert gm.load(uri, tracking_uri=store).card.id == "popularity"
    loaded = mlflow.pyfunc.load_model("models:/items@champion")
    found = loaded.predict(pd.DataFrame({"user": [3, 999]}), params={"k": 4})
    assert [len(items) for items in found["items"]] == [4, 4]
    assert found["known"].tolist() == [True, False]
    run = MlflowClient(store).get_run(MlflowClient(store).get_model_version("items", "2").run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["ndcg_at_10"] == 0.4
    assert run.data.params["data.unknown"] == "fallback"
    assert run.data.tags["mlflow.source.name"] == "ghee-models train"
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 32


def test_a_rank_that_was_killed_after_registering_registers_once(store: str, tmp_path: Path) -> None:
    given = settings(store, register_as="items", alias="candidate")
    model, _ = fitted(registry.load_class("popularity"))
    handle = tracking.start("popularity", model.config, given, "0123abcd")
    saved = artifact.save(model, given, {}, tmp_path / "m", training="abc")
    assert artifact.is_of(saved, "abc")
    assert not artifact.is_of(saved, "abd")
    for _attempt in range(2):
        with tracking.RunLog(handle, given) as log:
            assert log.model(model, saved, {"ndcg@10": 0.5}, {}) == "models:/items/1"
    assert [version.version for version in MlflowClient(store).search_model_versions("name = 'items'")] == [1]


def test_a_long_parameter_is_not_cut_in_silence(store: str, tmp_path: Path) -> None:
    given = settings(store)
    given.data.content_id = "c" * 9000
    model, _ = fitted(registry.load_class("popularity"))
    handle = tracking.start("popularity", model.config, given, "0123abcd")
    shown = MlflowClient(store).get_run(handle.run_id).data.params["data.content_id"]
    assert shown.endswith("... (see config.yaml)")
    saved = artifact.save(model, given, {}, tmp_path / "m")
    assert "c" * 9000 in (saved / "config.yaml").read_text()


def test_a_training_that_fails_while_it_is_kept_registers_nothing(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(store, register_as="items")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(mlflow.pyfunc, "log_model", full)
    with pytest.raises(TrackingError, match="no space left"):
        keep(given, tmp_path / "one")
    assert MlflowClient(store).search_registered_models() == []


def test_a_server_that_is_away_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"  # bound, not listening: connections are refused
        given = Settings(tracking=TrackingConfig(uri=address))
        with pytest.raises(
            TrackingError, match=f"(?s)Creating a run failed at the tracking server {address}.*enabled=false"
        ):
            tracking.start("popularity", registry.card("popularity").config(), given, "0123abcd")


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@b", "a.b", "50%", "it's", " x", "-x", "x" * 121])
def test_a_name_that_some_part_of_mlflow_refuses_is_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match="register_as"):
        tracking.check_names(TrackingConfig(register_as=name))


@pytest.mark.parametrize("alias", ["latest", "Latest", "v3", "a:b", "1st", ""])
def test_an_alias_that_reads_as_something_else_is_refused(alias: str, store: str) -> None:
    with pytest.raises(ConfigError, match="alias"):
        tracking.promote("items", 1, alias, {}, store)


def test_conditions_versions_and_uris_that_mean_nothing(store: str) -> None:
    for condition in ("high", ">=1e", ">=0.1,", ">=0.1.2", ">=nan"):
        with pytest.raises(ConfigError, match="write it like"):
            tracking.promote("items", 1, "champion", {"auc": condition}, store)
    with pytest.raises(TrackingError, match="Promoting items version 7 failed"):
        tracking.promote("items", 7, "champion", {}, store)
    with pytest.raises(TrackingError, match="Fetching models:/nobody@champion"):
        gm.load("models:/nobody@champion", tracking_uri=store)
    with pytest.raises(ConfigError, match="neither a folder nor"):
        gm.load("nowhere/at/all", tracking_uri=store)


def test_what_the_registry_has_not_is_told_with_what_it_has(store: str, tmp_path: Path) -> None:
    given = settings(store, register_as="items", alias="candidate")
    keep(given, tmp_path / "one", 0.3)
    there = r"items has the versions 1 and the aliases candidate \(version 1\)"
    for uri in ("models:/items@champion", "models:/items/7"):
        with pytest.raises(TrackingError, match=there):
            gm.load(uri, tracking_uri=store)
    with pytest.raises(TrackingError, match=there):
        tracking.promote("items", 7, "champion", {}, store)
    with pytest.raises(TrackingError, match="Registered models are: items"):
        tracking.promote("itms", 1, "champion", {}, store)
    with pytest.raises(PromotionError, match=r"required is < 0\.2"):
        tracking.promote("items", 1, "champion", {"ndcg@10": ">=0.1, <0.2"}, store)


def test_a_data_set_that_another_training_writes_meanwhile_is_found_on_the_second_try(store: str, tmp_path: Path) -> None:
    """Between MLflow's look at the data sets and its own insert, another training inserts the same one."""
    import sqlite3

    from sqlalchemy import event
    from sqlalchemy.orm import Session

    written = 0

    def other(session: Session, *_: object) -> None:
        nonlocal written
        for row in session.new:
            if type(row).__name__ == "SqlDataset" and not written:
                written += 1
                values = (row.experiment_id, row.name, row.digest, row.dataset_source_type, row.dataset_source)
                with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database, database:
                    database.execute(
                        "INSERT INTO datasets (dataset_uuid, experiment_id, name, digest, dataset_source_type,"
                        " dataset_source) VALUES ('other', ?, ?, ?, ?, ?)",
                        values,
                    )

    event.listen(Session, "before_flush", other)
    try:
        uri = keep(settings(store), tmp_path / "m")
    finally:
        event.remove(Session, "before_flush", other)
    assert written == 1
    found = mlflow.MlflowClient(store).get_logged_model(uri.removeprefix("models:/"))
    (run_input,) = MlflowClient(store).get_run(found.source_run_id).inputs.dataset_inputs
    assert run_input.dataset.digest == "d" * 32


@pytest.mark.slow
@pytest.mark.timeout(300)  # two processes that import torch and MLflow
def test_two_trainings_that_write_one_name_get_a_version_each(store: str, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[4]); import test_tracking as t\n"
        "print(t.keep(t.settings(sys.argv[1], register_as='items'), Path(sys.argv[2]), float(sys.argv[3])))"
    )
    here = str(Path(__file__).parent)
    calls = [[sys.executable, "-c", code, store, str(tmp_path / f"m{n}"), f"0.{n}", here] for n in (1, 2)]
    running = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for call in calls]
    try:
        said = [process.communicate(timeout=280)[0].strip().splitlines()[-1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert sorted(said) == ["models:/items/1", "models:/items/2"]
    for n, uri in ((1, said[0]), (2, said[1])):
        version = MlflowClient(store).get_model_version("items", uri.rsplit("/", 1)[1])
        assert MlflowClient(store).get_run(version.run_id).data.metrics["ndcg_at_10"] == n / 10
