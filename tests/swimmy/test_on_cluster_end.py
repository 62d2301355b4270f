"""Nothing is left behind, and what dies is the only thing that dies: on the real kubelet."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

import pytest
from in_pods import agent_pid, let_go

import swimmy
from swimmy import errors
from swimmy.manifests import RUN_LABEL

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
print(handle.wait_state(given["state"], timeout=120), handle.id, flush=True)
handle.result()
"""


@pytest.mark.parametrize("state", ["scheduling", "running"])
def test_kill_9_of_the_client(place: Any, kube: Any, state: str) -> None:
    """At "scheduling" no agent runs yet that could keep a lease: the Job's own deadline ends it."""
    pods = {
        "image": place.image, "replicas": 2, "cpus": "50m", "memory": "256Mi", "python": place.python,
        "image_pull_policy": "Never", "grace": 1, "lease": 3,
    }  # fmt: skip
    if state == "scheduling":
        pods |= {"node_selector": {"no": "machine"}, "start_timeout": 4, "schedule_timeout": 2}
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


def compact_history() -> None:
    """etcd forgets every change so far: a watch that goes on from one of them is answered 410 Gone."""

    def ask(path: str, **body: Any) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:2379/v3/kv/{path}", json.dumps(body).encode())
        return json.loads(urllib.request.urlopen(request, timeout=10).read())

    key = base64.b64encode(b"outside of Kubernetes").decode()
    revision = ask("put", key=key, value=key)["header"]["revision"]  # one more change than any watch has seen
    ask("compaction", revision=revision, physical=True)


@pytest.mark.alone
def test_the_api_server_dies_and_its_history_with_it_and_the_run_does_not_notice(place: Any, kube: Any) -> None:
    def count() -> int:
        import signal
        import time

        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        for number in range(40):
            print(number, flush=True)
            time.sleep(0.1)  # the run's own work
        signal.sigwait([signal.SIGUSR1])
        return 40

    with swimmy.submit(
        count, pods=place.pods(replicas=2), mpi=swimmy.mpi(1), cluster=place.cluster, reach="direct"
    ) as handle:
        assert handle.wait_state("running", timeout=90) == "running"
        listed = place.cluster.requests["list Pods"]
        kube.kill("kube-apiserver")
        compact_history()
        lines = handle.logs(follow=True)
        seen = [next(lines).text for _ in range(60)]  # the agents' channel goes on without it
        assert seen
        kube.start("kube-apiserver")
        kube.wait_for_api()
        # After 410 it lists again, and watches from there.
        kube.wait_until("another list", lambda: place.cluster.requests["list Pods"] > listed)
        for each in handle.pods():
            let_go(kube, handle.id, each.replica)
        assert handle.result(60) == [40, 40]
        assert any(event.entry["kind"] == "watch" and event.entry["trouble"] for event in handle.events)


@pytest.mark.alone
def test_the_api_server_is_away_for_longer_than_the_lease_and_the_run_goes_on(place: Any, kube: Any) -> None:
    """Its client reaches the leader through the API server alone, and cannot renew the lease."""
    pods = place.pods(replicas=2, lease=8, silence=8)
    with swimmy.submit(_work_or_wait, pods=pods, mpi=swimmy.mpi(1), cluster=place.cluster, reach="forward") as handle:
        lines = handle.logs()
        assert [next(lines).text for _ in range(2)] == ["at work"] * 2
        kube.kill("kube-apiserver")
        threading.Event().wait(20)  # so long it is away: the thing that is tested, nothing is waited for
        assert handle.state == "running"
        kube.start("kube-apiserver")
        kube.wait_for_api()
        for name in ("kube-controller-manager", "kube-scheduler"):  # their own pauses have become long meanwhile
            kube.kill(name)
            kube.start(name)
        for each in handle.pods():
            let_go(kube, handle.id, each.replica)
        assert len(handle.result(90)) == 2
        assert any(event.entry["kind"] == "watch" and event.entry["trouble"] for event in handle.events)


@pytest.mark.alone
def test_a_run_is_submitted_while_the_api_server_starts(place: Any, kube: Any) -> None:
    place.cluster.version()  # it is known
    kube.kill("kube-apiserver")
    with swimmy.submit(
        lambda: 7, pods=place.pods(), mpi=swimmy.mpi(1, kind="none"), cluster=place.cluster, reach="direct"
    ) as handle:
        kube.wait_until("a first try", lambda: place.cluster.requests["create Job"] and not handle.pods())
        kube.start("kube-apiserver")
        kube.wait_for_api()
        assert handle.result(90) == [7]


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
            let_go(kube, handle.id, each.replica)
        try:
            found = handle.result(60)
        except TimeoutError:
            pytest.fail("\n".join(map(str, [*handle.events, *handle.logs(follow=False)])))
        assert found == [f"{handle.id}-{index}" for index in range(3)]
        lost = [event.entry for event in handle.events if event.entry["kind"] == "lost"]
        assert {entry["index"] for entry in lost} == {1}


def test_worlds_that_fail_alone(place: Any, kube: Any) -> None:
    """Of four Pods of one Job one raises, the first loses its agent, one is deleted: the last one's result is there."""

    def work(number: int) -> tuple[int, int, int]:
        import signal

        if number == 2:
            raise KeyError("only here")
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        print("at work", flush=True)
        signal.sigwait([signal.SIGUSR1])
        return number, swimmy.rank(), swimmy.size()

    before = dict(place.cluster.requests)
    handles = swimmy.submit_each(work, [(n,) for n in range(4)], pods=place.pods(), mpi=swimmy.mpi(2), cluster=place.cluster)
    try:
        for number in (0, 1, 3):
            assert "at work" in next(iter(handles[number].logs())).text
        with pytest.raises(errors.RankFailed, match="only here"):
            handles[2].result(60)
        kube.run_inside("kill", "-KILL", agent_pid(kube, handles[0].id, 0))
        with pytest.raises(errors.AgentKilled, match=r"by signal 9 \(SIGKILL\)"):
            handles[0].result(60)
        name = handles[1].pods()[0].name
        kube.request("DELETE", f"/api/v1/namespaces/{place.cluster.namespace}/pods/{name}")
        with pytest.raises(errors.Deleted):
            handles[1].result(60)
        assert handles[3].state == "running"
        let_go(kube, handles[3].id, 3)
        assert handles[3].result(60) == [(3, 0, 2), (3, 1, 2)]
    finally:
        for handle in handles:
            handle.close()
    asked = {what: count - before.get(what, 0) for what, count in place.cluster.requests.items()}
    assert {what: asked[what] for what in ("create Job", "create Secret", "list Pods", "watch Pods", "delete Job")} == {
        "create Job": 1, "create Secret": 1, "list Pods": 1, "watch Pods": 1, "delete Job": 1
    }  # fmt: skip


def _work_or_wait() -> str:
    import signal
    import socket

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # so that a signal between the two lines is not lost
    print("at work", flush=True)
    signal.sigwait([signal.SIGUSR1])
    return socket.gethostname()
