"""A real cluster with an image of ghee, a namespace under Pod security ``restricted``, and the driver's rights in it."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import ghee
import swimmy
import swimmy.manifests
from swimmy.manifests import RUN_LABEL

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES / "movielens"))

_KINDS = {"core": ("pods", "secrets", "configmaps", "services"), "batch": ("jobs",)}


@dataclass
class Place:
    """A cluster to run on."""

    kube: Any
    image: str
    namespace: str
    _claims: set[str] = field(default_factory=set)

    def on(self, **pods: Any) -> ghee.Kubernetes:
        """The settings of a run."""
        asked = {
            "python": sys.executable, "cpus": "50m", "memory": "512Mi", "image_pull_policy": "Never", "grace": 1,
            "lease": 10, **pods,
        }  # fmt: skip
        return ghee.Kubernetes(image=self.image, kubeconfig=str(self.kube.kubeconfig), namespace=self.namespace, pods=asked)

    def claim(self, name: str, folder: Path, *, read_only: bool = False) -> swimmy.Volume:
        """A folder of this machine as a claim of the namespace, mounted where it lies here; made on first use."""
        if name not in self._claims:
            modes = ["ReadOnlyMany" if read_only else "ReadWriteMany"]
            size = {"storage": "1Gi"}
            volume = {"hostPath": {"path": str(folder)}, "accessModes": modes, "capacity": size, "storageClassName": ""}
            wanted: dict[str, Any] = {"accessModes": modes, "storageClassName": "", "resources": {"requests": size}}
            wanted["volumeName"] = f"{self.namespace}-{name}"  # volumes are of the whole cluster, claims of a namespace
            described = {"metadata": {"name": wanted["volumeName"]}, "spec": volume}
            self.kube.request("POST", "/api/v1/persistentvolumes", described)
            path = f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims"
            self.kube.request("POST", path, {"metadata": {"name": name}, "spec": wanted})
            self._claims.add(name)
        return swimmy.claim(name, str(folder), read_only=read_only)

    def packages(self) -> swimmy.Volume:
        """This environment's packages, with those that the image leaves out (torch with its libraries has gigabytes)."""
        return self.claim("packages", Path(sysconfig.get_path("purelib")), read_only=True)

    def paths(self) -> list[str]:
        """Where objects of runs would be."""
        query = f"?labelSelector={RUN_LABEL}"
        core = [f"/api/v1/namespaces/{self.namespace}/{kind}{query}" for kind in _KINDS["core"]]
        return [*core, f"/apis/batch/v1/namespaces/{self.namespace}/jobs{query}"]

    def pods(self, name: str) -> list[dict[str, Any]]:
        """The Pods of runs whose name has this part."""
        items = self.kube.request("GET", self.paths()[0])["items"]
        return [item for item in items if name in item["metadata"]["name"]]

    def delete_pod(self, name: str) -> None:
        """As an administrator would, without grace: what `kill -9` of a machine's Pod looks like."""
        self.kube.request("DELETE", f"/api/v1/namespaces/{self.namespace}/pods/{name}?gracePeriodSeconds=0")


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    from servers.kube import missing_tools

    if missing := missing_tools():
        text = "a test cluster cannot run here:\n  " + "\n  ".join(missing)
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)
    with open_place() as opened:
        yield opened


@contextlib.contextmanager
def open_place() -> Iterator[Place]:
    """A cluster of this machine, the tests' or one's own for as long as it is entered."""
    from servers.kube import held

    with held.cluster() as kube:
        namespace, labels = held.namespace(), {"pod-security.kubernetes.io/enforce": "restricted"}
        kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace, "labels": labels}})
        kube.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "ghee"}})
        subject = {"kind": "ServiceAccount", "name": "ghee", "namespace": namespace}
        for manifest in swimmy.manifests.rbac(namespace, subject):
            kind = {"Role": "roles", "RoleBinding": "rolebindings"}[manifest["kind"]]
            kube.request("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{kind}", manifest)
        yield Place(kube, held.IMAGE, namespace)


@pytest.fixture
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the keys of detached runs are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def _nothing_left(place: Place) -> Iterator[None]:
    """After each test the cluster has no object of a run, and this process no thread more."""
    before = set(threading.enumerate())
    yield
    for path in place.paths():
        place.kube.wait_gone(path)
    left = [each for each in threading.enumerate() if each not in before and each.is_alive()]
    assert not left, f"threads outlive their test: {left}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cluster" in item.path.parts:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(600))
