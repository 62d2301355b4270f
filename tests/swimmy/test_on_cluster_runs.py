"""Runs that succeed, on a real kubelet in a namespace under Pod security ``restricted``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import swimmy
from swimmy.errors import Cancelled, PermissionMissing, SpecError

pytestmark = pytest.mark.usefixtures("nothing_left")


def where(add: int) -> tuple[int, int, int, str]:
    """Runs on the Pods; sums over the world where there is MPI."""
    import socket

    import swimmy

    total = add
    if os.environ["SWIMMY_MPI"] != "none":
        from mpi4py import MPI

        total += MPI.COMM_WORLD.allreduce(swimmy.rank())
    return total, swimmy.rank(), swimmy.size(), socket.gethostname()


@pytest.mark.parametrize("reach", ["forward", "direct"])
def test_a_world_of_six_ranks_on_three_pods(place: Any, reach: Any) -> None:
    with swimmy.submit(
        where, (100,), pods=place.pods(replicas=3), mpi=swimmy.mpi(2), cluster=place.cluster, reach=reach
    ) as handle:
        found = handle.result(90)
        hosts = [f"{handle.id}-{index}" for index in (0, 0, 1, 1, 2, 2)]
        assert found == [(115, rank, 6, hosts[rank]) for rank in range(6)]
        assert handle.state == "done"


def test_without_mpi_each_pod_has_its_ranks(place: Any) -> None:
    found = swimmy.run(
        where,
        (1,),
        pods=place.pods(replicas=2),
        mpi=swimmy.mpi(2, kind="none"),
        cluster=place.cluster,
        reach="direct",
        timeout=90,
    )
    assert [each[:3] for each in found] == [(1, rank, 4) for rank in range(4)]


def test_a_world_for_each_pod(place: Any) -> None:
    found = swimmy.run(
        where,
        (0,),
        pods=place.pods(replicas=2),
        mpi=swimmy.mpi(2, world="pod"),
        cluster=place.cluster,
        reach="direct",
        timeout=90,
    )
    assert [each[:3] for each in found] == [(1, 0, 2), (1, 1, 2), (1, 0, 2), (1, 1, 2)]


def test_closures_travel_and_requests_do_not_grow_with_pods(place: Any) -> None:
    factor = 7
    counts = {}
    for replicas in (1, 4):
        with swimmy.submit(
            lambda x: factor * x, (6,), pods=place.pods(replicas=replicas), cluster=place.cluster, reach="direct"
        ) as handle:
            before = sum(handle.requests.values())
            assert handle.result(90) == [42] * replicas
        counts[replicas] = sum(handle.requests.values()) - before
    assert counts[4] < 30
    assert counts[4] <= counts[1] + 2  # a list of events may be read while Pods start


def test_a_result_and_a_payload_larger_than_a_message(place: Any) -> None:
    data = os.urandom(20_000_000)
    found = swimmy.run(
        lambda given: given[::-1], (data,), pods=place.pods(memory="512Mi"), cluster=place.cluster, timeout=90
    )
    assert found == [data[::-1]]


def test_every_line_of_the_log_arrives_though_the_kubelet_rotates_its_own(place: Any) -> None:
    lines = 40_000  # about 3 MB: the kubelet keeps 1 MiB a file

    def chatter() -> None:
        for number in range(lines):
            print(f"line {number} " + "x" * 60)

    with swimmy.submit(chatter, pods=place.pods(), cluster=place.cluster, reach="direct") as handle:
        read = [line.text.split()[1] for line in handle.logs(follow=True)]
        handle.result(90)
    assert read == [str(number) for number in range(lines)]


def test_cancel_ends_a_run_that_would_never_end(place: Any) -> None:
    with swimmy.submit(_wait_forever, pods=place.pods(), cluster=place.cluster, reach="direct") as handle:
        assert handle.wait_state("running", timeout=90) == "running"
        handle.cancel()
        assert handle.state == "cancelled"
        with pytest.raises(Cancelled):
            handle.result(1)


def _wait_forever() -> None:
    import signal

    print("waiting")
    signal.pause()


def test_pod_options_reach_the_pod(place: Any, kube: Any) -> None:
    kube.request("POST", f"/api/v1/namespaces/{place.cluster.namespace}/configmaps",
                 {"metadata": {"name": "settings"}, "data": {"colour": "green"}})  # fmt: skip
    try:
        pods = place.pods(
            env={"FLAVOUR": "mint"},
            volumes=[swimmy.config_map("settings", "/settings"), swimmy.empty_dir("/scratch", memory=True, size="8Mi")],
            labels={"team": "blue"},
            node_selector={"kubernetes.io/hostname": kube.node},
            patch={"containers": [{"name": "agent", "workingDir": "/scratch"}]},
        )

        def look() -> list[Any]:
            from pathlib import Path

            Path("here").write_text("x")
            with refusals() as refused:
                Path("/etc/written").write_text("x")
            return [os.environ["FLAVOUR"], Path("/settings/colour").read_text(), os.getcwd(), os.getuid(), refused[0]]

        found = swimmy.run(look, pods=pods, cluster=place.cluster, reach="direct", timeout=90)
        assert found == [["mint", "green", "/scratch", 10001, "Read-only file system"]]
    finally:
        kube.request("DELETE", f"/api/v1/namespaces/{place.cluster.namespace}/configmaps/settings")


def refusals() -> Any:
    """Collects an OSError's text; defined here because the image holds no pytest."""
    import contextlib

    @contextlib.contextmanager
    def collect() -> Any:
        texts: list[str] = []
        try:
            yield texts
        except OSError as error:
            texts.append(str(error.strerror))

    return collect()


def test_a_run_of_a_queue_waits_until_it_is_let_in(place: Any, kube: Any) -> None:
    """What Kueue does to a Job of its queue is done here by hand: the Job is suspended until somebody lifts that."""
    with swimmy.submit(
        where, (1,), pods=place.pods(replicas=2, queue="team"), cluster=place.cluster, reach="direct"
    ) as handle:
        assert handle.wait_state("scheduling", timeout=90) == "scheduling"
        path = f"/apis/batch/v1/namespaces/{place.cluster.namespace}/jobs/{handle.id}"
        job = kube.request("GET", path)
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
        kube.wait_until("the Job's controller", lambda: kube.request("GET", path)["status"].get("conditions"))
        assert handle.status().startswith("0 of 2 Pods running")
        assert "the queue 'team' has not let run" in handle.status()
        assert not handle.pods()
        kube.request("PATCH", path, {"spec": {"suspend": False}}, "application/merge-patch+json")
        assert [each[:3] for each in handle.result(90)] == [(1, 0, 2), (1, 1, 2)]


def test_a_detached_run_is_found_again(place: Any, state_folder: Any) -> None:
    first = swimmy.submit(lambda: "found", pods=place.pods(), cluster=place.cluster, reach="direct", detach=True)
    first.close()
    assert [each["id"] for each in swimmy.runs(cluster=place.cluster)] == [first.id]
    with swimmy.attach(first.id, cluster=place.cluster) as second:
        assert second.result(90) == ["found"]
    with pytest.raises(swimmy.errors.RunGone):
        swimmy.attach(first.id, cluster=place.cluster)


@pytest.mark.parametrize("look", [swimmy.attach, swimmy.cancel])
def test_a_detached_run_is_not_forgotten_where_it_was_looked_for_elsewhere(
    place: Any, kube: Any, look: Any, state_folder: Any
) -> None:
    with swimmy.submit(lambda: "found", pods=place.pods(), cluster=place.cluster, reach="direct", detach=True) as first:
        pass
    elsewhere = swimmy.Cluster(str(kube.kubeconfig), namespace="default")
    words = f"not in namespace 'default' .* was submitted to namespace '{place.cluster.namespace}'.*its keys are kept"
    with pytest.raises(swimmy.errors.RunGone, match=words):
        look(first.id, cluster=elsewhere)
    elsewhere.close()
    with swimmy.attach(first.id, cluster=place.cluster) as second:
        assert second.result(90) == ["found"]


def test_the_printed_role_is_enough_and_without_it_the_refusal_names_the_verb(place: Any, kube: Any) -> None:
    from swimmy.manifests import rbac

    namespace = place.cluster.namespace
    kubeconfig = kube.authority.kubeconfig("alice", "/CN=alice")
    alice = swimmy.Cluster(str(kubeconfig), namespace=namespace)
    try:
        with pytest.raises(PermissionMissing, match=rf"create Job in namespace '{namespace}' is not allowed.*swimmy rbac"):
            swimmy.run(where, (1,), pods=place.pods(), cluster=alice, timeout=60)
        subject = {"kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io"}
        for manifest in rbac(namespace, subject):
            plural = manifest["kind"].lower() + "s"
            kube.request("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{plural}", manifest)
        found = swimmy.run(
            where, (1,), pods=place.pods(replicas=2), mpi=swimmy.mpi(1), cluster=alice, reach="forward", timeout=90
        )
        assert [each[0] for each in found] == [2, 2]
    finally:
        alice.close()


def test_what_is_wrong_is_said_at_once_before_anything_is_created(place: Any) -> None:
    before = sum(place.cluster.requests.values())
    with pytest.raises(SpecError) as caught:
        swimmy.submit(where, (1,), pods=place.pods(cpus="two", replicas=0, memory="5 apples"), cluster=place.cluster)
    assert all(word in str(caught.value) for word in ("cpus='two'", "replicas=0", "5 apples"))
    assert sum(place.cluster.requests.values()) == before


def drive(image: str, python: str) -> list[int]:
    """A driver: runs in a Pod with a service account, and starts a run of its own that ends with it."""
    import swimmy

    cluster = swimmy.Cluster()
    job = cluster.get_job(os.environ["SWIMMY_RUN"])
    owner = swimmy.Owner("batch/v1", "Job", job["metadata"]["name"], job["metadata"]["uid"])
    pods = swimmy.Pods(image, replicas=2, cpus="50m", memory="256Mi", python=python, image_pull_policy="Never", grace=1)
    return swimmy.run(lambda: swimmy.rank() + 1, pods=pods, mpi=swimmy.mpi(1), cluster=cluster, owner=owner, timeout=90)


def drive_ahead(one: swimmy.Ahead, each: swimmy.Ahead) -> tuple[list[int], list[int], int]:
    """What runs in the driver's Pod: gives work to Pods that its client has made."""
    import contextlib
    import os

    cluster = swimmy.Cluster()
    run = os.environ["SWIMMY_RUN"]
    owner = swimmy.Owner("batch/v1", "Job", run, cluster.get_job(run)["metadata"]["uid"])
    world = swimmy.run(lambda: swimmy.rank() + 1, pods=one, cluster=cluster, owner=owner, timeout=90)
    with contextlib.ExitStack() as stack:
        handles = swimmy.submit_each(lambda x: 10 * x, [(1,), (2,)], pods=each, cluster=cluster, owner=owner)
        alone = [stack.enter_context(handle).result(90)[0] for handle in handles]
    return world, alone, cluster.requests["create Job"]


@pytest.fixture(scope="session")
def driver_account(place: Any) -> str:
    """A service account with the Role that `swimmy rbac` prints."""
    from swimmy.manifests import rbac

    namespace = place.cluster.namespace
    place.kube.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "driver"}})
    subject = {"kind": "ServiceAccount", "name": "driver", "namespace": namespace}
    for manifest in rbac(namespace, subject):
        manifest["metadata"]["name"] = "driver"
        if manifest["kind"] == "RoleBinding":
            manifest["roleRef"]["name"] = "driver"
        plural = manifest["kind"].lower() + "s"
        place.kube.request("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{plural}", manifest)
    return "driver"


def test_a_driver_in_a_pod_starts_a_run_of_its_own(place: Any, kube: Any, driver_account: str) -> None:
    pods = place.pods(service_account=driver_account, memory="512Mi")
    assert swimmy.run(drive, (place.image, place.python), pods=pods, cluster=place.cluster, timeout=120) == [[1, 2]]


def test_a_driver_in_a_pod_gives_work_to_pods_that_were_made_with_it(
    place: Any, kube: Any, driver_account: str, nothing_left: None
) -> None:
    one = swimmy.ahead("one", pods=place.pods(replicas=2), mpi=swimmy.mpi(1))
    each = swimmy.ahead("each", pods=place.pods(replicas=2), each=True)
    pods = place.pods(service_account=driver_account, memory="512Mi")
    before = place.cluster.requests["create Job"]
    found = swimmy.run(drive_ahead, (one, each), pods=pods, cluster=place.cluster, ahead=[one, each], timeout=120)
    assert found == [([1, 2], [10, 20], 0)]  # the driver has created no Job
    assert place.cluster.requests["create Job"] - before == 3


def test_pods_that_were_made_ahead_are_gone_with_a_run_that_never_used_them(
    place: Any, kube: Any, nothing_left: None
) -> None:
    ahead = swimmy.ahead("unused", pods=place.pods())
    assert swimmy.run(lambda: 1, pods=place.pods(), cluster=place.cluster, ahead=[ahead], timeout=90) == [1]


def test_the_example_of_the_documentation(place: Any, kube: Any, tmp_path: Path) -> None:
    """The first program of docs/cluster.md as it stands there, but for the image and what its Pods ask for."""
    text = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    program = text.split("```python\n")[1].split("```")[0]
    for written, here in (("registry/team/train:1.2", place.image), ('cpus=2, memory="4Gi"', 'cpus="50m", memory="256Mi"')):
        assert written in program
        program = program.replace(written, here)
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "KUBECONFIG": str(kube.kubeconfig)}
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str([(total, rank, 6) for rank in range(6)]) for total in (12, 6)]


def test_doctor_finds_nothing_wrong_and_says_so(place: Any, capsys: Any) -> None:
    from swimmy.doctor import examine

    checks = list(examine(place.cluster, place.pods(schedule_timeout=60)))
    assert all(check.ok for check in checks), "\n".join(map(str, checks))
    assert "an MPI world of 2 ranks came up" in checks[-1].what
    bad = list(examine(place.cluster, place.pods(gpus=1, schedule_timeout=1)))
    assert [check.ok for check in bad if "can be allocated" in check.what] == [False]
    assert not bad[-1].ok
    assert "Insufficient nvidia.com/gpu" in bad[-1].what
