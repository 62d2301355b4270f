"""The same pipeline on Pods of a real cluster: results, report, errors, deaths, and nothing left behind."""

from __future__ import annotations

import dataclasses
import ipaddress
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_pods import agent_pid

import ghee
import swimmy
from ghee.errors import CancelledError
from swimmy.manifests import RUN_LABEL
from swimmy.protocol import PORT


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
    assert run._handle.requests["create Job"] == 3  # by this process: the stages' Pods start while the driver's does
    first, second = run.results["train"]
    assert (first[:2], second[:2]) == ((0, 2), (1, 2))
    assert len(first[2]) == len(second[2]) == 200
    assert Counter(first[2] + second[2]) == Counter(range(400))
    assert len(set(first[3] + second[3])) == 2  # both map Pods had work
    assert run.report.balanced
    assert run.report.rows_read == 400
    assert "rank 1 has seen 200 rows" in run.logs("train")["train-1"]
    assert set(run.starts) == {"where 0", "where 1", "train 0"}
    assert all(set(parts) == {"scheduling", "agent", "MPI", "import"} for parts in run.starts.values())


def test_requests_do_not_grow_with_the_map_pods(place: Any) -> None:
    """One Job, Secret, list and watch for each of driver, map and loop, however many Pods the map has."""

    def train(stream: Any) -> int:
        return sum(len(batch["id"]) for batch in stream)

    pipeline = ghee.read(batches(40)).map(passed, replicas=6, cpus="20m").loop(train, cpus="20m")
    run = ghee.run(pipeline, on=place.on())
    assert run.result == 400
    assert len(run.report.stage("passed").by_rank) == 6
    # A port-forward to the driver is tried until its agent listens; events are read where Pods start slowly.
    asked = {name: count for name, count in run.requests.items() if name not in ("forward port", "list Events")}
    assert {name: asked[name] for name in ("create Job", "create Secret", "list Pods", "watch Pods")} == {
        "create Job": 3, "create Secret": 3, "list Pods": 3, "watch Pods": 3
    }  # fmt: skip
    assert sum(asked.values()) < 30, asked


def test_while_a_pod_fits_on_no_machine_the_run_says_so(place: Any) -> None:
    lines: list[str] = []
    seen = threading.Event()

    def watch(line: str) -> None:
        lines.append(line)
        if "waiting for train 0" in line and "Insufficient cpu" in line:
            seen.set()

    def train(stream: Any) -> None: ...

    pipeline = ghee.read(batches(2)).map(passed).loop(train, cpus=1000)
    run = ghee.run(pipeline, on=place.on(), wait=False)
    run._line = watch
    assert seen.wait(120), lines
    run.cancel()


def test_where_a_queue_lets_jobs_in_the_stages_come_after_the_driver(place: Any) -> None:
    """Otherwise it might let in the stages and not the driver, for which they would wait."""
    pipeline = ghee.read(batches(2)).map(passed).write([])
    run = ghee.run(pipeline, on=place.on(queue="team"), wait=False)
    while "has not let run" not in (run.waiting or ""):
        assert not run.wait(0.2)
    assert run._handle.requests["create Job"] == 1
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


@pytest.mark.parametrize("stage", ["passed", "train"])
def test_a_pod_that_is_lost_while_the_driver_starts_is_made_again(place: Any, stage: str) -> None:
    """The stages' Pods are made with the driver's: nobody follows them yet."""

    def train(stream: Any) -> list[int]:
        return [int(number) for batch in stream for number in batch["id"]]

    pipeline = ghee.read(batches(20)).map(passed, cpus="50m").loop(train, replicas=2, cpus="50m")
    run = ghee.run(pipeline, on=place.on(), wait=False)
    while not (pods := place.pods(f"{run.id}-{stage}-")):
        pass  # each look is a request
    place.delete_pod(pods[0]["metadata"]["name"])
    assert Counter(number for ids in run.results["train"] for number in ids) == Counter(range(200))
    assert len(run.report.restarts) == 1


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


def test_a_map_stage_grows_by_pods_while_the_trainer_waits(place: Any) -> None:
    """The first Pod is slow, so that the trainer waits for as long as it takes until another is there, which is not."""

    def prepare(batch: dict[str, Any]) -> dict[str, Any]:
        import time

        if ghee.rank() == 0:
            time.sleep(0.3)
        return batch

    def train(stream: Any) -> list[int]:
        return [int(i) for batch in stream for i in batch["id"]]

    pipeline = ghee.read(batches(600)).map(prepare, replicas=ghee.auto(1, 3), cpus="20m").loop(train, cpus="20m")
    run = ghee.run(pipeline, on=place.on())
    assert Counter(run.result) == Counter(range(6000))
    assert run.report.balanced
    assert any(" 1 -> " in change for change in run.report.changes), run.report.changes
    assert sum(rank.batches > 0 for rank in run.report.stage("prepare").by_rank) > 1  # what came later had work


def test_a_pod_listens_for_its_agent_and_for_inboxes_at_its_own_address(place: Any) -> None:
    """Seen from outside, in the Pods of driver, map and loop: nothing at another address, and no further port."""

    def train(stream: Any) -> None:
        for _ in stream:
            print("look now", flush=True)
            signal.pause()

    seen = threading.Event()
    on = dataclasses.replace(place.on(), mpi="none")  # MPI opens ports of its own
    run = ghee.run(ghee.read(batches(10)).map(passed).loop(train), on=on, wait=False)
    run._line = lambda line: seen.set() if "look now" in line else None
    try:
        assert seen.wait(120)
        pods = place.pods(run.id)
        assert len(pods) == 3
        for pod in pods:
            own = pod["status"]["podIP"]
            found = Counter(listeners(place.kube, pod["metadata"]))
            assert found[own, PORT] == found["127.0.0.1", PORT] == 1, found
            inboxes = found - Counter([(own, PORT), ("127.0.0.1", PORT)])
            assert {address for address, _ in inboxes} == {own}, found
            # The driver has one, and one for the reading rank that is a thread of it.
            assert len(inboxes) == (2 if pod["metadata"]["name"].startswith(f"{run.id}-0") else 1), found
    finally:
        run.cancel()


def listeners(kube: Any, metadata: dict[str, Any]) -> list[tuple[str, int]]:
    """The addresses and ports at which something listens in a Pod."""
    index = metadata["annotations"]["batch.kubernetes.io/job-completion-index"]
    pid = agent_pid(kube, metadata["labels"][RUN_LABEL], index)
    lines = [line.split() for line in kube.run_inside("cat", f"/proc/{pid}/net/tcp", f"/proc/{pid}/net/tcp6").splitlines()]
    ends = [line[1].split(":") for line in lines if line[3] == "0A"]
    return [(_address(address), int(port, 16)) for address, port in ends]


def _address(words: str) -> str:
    """An address as the kernel writes it: words of four bytes, each from its end."""
    packed = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    address = ipaddress.ip_address(packed)
    return str(getattr(address, "ipv4_mapped", None) or address)
