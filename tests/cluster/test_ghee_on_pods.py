"""The same pipeline on Pods of a real cluster: results, report, errors, deaths, and nothing left behind."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ghee
import swimmy
from ghee.errors import CancelledError


def batches(count: int) -> list[dict[str, Any]]:
    return [{"id": np.arange(10 * number, 10 * number + 10)} for number in range(count)]


def passed(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def test_a_list_through_two_map_pods_into_a_loop_of_two_pods(place: Any) -> None:
    def where(batch: dict[str, Any]) -> dict[str, Any]:
        import os

        return {"id": batch["id"], "pod": np.full(len(batch["id"]), int(os.environ["SWIMMY_ADDRESS"].replace(".", "")))}

    def train(stream: Any) -> tuple[int, int, list[int], list[int]]:
        from mpi4py import MPI

        ids: list[int] = []
        pods: set[int] = set()
        for batch in stream:
            MPI.COMM_WORLD.allreduce(1)  # a collective at every step
            ids += map(int, batch["id"])
            pods |= set(map(int, batch["pod"]))
        print(f"rank {ghee.rank()} has seen {len(ids)} rows")
        return ghee.rank(), ghee.size(), ids, sorted(pods)

    pipeline = ghee.read(batches(40)).map(where, replicas=2, cpus="50m").loop(train, replicas=2, cpus="50m")
    run = ghee.run(pipeline, on=place.on())
    first, second = run.results["train"]
    assert (first[:2], second[:2]) == ((0, 2), (1, 2))
    assert len(first[2]) == len(second[2]) == 200
    assert Counter(first[2] + second[2]) == Counter(range(400))
    assert len(set(first[3] + second[3])) == 2  # both map Pods had work
    assert run.report.balanced
    assert run.report.rows_read == 400
    assert "rank 1 has seen 200 rows" in run.logs("train")["train-1"]
    # one Job, Secret, list and watch for each of driver, two maps and loop; a port-forward is tried until the agent listens
    asked = {name: count for name, count in run.requests.items() if name != "forward port"}
    assert sum(asked.values()) < 30, asked
    assert set(run.starts) == {"where 0", "where 1", "train 0"}
    assert all(set(parts) == {"scheduling", "agent", "MPI", "import"} for parts in run.starts.values())


def test_while_a_pod_fits_on_no_machine_the_run_says_so(place: Any) -> None:
    lines: list[str] = []
    seen = threading.Event()

    def watch(line: str) -> None:
        lines.append(line)
        if "waiting for train 0" in line and "Insufficient cpu" in line:
            seen.set()

    def train(stream: Any) -> None: ...

    settings = place.on()
    pods = {name: value for name, value in settings.pods.items() if name != "cpus"}
    on = dataclasses.replace(settings, pods=pods, driver={"cpus": "50m"})
    pipeline = ghee.read(batches(2)).map(passed, cpus="50m").loop(train, cpus=1000)
    run = ghee.run(pipeline, on=on, wait=False)
    run._line = watch
    assert seen.wait(120), lines
    run.cancel()


def test_the_users_own_exception_comes_back_with_its_line(place: Any) -> None:
    def train(stream: Any) -> None:
        for batch in stream:
            if 20 in batch["id"]:
                raise KeyError("seven")

    with pytest.raises(KeyError, match="seven") as caught:
        ghee.run(ghee.read(batches(10)).map(passed).loop(train), on=place.on())
    notes = "\n".join(caught.value.__notes__)
    assert 'raise KeyError("seven")' in notes
    assert "stage 'train', rank 0" in notes
    assert "in train" in str(caught.value.__cause__)


def test_a_list_that_is_written_to_comes_home(place: Any) -> None:
    out: list[Any] = []
    run = ghee.run(ghee.read(batches(5)).map(lambda batch: {"id": batch["id"] * 2}, name="twice").write(out), on=place.on())
    assert run.result is out
    assert Counter(int(i) for batch in out for i in batch["id"]) == Counter(range(0, 100, 2))


def test_a_map_pod_that_is_deleted_costs_no_row(place: Any) -> None:
    """The loop waits after its third batch until the map's Pod was deleted; what was lost is made again."""

    def slow(batch: dict[str, Any]) -> dict[str, Any]:
        import time

        time.sleep(0.1)  # the work of preprocessing
        return batch

    def train(stream: Any) -> list[int]:
        ids: list[int] = []
        for number, batch in enumerate(stream):
            if number == 3:
                print("delete it now")
            ids += map(int, batch["id"])
        return ids

    deleted: list[str] = []

    def watch(line: str) -> None:
        if "delete it now" in line and not deleted:
            name = place.pods("-slow-")[0]["metadata"]["name"]
            deleted.append(name)
            place.delete_pod(name)

    pipeline = ghee.read(batches(150)).map(slow, replicas=2, cpus="50m").loop(train, cpus="50m")
    run = ghee.run(pipeline, on=place.on(), wait=False)
    run._line = watch
    assert Counter(run.result) == Counter(range(1500))
    assert deleted, "nothing was deleted"
    assert run.report.balanced
    assert len(run.report.restarts) == 1


def test_a_loop_pod_that_is_deleted_lets_the_run_begin_again(place: Any) -> None:
    def train(stream: Any) -> list[int]:
        import time

        ids: list[int] = []
        for number, batch in enumerate(stream):
            if number == 3:
                print("delete it now", flush=True)
            time.sleep(0.1)  # the work of training
            ids += map(int, batch["id"])
        return ids

    deleted: list[str] = []

    def watch(line: str) -> None:
        if "delete it now" in line and not deleted:
            name = place.pods("-train-")[0]["metadata"]["name"]
            deleted.append(name)
            place.delete_pod(name)

    run = ghee.run(ghee.read(batches(60)).map(passed, cpus="50m").loop(train, cpus="50m"), on=place.on(), wait=False)
    run._line = watch
    assert Counter(run.result) == Counter(range(600))
    assert deleted, "nothing was deleted"
    assert "begun again" in run.report.restarts[0]


def test_a_driver_pod_that_is_deleted_ends_the_run_and_leaves_nothing(place: Any) -> None:
    def train(stream: Any) -> None:
        for _ in stream:
            print("one batch", flush=True)
            signal.pause()

    def watch(line: str) -> None:
        if "one batch" in line:
            driver = next(p for p in place.pods(run.id) if p["metadata"]["name"].startswith(f"{run.id}-0"))
            place.delete_pod(driver["metadata"]["name"])

    run = ghee.run(ghee.read(batches(10)).map(passed).loop(train), on=place.on(), wait=False)
    run._line = watch
    with pytest.raises(swimmy.errors.SwimmyError):
        _ = run.result  # the fixture waits until the cluster is empty


def test_cancel_leaves_nothing(place: Any) -> None:
    def train(stream: Any) -> None:
        for _ in stream:
            print("one batch", flush=True)
            signal.pause()

    seen = threading.Event()
    run = ghee.run(ghee.read(batches(10)).map(passed).loop(train), on=place.on(), wait=False)
    run._line = lambda line: seen.set() if "one batch" in line else None
    assert seen.wait(120)
    run.cancel()
    with pytest.raises(CancelledError):
        _ = run.result  # the fixture waits until the cluster is empty


def test_a_client_that_is_killed_leaves_nothing(place: Any, tmp_path: Path) -> None:
    """`kill -9` of the user's process: driver and stages end by themselves within the lease."""
    program = write_program(place, tmp_path, "print('one batch', flush=True)", "signal.pause()")
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("one batch" in line for line in process.stdout)
        process.kill()


def write_program(place: Any, folder: Path, *lines: str, end: str = "") -> Path:
    """A user's program whose loop does this with each batch."""
    body = "\n".join(f"        {line}" for line in lines)
    on = place.on()
    program = folder / "program.py"
    program.write_text(
        f"import ghee, signal\nseen = 0\ndef train(stream):\n    seen = 0\n    for batch in stream:\n{body}\n"
        f"    return seen\n"
        f"on = ghee.Kubernetes(image={on.image!r}, kubeconfig={on.kubeconfig!r}, namespace={on.namespace!r},\n"
        f"                     pods={on.pods!r})\n"
        f"run = ghee.run(ghee.read([{{'x': [1, 2]}}] * 9).map(lambda batch: batch).loop(train), on=on{end})\n"
        "print(run.id, flush=True)\n"
    )
    return program


def test_a_detached_run_is_listed_followed_and_cancelled(place: Any, tmp_path: Path, state_folder: Path) -> None:
    program = write_program(place, tmp_path, "seen += len(batch['x'])", end=", detach=True")
    started = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True, timeout=180)
    run = started.stdout.split()[-1]
    options = [f"--kubeconfig={place.kube.kubeconfig}", f"--namespace={place.on().namespace}"]

    def command(*arguments: str) -> str:
        asked = [sys.executable, "-m", "ghee.cli", *arguments, *options]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=180)
        return done.stdout + done.stderr

    assert run in command("ps")
    assert "train returned 18" in command("attach", run)
    assert "no run" in command("cancel", run)  # its result was fetched, and with that it is gone
    again = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True, timeout=180)
    assert "is cancelled" in command("cancel", again.stdout.split()[-1])
