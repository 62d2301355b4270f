"""Nothing is left behind, and nobody without the run's key is heard: on the real kubelet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

import swimmy
from swimmy.channel import Caller, Keys, Loop, new_context
from swimmy.manifests import RUN_LABEL
from swimmy.protocol import PORT

pytestmark = pytest.mark.usefixtures("nothing_left")


def wait_forever() -> None:
    import signal

    print("waiting", flush=True)
    signal.pause()


CLIENT = """
import json, sys
import swimmy
given = json.loads(sys.argv[1])
def wait_forever():
    import signal
    signal.pause()
handle = swimmy.submit(
    wait_forever, pods=swimmy.Pods(**given["pods"]),
    cluster=swimmy.Cluster(given["kubeconfig"], namespace=given["namespace"]),
    mpi=swimmy.mpi(1, kind="none"), reach="direct")
print(handle.wait_state(given["state"], timeout=60), handle.id, flush=True)
handle.result()
"""


@pytest.mark.parametrize("state", ["scheduling", "running"])
def test_kill_9_of_the_client(place: Any, kube: Any, state: str) -> None:
    """At "scheduling" no agent runs yet that could keep a lease: the Job's own deadline ends it."""
    pods = {
        "image": place.image, "replicas": 2, "cpus": "50m", "memory": "256Mi", "python": place.python,
        "image_pull_policy": "Never", "grace": 1, "lease": 3, "start_timeout": 4, "schedule_timeout": 2,
    }  # fmt: skip
    if state == "scheduling":
        pods["node_selector"] = {"no": "machine"}
    given = {"pods": pods, "kubeconfig": str(kube.kubeconfig), "namespace": place.cluster.namespace, "state": state}
    with subprocess.Popen([sys.executable, "-c", CLIENT, json.dumps(given)], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        reached, run = client.stdout.readline().split()
        assert reached == state
        os.kill(client.pid, signal.SIGKILL)
    killed = time.monotonic()
    query = f"?labelSelector={RUN_LABEL}={run}"
    namespace = place.cluster.namespace
    assert kube.request("GET", f"/apis/batch/v1/namespaces/{namespace}/jobs{query}")["items"]
    for path in (
        f"/apis/batch/v1/namespaces/{namespace}/jobs",
        f"/api/v1/namespaces/{namespace}/pods",
        f"/api/v1/namespaces/{namespace}/secrets",
    ):
        kube.wait_gone(path + query, 100)
    print(f"gone {time.monotonic() - killed:.1f} s after kill -9 at {state!r}")


def test_the_api_server_dies_and_comes_back_and_the_run_does_not_notice(place: Any, kube: Any) -> None:
    def count() -> int:
        import time

        for number in range(60):
            print(number, flush=True)
            time.sleep(0.1)  # the run's own work
        return 60

    with swimmy.submit(
        count, pods=place.pods(replicas=2), mpi=swimmy.mpi(1), cluster=place.cluster, reach="direct"
    ) as handle:
        assert handle.wait_state("running", timeout=90) == "running"
        kube.kill("kube-apiserver")
        lines = handle.logs(follow=True)
        seen = [next(lines).text for _ in range(40)]  # the agents' channel goes on without it
        assert seen
        kube.start("kube-apiserver")
        kube.wait_for_api()
        assert handle.result(60) == [60, 60]
        assert any(event.entry["kind"] == "watch" and event.entry["trouble"] for event in handle.events)


@pytest.mark.parametrize("whose", ["another client key", "another server key", "no key"])
def test_who_does_not_hold_the_key_is_not_heard(place: Any, kube: Any, whose: str) -> None:
    with swimmy.submit(wait_forever, pods=place.pods(), cluster=place.cluster, reach="direct") as handle:
        assert handle.wait_state("running", timeout=90) == "running"
        address = f"{handle.pods()[0].address}:{PORT}"
        access = handle._record.access
        assert access is not None
        context, loop = new_context(), Loop()
        answers: list[Any] = []
        right = Caller(context, access.client, access.server, address)
        if whose == "another client key":
            wrong = Caller(context, Keys.new(), access.server, address)
        elif whose == "another server key":
            wrong = Caller(context, access.client, Keys.new().public, address)
        else:
            wrong = _plain(context, address)
        try:
            loop.watch(right.socket, right.receive)
            loop.watch(wrong.socket, wrong.receive)
            wrong.call({"op": "stop", "code": 1, "reason": "an intruder"}, then=lambda *answer: answers.append("wrong"))
            until = time.monotonic() + 5
            while time.monotonic() < until:  # long enough for many tries of the wrong one
                arrived: list[Any] = []
                right.call({"op": "hello"}, then=lambda *answer, arrived=arrived: arrived.append(answer))
                while not arrived:
                    loop.turn(0.5)
            assert answers == []
            assert handle.state == "running"
        finally:
            right.close()
            wrong.socket.close(linger=0)
            context.term()


def _plain(context: Any, address: str) -> Any:
    import zmq

    class Plain(Caller):
        def __init__(self) -> None:
            super().__init__(context, Keys.new(), Keys.new().public, address)
            self.socket.close(linger=0)
            self.socket = context.socket(zmq.DEALER)
            self.socket.connect(f"tcp://{address}")

    return Plain()


def test_a_map_pod_that_dies_comes_back_alone(place: Any, kube: Any) -> None:
    """Each Pod has its own world: one dies twice, the others go on, every result is there."""

    pods = place.pods(replicas=3, restarts=2)
    with swimmy.submit(
        _work_or_wait, pods=pods, mpi=swimmy.mpi(1, world="pod"), cluster=place.cluster, reach="direct"
    ) as handle:
        lines = (line for line in handle.logs(follow=True) if line.text == "at work")
        started = [next(lines) for _ in range(3)]
        assert {line.pod for line in started} == {0, 1, 2}
        for _ in range(2):
            name = next(each.name for each in handle.pods() if each.replica == 1)
            kube.request("DELETE", f"/api/v1/namespaces/{place.cluster.namespace}/pods/{name}")
            again = next(lines)
            assert again.pod == 1
        for each in handle.pods():
            _let_go(kube, handle.id, each.replica)
        try:
            found = handle.result(60)
        except TimeoutError:
            pytest.fail("\n".join(map(str, [*handle.events, *handle.logs(follow=False)])))
        assert found == [f"{handle.id}-{index}" for index in range(3)]
        lost = [event.entry for event in handle.events if event.entry["kind"] == "lost"]
        assert {entry["index"] for entry in lost} == {1}


def _work_or_wait() -> str:
    import signal
    import socket

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # so that a signal between the two lines is not lost
    print("at work", flush=True)
    signal.sigwait([signal.SIGUSR1])
    return socket.gethostname()


def _let_go(kube: Any, run: str, replica: int) -> None:
    """Sends SIGUSR1 to the rank itself: of the processes `swimmy.inside`, the one whose parent is one too."""
    script = (
        'for p in /proc/[0-9]*; do tr "\\0" "\\n" < $p/environ 2>/dev/null | grep -qx "SWIMMY_RUN=$0" || continue; '
        'tr "\\0" "\\n" < $p/environ | grep -qx "JOB_COMPLETION_INDEX=$1" || continue; '
        'tr "\\0" " " < $p/cmdline | grep -q "swimmy.inside" || continue; '
        'parent=$(awk "/^PPid/ {print \\$2}" $p/status); '
        'tr "\\0" " " < /proc/$parent/cmdline | grep -q "swimmy.inside" && kill -USR1 ${p#/proc/}; done; true'
    )
    kube.run_inside("sh", "-c", script, run, str(replica))
