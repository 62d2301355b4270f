"""``swimmy doctor``: would a run work here? Each check with what to do when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from swimmy import errors
from swimmy.api import submit
from swimmy.kubernetes import Cluster
from swimmy.manifests import NETWORK_RULE, RULES
from swimmy.spec import Pods, mpi


class Check(NamedTuple):
    """One finding; ``remedy`` is empty where nothing is to be done."""

    ok: bool
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{'ok  ' if self.ok else 'FAIL'} {self.what}"
        return f"{line}\n     -> {self.remedy}" if self.remedy else line


def examine(cluster: Cluster, pods: Pods | None, *, with_mpi: bool = True) -> Iterator[Check]:
    """The checks, as they are made: cluster, permissions, GPUs; and, where an image is given, a run of one Pod with it."""
    try:
        version = cluster.version()
    except errors.SwimmyError as error:
        yield Check(False, f"the API server answers: {error}", "check the network, or choose another context with --context")
        return
    yield Check(True, f"the API server {cluster.server} answers: Kubernetes {version}, namespace {cluster.namespace!r}")
    missing = [
        f"{verb} {resource}"
        for group, resource, verbs in RULES
        for verb in verbs
        if not cluster.allowed(verb, group, resource)
    ]
    if missing:
        yield Check(False, f"not allowed: {', '.join(missing)}", "have the Role applied that `swimmy rbac` prints")
    else:
        yield Check(True, "everything that a run needs is allowed")
    group, resource, verbs = NETWORK_RULE
    if not cluster.allowed(verbs[0], group, resource):
        yield Check(
            True,
            "NetworkPolicies may not be created: network_policy=True will be refused",
            "`swimmy rbac --network-policy`",
        )
    yield _gpus(cluster, pods)
    if pods is None:
        yield Check(True, "no image was given, so none was tried", "swimmy doctor --image IMAGE runs a Pod with it")
    elif not missing:
        yield from _try_image(cluster, pods, with_mpi)


def _gpus(cluster: Cluster, pods: Pods | None) -> Check:
    resource = pods.gpu_resource if pods is not None else "nvidia.com/gpu"
    nodes = cluster.nodes()
    wanted = pods.gpus if pods is not None else 0
    if nodes is None:
        return Check(True, "machines may not be listed, so GPUs are not counted (no run needs that permission)")
    counts = [int(node["status"].get("allocatable", {}).get(resource, 0)) for node in nodes]
    text = f"{sum(counts)} of {resource} on {len(nodes)} machines can be allocated"
    if wanted and max(counts, default=0) < wanted:
        return Check(False, f"{text}, {wanted} in one Pod are wanted", "install the device plugin, or ask for fewer")
    return Check(True, text)


def _report() -> str:
    import os
    import platform

    return f"Python {platform.python_version()}, user {os.getuid()}"


def _try_image(cluster: Cluster, pods: Pods, with_mpi: bool) -> Iterator[Check]:
    kind = mpi(2) if with_mpi else mpi(1, kind="none")
    try:
        with submit(_report, pods=pods, mpi=kind, cluster=cluster, name="doctor") as handle:
            found = handle.result(pods.schedule_timeout + pods.start_timeout + 60)[0]
    except (errors.SwimmyError, TimeoutError) as error:
        name = type(error).__name__
        remedy = "see the sentence above" + ("; --no-mpi tries without MPI" if isinstance(error, errors.LaunchError) else "")
        yield Check(False, f"a Pod with image {pods.image!r}: {name}: {error}", remedy)
        return
    world = "an MPI world of 2 ranks came up" if with_mpi else "no MPI was tried"
    yield Check(True, f"a Pod with image {pods.image!r} ran: {found}; its agent was reached; {world}")
