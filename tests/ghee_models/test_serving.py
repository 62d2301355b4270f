"""A registered model over HTTP, by MLflow's own server; and by MLflow's own loader in a process that knows no ghee."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ghee_models as gm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # the server imports MLflow and torch
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore:.*type hint:UserWarning"
    ),  # MLflow warns of its own code
]
URI = "models:/lists@champion"


@pytest.fixture
def store(events: Path, tmp_path: Path) -> str:
    """A SQLite store with one registered model, trained through ghee."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = {"uri": uri, "register_as": "lists", "alias": "champion", "system_metrics": False}
    settings = {"data": {"user": "user", "item": "item"}, "tracking": tracking}
    assert gm.train("ease", str(events), settings=settings, on="inline").model_uri == "models:/lists/1"
    return uri


@pytest.fixture
def server(store: str, tmp_path: Path) -> Iterator[str]:
    """`mlflow models serve`, as the tutorial starts it; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", URI, "--env-manager", "local"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": store,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # it starts uvicorn by name
    }
    log = tmp_path / "serve.log"
    with log.open("wb") as out:
        started = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        while not _answers(port):
            assert started.poll() is None, log.read_text()
            time.sleep(0.2)  # a server tells by answering, and in no other way
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(address: str, body: dict[str, Any]) -> tuple[int, Any]:
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/invocations", data, kind)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_mlflow_serves_a_registered_model_over_http(server: str) -> None:
    status, found = ask(server, {"dataframe_split": {"columns": ["user"], "data": [[3], [999]]}, "params": {"k": 4}})
    assert status == 200
    known, unknown = found["predictions"]
    assert (known["known"], unknown["known"]) == (True, False)
    assert [len(row["items"]) for row in (known, unknown)] == [4, 4]
    assert known["items"] != unknown["items"]
    status, found = ask(server, {"dataframe_split": {"columns": ["person"], "data": [[3]]}})
    assert status == 400
    assert "missing inputs ['user']" in found["message"]


def test_plain_mlflow_loads_it_where_ghee_models_is_installed(store: str) -> None:
    code = (
        "import mlflow, pandas as pd\n"
        f"model = mlflow.pyfunc.load_model({URI!r})\n"
        "print(model.predict(pd.DataFrame({'user': [3, 999]}), params={'k': 2}).to_json(orient='records'))"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert [(row["user"], row["known"], len(row["items"])) for row in found] == [(3, True, 2), (999, False, 2)]
