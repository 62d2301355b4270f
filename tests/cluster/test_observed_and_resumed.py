"""Of a run on Pods: its metrics and its trace come to the user's machine; what a driver's Pod began is gone on with."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ghee
import swimmy
from ghee.errors import CheckpointError, PipelineError


def batches(count: int) -> list[dict[str, Any]]:
    return [{"id": np.arange(10 * number, 10 * number + 10)} for number in range(count)]


def passed(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


@pytest.fixture
def on(place: Any, tmp_path: Path, request: pytest.FixtureRequest) -> ghee.Kubernetes:
    """Pods that share a folder of this machine."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    claim = place.claim(re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-"), home)
    return dataclasses.replace(place.on(volumes=[claim]), home=str(home))


def test_without_a_shared_folder_resume_and_trace_say_what_is_missing(place: Any, tmp_path: Path) -> None:
    pipeline = ghee.read(batches(1)).map(passed).write([])
    for asked in ({"resume": "ghee-000000"}, {"trace": tmp_path / "trace.json"}):
        with pytest.raises(PipelineError, match=r"needs ghee\.Kubernetes\(home=\.\.\.\): a folder on a volume"):
            ghee.run(pipeline, on=place.on(), **asked)


def test_metrics_and_trace_of_pods_are_given_out_here(on: ghee.Kubernetes, tmp_path: Path) -> None:
    trace = tmp_path / "run.trace.json"
    told: list[str] = []

    def train(stream: Any) -> int:
        import time

        rows = 0
        for batch in stream:
            time.sleep(0.1)  # figures come once a second
            rows += len(batch["id"])
        return rows

    def observe(report: Any) -> None:
        if report.rows_read and not told:
            assert run.metrics is not None
            told.append(urllib.request.urlopen(run.metrics, timeout=10).read().decode())

    pipeline = ghee.read(batches(60)).map(passed, replicas=2, cpus="20m").loop(train, cpus="20m")
    run = ghee.run(pipeline, on=on, wait=False, metrics=0, trace=trace)
    run._update = observe
    assert run.result == 600
    assert f'ghee_rows_read_total{{run="{run.id}"}}' in told[0]
    events = json.loads(trace.read_text())["traceEvents"]
    processes = {event["args"]["name"] for event in events if event.get("name") == "process_name"}
    assert {"passed-0", "passed-1", "train-0"} <= processes, processes
    assert sum(event.get("ph") == "X" for event in events) > 100


def test_a_run_whose_driver_was_killed_goes_on_from_its_checkpoint(place: Any, on: ghee.Kubernetes) -> None:
    def train(stream: Any) -> tuple[int, list[int]]:
        import time

        ids: list[int] = ghee.restored() or []
        began = len(ids)
        for batch in stream:
            ids += map(int, batch["id"])
            if len(ids) % 100 == 0:
                ghee.checkpoint(ids)
                print(f"checkpoint at {len(ids)}", flush=True)
            time.sleep(0.1)  # the work of training
        return began, ids

    def watch(line: str) -> None:
        if "checkpoint at 300" in line:
            driver = next(pod for pod in place.pods(run.id) if pod["metadata"]["name"].startswith(f"{run.id}-0"))
            place.delete_pod(driver["metadata"]["name"])

    pipeline = ghee.read(batches(90)).map(passed, cpus="20m").loop(train, cpus="20m")
    run = ghee.run(pipeline, on=on, wait=False)
    run._line = watch
    with pytest.raises(swimmy.errors.PodLost):
        _ = run.result
    began, ids = ghee.run(pipeline, on=on, resume=run.id).result
    assert began >= 200  # the last checkpoint of which the driver has heard
    assert Counter(ids) == Counter(range(900))
    with pytest.raises(CheckpointError, match=r"there is no run 'ghee-000000' in .*/home/runs; there are: .*ghee-"):
        ghee.run(pipeline, on=on, resume="ghee-000000")
