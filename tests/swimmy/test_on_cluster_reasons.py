"""The acceptance table: each trouble on the real kubelet, the error it is raised as, and its sentence."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from in_pods import agent_pid

import swimmy
from swimmy import errors

OTHER_IMAGE = "localhost/swimmy/python:other-cloudpickle"
Place = Any


def one() -> int:
    return 1


def wait_forever() -> None:
    import signal

    print("waiting", flush=True)
    signal.pause()


def eat(megabytes: int) -> int:
    import swimmy

    if swimmy.rank() == 1:
        return sum(bytearray(megabytes << 20))
    import signal

    signal.pause()
    return 0


def fail(how: str) -> None:
    import ctypes
    import os
    import signal
    import sys

    import swimmy

    if swimmy.rank() != 1:
        signal.pause()
    if how == "raise":
        raise KeyError("no such film")
    if how == "segfault":
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(3)
    if how == "sys.exit":
        sys.exit(4)
    if how == "import":
        import a_library_nobody_has  # noqa: F401


def kill_by_name(name: str) -> None:
    """Kills a process of the Pod, as an operator or the kernel would."""
    import os
    import signal
    from pathlib import Path

    import swimmy

    if swimmy.rank() == 1:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and Path((folder / "cmdline").read_bytes().split(b"\0")[0].decode()).name == name:
                os.kill(int(folder.name), signal.SIGKILL)
    signal.pause()


def raised(place: Place, row: Any, function: Callable[..., Any] = one, args: Any = (), mpi: Any = None, **pods: Any) -> Any:
    with pytest.raises(errors.SwimmyError) as caught:
        swimmy.run(function, args, pods=place.pods(**pods), mpi=mpi, cluster=place.cluster, reach="direct", timeout=120)
    row(caught.value)
    return caught.value


pytestmark = pytest.mark.usefixtures("nothing_left")


# -- Pods that do not start ---------------------------------------------------------------------------------------


def test_invalid_image_name(place: Place, table_row: Any) -> None:
    error = raised(place, table_row, image="Not/A Valid:Image")
    assert isinstance(error, errors.ImagePullFailed)
    assert "'Not/A Valid:Image' is no valid image name" in str(error)


def test_image_that_is_nowhere(place: Place, table_row: Any) -> None:
    error = raised(place, table_row, image="localhost/swimmy/none:1", image_pull_policy="Never")
    assert isinstance(error, errors.ImagePullFailed)
    assert "is not on the machine" in str(error)
    assert "IfNotPresent" in str(error)


def test_image_that_cannot_be_pulled(place: Place, table_row: Any) -> None:
    error = raised(place, table_row, image="127.0.0.1:1/team/train:1", image_pull_policy="IfNotPresent")
    assert isinstance(error, errors.ImagePullFailed)
    assert "cannot be fetched" in str(error)
    assert "image_pull_secrets" in str(error)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"cpus": 1000}, "Insufficient cpu"),
        ({"gpus": 1}, "Insufficient nvidia.com/gpu"),
        ({"node_selector": {"pool": "a100"}}, "node affinity/selector"),
    ],
    ids=["cpus", "gpus", "node_selector"],
)
def test_unschedulable(place: Place, table_row: Any, asked: Any, words: str) -> None:
    error = raised(place, table_row, schedule_timeout=1, **asked)
    assert isinstance(error, errors.Unschedulable)
    assert words in str(error)
    assert "Each asks for" in str(error)


def test_what_the_wait_is_for_is_shown_while_waiting(place: Place) -> None:
    with swimmy.submit(one, pods=place.pods(cpus=1000), cluster=place.cluster, reach="direct") as handle:
        deadline = time.monotonic() + 30
        while "unschedulable" not in handle.status() and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                handle.wait_state("running", timeout=0.2)
        assert "0 of 1 Pods running, 1 unschedulable for" in handle.status()
        assert "Insufficient cpu" in handle.status()


def test_missing_secret_volume(place: Place, table_row: Any) -> None:
    error = raised(place, table_row, volumes=[swimmy.secret("not-there", "/secret")])
    assert isinstance(error, errors.ContainerConfigError)
    assert 'secret "not-there" not found' in str(error)


def test_missing_config_map_in_the_environment(place: Place, table_row: Any) -> None:
    patch = {"containers": [{"name": "agent", "envFrom": [{"configMapRef": {"name": "not-there"}}]}]}
    error = raised(place, table_row, patch=patch)
    assert isinstance(error, errors.ContainerConfigError)
    assert 'configmap "not-there" not found' in str(error)


def test_command_missing(place: Place, table_row: Any) -> None:
    error = raised(place, table_row, python="/nowhere/python3")
    assert isinstance(error, errors.CommandMissing)
    assert "cannot start '/nowhere/python3'" in str(error)


def test_image_without_swimmy(place: Place, table_row: Any, kube: Any) -> None:
    bare = os.path.realpath(sys.executable)  # the interpreter below the environment: it sees none of its packages
    error = raised(place, table_row, python=bare)
    assert isinstance(error, errors.ImportFailed)
    assert "No module named" in str(error)
    assert "install swimmy" in str(error)


@contextlib.contextmanager
def quota(place: Place, kube: Any, hard: dict[str, str]) -> Iterator[None]:
    """A quota of the namespace that is in force: before its controller has counted, every Pod is refused for that alone."""
    path = f"/api/v1/namespaces/{place.cluster.namespace}/resourcequotas"
    version = kube.request("POST", path, {"metadata": {"name": "small"}, "spec": {"hard": hard}})["metadata"][
        "resourceVersion"
    ]
    try:
        while kube.request("GET", f"{path}/small")["status"].get("hard") != hard:
            kube.request("GET", f"{path}?watch=1&timeoutSeconds=5&resourceVersion={version}")
        yield
    finally:
        kube.request("DELETE", f"{path}/small")


def test_quota(place: Place, table_row: Any, kube: Any) -> None:
    with quota(place, kube, {"requests.memory": "100Mi"}):
        error = raised(place, table_row)
    assert isinstance(error, errors.QuotaExceeded)
    assert "exceeded quota: small" in str(error)


def test_quota_for_some_of_the_pods(place: Place, table_row: Any, kube: Any) -> None:
    with quota(place, kube, {"pods": "2"}):
        error = raised(place, table_row, replicas=3)
    assert isinstance(error, errors.QuotaExceeded)
    assert "only 2 of 3 Pods" in str(error)
    assert "exceeded quota: small" in str(error)


def test_a_namespace_that_is_not_there(place: Place, table_row: Any, kube: Any) -> None:
    cluster = swimmy.Cluster(str(kube.kubeconfig), namespace="nobodys")
    with pytest.raises(errors.SpecError, match=r"has no namespace 'nobodys'.*kubectl create namespace nobodys") as caught:
        swimmy.run(one, pods=place.pods(), cluster=cluster, timeout=60)
    cluster.close()
    table_row(caught.value)


def test_a_service_account_that_is_not_there(place: Place, table_row: Any) -> None:
    error = raised(place, table_row, service_account="nobody")
    assert isinstance(error, errors.PermissionMissing)
    assert "service account 'nobody' is not in the namespace; kubectl create serviceaccount nobody" in str(error)


def test_pod_security_refuses_a_host_path(place: Place, table_row: Any) -> None:
    error = raised(place, table_row, volumes=[swimmy.host_path("/etc", "/host")])
    assert isinstance(error, errors.PermissionMissing)
    assert "hostPath" in str(error)


# -- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "mpich"])
def test_a_child_out_of_memory_while_the_agent_lives(place: Place, table_row: Any, kind: Any) -> None:
    error = raised(place, table_row, eat, (400,), mpi=swimmy.mpi(2, kind=kind))
    assert isinstance(error, errors.OutOfMemory)
    if Path("/sys/fs/cgroup/memory").exists():  # with version 2 the kubelet has the kernel kill the whole Pod
        assert error.rank == 1
        assert "limit of 256.0 MiB" in str(error)
    assert "raise memory=" in str(error)


def test_process_one_out_of_memory(place: Place, table_row: Any) -> None:
    error = raised(place, table_row, memory="12Mi")
    assert isinstance(error, errors.OutOfMemory)
    assert "12Mi" in str(error)


# -- ranks that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "mpich"])
@pytest.mark.parametrize(
    ("how", "kinds", "words"),
    [
        ("raise", errors.RankFailed, "raised KeyError: 'no such film'"),
        ("segfault", errors.RankFailed, "by signal 11 (SIGSEGV)"),
        ("kill", errors.RankFailed, "by signal 9 (SIGKILL)"),
        ("exit", errors.RankFailed, "with exit code 3"),
        ("sys.exit", errors.RankFailed, "with exit code 4"),
        ("import", errors.ImportFailed, "cannot import 'a_library_nobody_has'"),
    ],
)
def test_a_rank_that_fails_is_named(place: Place, table_row: Any, kind: Any, how: str, kinds: Any, words: str) -> None:
    error = raised(place, table_row, fail, (how,), mpi=swimmy.mpi(1, kind=kind), replicas=2)
    assert type(error) is kinds
    assert words in str(error)
    assert error.rank == 1
    assert "-1-" in str(error.pod)
    if how == "raise":
        assert isinstance(error.__cause__, KeyError)
        assert "in fail" in str(error)  # the remote traceback
    if how == "segfault":
        assert any("Segmentation fault" in line for line in error.log)


@pytest.mark.parametrize("name", ["mpiexec", "hydra_pmi_proxy"])
def test_mpi_itself_killed(place: Place, table_row: Any, name: str) -> None:
    error = raised(place, table_row, kill_by_name, (name,), mpi=swimmy.mpi(2), replicas=1)
    assert isinstance(error, errors.LaunchError | errors.RankFailed)
    assert not str(error).splitlines()[0].rstrip().endswith(":")


# -- agents -------------------------------------------------------------------------------------------------------


def test_versions_differ(place: Place, table_row: Any, kube: Any, tmp_path: Path) -> None:
    import cloudpickle

    from servers.kube import images

    folder = tmp_path / "cloudpickle"
    shutil.copytree(Path(cloudpickle.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / "__init__.py").read_text()
    (folder / "__init__.py").write_text(text.replace(f'"{cloudpickle.__version__}"', '"2.2.1"'))
    added, base = {"/other/cloudpickle": folder}, kube.state / "python.tar"
    kube.import_image(images.layered_image(tmp_path / "other.tar", OTHER_IMAGE, added, base))
    error = raised(place, table_row, image=OTHER_IMAGE, env={"PYTHONPATH": "/other"})
    assert isinstance(error, errors.VersionMismatch)
    assert f"cloudpickle {cloudpickle.__version__} here, 2.2.1 there" in str(error)


@pytest.mark.parametrize("index", [0, 1])
def test_agent_silent(place: Place, table_row: Any, kube: Any, index: int) -> None:
    with swimmy.submit(
        wait_forever, pods=place.pods(replicas=2, silence=8), cluster=place.cluster, reach="direct"
    ) as handle:
        assert handle.wait_state("running", timeout=90) == "running"
        pid = agent_pid(kube, f"{handle.id}", index)
        kube.run_inside("kill", "-STOP", pid)
        try:
            with pytest.raises(errors.AgentSilent, match=r"has not answered") as caught:
                handle.result(60)
        finally:
            kube.run_inside("kill", "-CONT", pid)
    table_row(caught.value)


def test_agent_killed(place: Place, table_row: Any, kube: Any) -> None:
    with swimmy.submit(wait_forever, pods=place.pods(replicas=2), cluster=place.cluster, reach="direct") as handle:
        assert handle.wait_state("running", timeout=90) == "running"
        kube.run_inside("kill", "-KILL", agent_pid(kube, handle.id, 1))
        with pytest.raises(errors.AgentError, match=r"by signal 9 \(SIGKILL\)") as caught:
            handle.result(60)
    table_row(caught.value)


# -- Pods that are taken away -------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(place: Place, **pods: Any) -> Iterator[tuple[swimmy.Handle, str]]:
    """A run that waits on two Pods, and the path of the second."""
    with swimmy.submit(wait_forever, pods=place.pods(replicas=2, **pods), cluster=place.cluster, reach="direct") as handle:
        state = handle.wait_state("running", timeout=90)
        if state != "running":
            handle.result(1)
        name = next(each.name for each in handle.pods() if each.replica == 1)
        yield handle, f"/api/v1/namespaces/{place.cluster.namespace}/pods/{name}"


def test_pod_deleted_by_somebody(place: Place, table_row: Any, kube: Any) -> None:
    with running(place) as (handle, pod):
        kube.request("DELETE", pod)
        with pytest.raises(errors.Deleted, match="was deleted by somebody") as caught:
            handle.result(60)
    assert caught.value.retryable
    table_row(caught.value)


def test_job_deleted_by_somebody(place: Place, table_row: Any) -> None:
    with running(place) as (handle, _):
        swimmy.cancel(handle.id, cluster=place.cluster)
        with pytest.raises(errors.Deleted) as caught:
            handle.result(60)
    table_row(caught.value)


def test_evicted_by_the_api(place: Place, table_row: Any, kube: Any) -> None:
    with running(place) as (handle, pod):
        name = pod.rpartition("/")[2]
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        kube.request("POST", f"{pod}/eviction", body)
        with pytest.raises(errors.Evicted, match="was evicted") as caught:
            handle.result(60)
    table_row(caught.value)


def test_evicted_by_the_kubelet(place: Place, table_row: Any) -> None:
    def fill() -> None:
        from pathlib import Path

        Path("/scratch/much").write_bytes(bytes(8 << 20))
        wait_forever()

    error = raised(place, table_row, fill, volumes=[swimmy.empty_dir("/scratch", size="1Mi")])
    assert isinstance(error, errors.Evicted)
    assert 'exceeds the limit "1Mi"' in str(error)
    assert error.retryable


def test_preempted(place: Place, table_row: Any, kube: Any, second_node: tuple[str, dict[str, Any]]) -> None:
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    kube.request("POST", path, {"metadata": {"name": "urgent"}, "value": 1000})
    node, there = second_node
    try:
        allocatable = kube.request("GET", f"/api/v1/nodes/{node}")["status"]["allocatable"]["cpu"]
        half = int(allocatable) / 2 - 0.1
        with running(place, cpus=half, **there) as (handle, _):
            urgent = place.pods(cpus=half, priority_class="urgent", **there)
            with (
                swimmy.submit(wait_forever, pods=urgent, cluster=place.cluster, reach="direct") as other,
                pytest.raises(errors.Preempted, match="higher priority") as caught,
            ):
                handle.result(60)
            other.close()
    finally:
        kube.request("DELETE", f"{path}/urgent")
    table_row(caught.value)


def test_deadline(place: Place, table_row: Any) -> None:
    error = raised(place, table_row, wait_forever, deadline=6)
    assert isinstance(error, errors.DeadlineExceeded)
    assert "raise deadline=" in str(error)


def test_tainted_node_and_lost_node(
    place: Place, table_row: Any, kube: Any, second_node: tuple[str, dict[str, Any]]
) -> None:
    node, there = second_node
    path = f"/api/v1/nodes/{node}"
    with running(place, **there) as (handle, _):
        taint = {"spec": {"taints": [kube.reserved, {"key": "broken", "value": "yes", "effect": "NoExecute"}]}}
        kube.request("PATCH", path, taint, "application/merge-patch+json")
        with pytest.raises(errors.NodeLost, match="lost with its machine") as caught:
            handle.result(60)
    table_row(caught.value)
    kube.request("PATCH", path, {"spec": {"taints": [kube.reserved]}}, "application/merge-patch+json")
    with running(place, **there, silence=20) as (handle, _):
        kube.kill("kubelet2")  # the machine as the cluster sees it
        pids = [agent_pid(kube, handle.id, index) for index in (0, 1)]
        for pid in pids:
            kube.run_inside("kill", "-STOP", pid)  # and as its Pods' network sees it
        with pytest.raises(errors.NodeLost, match="lost with its machine") as caught:
            handle.result(100)
        for pid in pids:
            kube.run_inside("kill", "-CONT", pid)
        kube.start("kubelet2")
        kube.wait_for_node(node)
    table_row(caught.value)
