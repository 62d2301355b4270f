"""The real cluster for the tests marked ``cluster``, and what every test leaves behind: nothing."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from scenarios import rows

import swimmy
from swimmy.manifests import RUN_LABEL

# A loaded machine must not fail a test by its clock.
hypothesis.settings.register_profile("swimmy", deadline=None, max_examples=60)
hypothesis.settings.load_profile("swimmy")


@dataclass
class Place:
    """A cluster to test on. ``kube`` is the fixture's own, or None where KUBECONFIG names somebody's."""

    cluster: swimmy.Cluster
    image: str
    python: str
    kube: Any

    def pods(self, **changed: Any) -> swimmy.Pods:
        asked: dict[str, Any] = {
            "image": self.image, "cpus": "50m", "memory": "256Mi", "python": self.python,
            "image_pull_policy": "Never" if self.kube else "IfNotPresent", "grace": 1, "lease": 10,
        }  # fmt: skip
        return swimmy.Pods(**{**asked, **changed})


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    from servers.kube import held, missing_tools

    if os.environ.get("KUBECONFIG") and held.VARIABLE not in os.environ:
        image = os.environ.get("SWIMMY_TEST_IMAGE")
        if not image:
            pytest.fail(
                "KUBECONFIG names a cluster: SWIMMY_TEST_IMAGE must name an image with Python, swimmy, mpi4py, mpich and "
                "nothing else needed"
            )
        cluster = swimmy.Cluster()
        yield Place(cluster, image, os.environ.get("SWIMMY_TEST_PYTHON", "python3"), None)
        cluster.close()
        return
    if missing := missing_tools():
        text = "a test cluster cannot run here:\n  " + "\n  ".join(missing)
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)
    with held.cluster() as kube:
        namespace, labels = held.namespace(), {"pod-security.kubernetes.io/enforce": "restricted"}
        kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace, "labels": labels}})
        cluster = swimmy.Cluster(str(kube.kubeconfig), namespace=namespace)
        yield Place(cluster, held.IMAGE, sys.executable, kube)
        cluster.close()


@pytest.fixture
def kube(place: Place) -> Any:
    """The fixture's own cluster, for tests that break it."""
    if place.kube is None:
        pytest.skip("this test stops parts of the cluster, which it does not do to a cluster that KUBECONFIG names")
    return place.kube


@pytest.fixture
def second_node(kube: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A second node for this test alone: its name, and the settings of Pods that go to it."""
    with open(kube.state / "second-node", "w") as waiting:
        fcntl.flock(waiting, fcntl.LOCK_EX)
        name = kube.add_node()
        yield name, {"node_selector": {"kubernetes.io/hostname": name}, "tolerations": [kube.reserved]}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests of several workers run beside each other, but for those that are marked ``alone``."""
    if "place" not in getattr(item, "fixturenames", ()):
        return (yield)
    from servers.kube import held

    with held.turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def _paths(namespace: str) -> list[str]:
    query = f"?labelSelector={RUN_LABEL}"
    core = [f"/api/v1/namespaces/{namespace}/{kind}{query}" for kind in ("pods", "secrets", "configmaps", "services")]
    return [f"/apis/batch/v1/namespaces/{namespace}/jobs{query}", *core]


@pytest.fixture
def nothing_left(place: Place) -> Iterator[None]:
    """After the test everything labelled with a run is gone from the cluster."""
    yield
    if place.kube is not None:
        for path in _paths(place.cluster.namespace):
            place.kube.wait_gone(path)


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [each for each in threading.enumerate() if each not in before and each.is_alive()]
    assert not left, f"threads outlive their test: {left}"


@pytest.fixture
def table_row(request: pytest.FixtureRequest) -> Any:
    """Adds a row to the table of scenarios that is printed at the end."""

    def add(error: BaseException) -> None:
        # A property of the test comes from a worker to the process that prints.
        request.node.user_properties.append(("sentence", (type(error).__name__, str(error).splitlines()[0])))

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [
        report
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
        if "cluster" in getattr(report, "keywords", {}) and (report.when == "call" or report.outcome != "passed")
    ]
    if reports:
        terminalreporter.section("scenarios on the real kubelet")
        outcomes = {each.nodeid + (" openmpi" if "openmpi" in each.keywords else ""): each.outcome for each in reports}
        sentences = [(each.nodeid, *value) for each in reports for name, value in each.user_properties if name == "sentence"]
        for line in rows(outcomes, sentences):
            terminalreporter.write_line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for the cluster carries its mark, so that `-m "not cluster"` needs no list of names."""
    for item in items:
        if "place" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path
