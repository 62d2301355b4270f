"""From what was asked for to the objects that are created. Pure: the same input gives the same manifests."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swimmy.protocol import PORT
from swimmy.spec import Mpi, Pods, quantity

Manifest = dict[str, Any]

# Kubernetes waits five minutes before it takes Pods off a machine that does not answer; a run would stand still for as long.
_LOST_NODE = tuple(
    {"key": f"node.kubernetes.io/{trouble}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    for trouble in ("not-ready", "unreachable")
)

RUN_LABEL = "swimmy.dev/run"
KEYS = "/run/swimmy-keys"
FOLDER = "/run/swimmy"
CONTAINER = "agent"
TTL = 30  # seconds a finished Job stays: long enough for a client to read why, short enough to be gone soon


@dataclass(frozen=True)
class Owner:
    """An object whose end is this run's end too: Kubernetes' garbage collection removes it."""

    api_version: str
    kind: str
    name: str
    uid: str

    def reference(self) -> Manifest:
        return {"apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid}


def job(
    run: str, pods: Pods, mpi: Mpi, *, owner: Owner | None = None, alone: bool = False, after: int = 0
) -> Manifest:  # fmt: skip
    """The Indexed Job of a run. ``alone``: a Pod that fails is not made again, and the others go on without it.
    ``after``: seconds that it may wait for the run that gives it its work.

    It is created before the Secret that its Pods wait for, so that the Secret can have it as its owner from its first
    moment; and with a deadline that ends it if its client dies before all agents answer: agents that never started can keep
    no lease.
    """
    limit = boot(pods) + after
    labels = {**pods.labels, RUN_LABEL: run}
    metadata: Manifest = {"name": run, "labels": dict(labels), "annotations": dict(pods.annotations)}
    spec: Manifest = {
        "completionMode": "Indexed",
        "parallelism": pods.replicas,
        "completions": pods.replicas,
        "ttlSecondsAfterFinished": TTL,
        "activeDeadlineSeconds": min(limit, int(pods.deadline)) if pods.deadline else limit,
        "template": {
            "metadata": {"labels": dict(labels), "annotations": dict(pods.annotations)},
            "spec": pod(run, pods, after),
        },
    }
    if mpi.world == "pod" and pods.restarts:
        # A replacement starts as soon as the old Pod is told to end: the kubelet of a lost machine never confirms it.
        spec |= {"backoffLimitPerIndex": pods.restarts, "podReplacementPolicy": "TerminatingOrFailed"}
        spec["maxFailedIndexes"] = 0
    elif alone:
        spec["backoffLimitPerIndex"] = 0
    else:
        spec["backoffLimit"] = 0
    if pods.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = pods.queue
        spec["suspend"] = True  # Kueue lifts it when there is room for all Pods
    if owner is not None:
        metadata["ownerReferences"] = [owner.reference()]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def boot(pods: Pods) -> int:
    """Seconds after which a run that nobody has begun to follow ends."""
    return int(pods.schedule_timeout + pods.start_timeout + pods.lease)


def pod(run: str, pods: Pods, after: int = 0) -> Manifest:
    """The Pod's spec: closed by default, as the Pod security level ``restricted`` demands."""
    volumes: list[Manifest] = [
        {"name": "swimmy-keys", "secret": {"secretName": run, "defaultMode": 0o400}},
        {"name": "swimmy-run", "emptyDir": {}},
    ]
    mounts: list[Manifest] = [
        {"name": "swimmy-keys", "mountPath": KEYS, "readOnly": True},
        {"name": "swimmy-run", "mountPath": FOLDER},
    ]
    taken = {volume.path.rstrip("/") for volume in pods.volumes}
    # Writable places that programs expect, since the root file system is read-only; MPI's shared memory lies in /dev/shm.
    for path, options in (("/tmp", {}), ("/dev/shm", {"medium": "Memory"})):
        if path not in taken:
            name = f"swimmy{path.replace('/', '-')}"
            volumes.append({"name": name, "emptyDir": options})
            mounts.append({"name": name, "mountPath": path})
    for number, volume in enumerate(pods.volumes):
        volumes.append({"name": f"volume-{number}", **copy.deepcopy(dict(volume.source))})
        mounts.append({"name": f"volume-{number}", "mountPath": volume.path, "readOnly": volume.read_only})
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": pods.service_account is not None,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": int(pods.grace) + 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": pods.user,
            "runAsGroup": pods.user,
            "fsGroup": pods.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [{**_container(run, pods, after), "volumeMounts": mounts}],
        "volumes": volumes,
    }
    optional = {
        "nodeSelector": dict(pods.node_selector),
        "tolerations": [*({**each} for each in pods.tolerations), *_LOST_NODE],
        "affinity": dict(pods.affinity),
        "imagePullSecrets": [{"name": name} for name in pods.image_pull_secrets],
        "serviceAccountName": pods.service_account,
        "priorityClassName": pods.priority_class,
        "schedulerName": pods.scheduler,
    }
    spec |= {name: value for name, value in optional.items() if value}
    return strategic_merge(spec, pods.patch)


def _container(run: str, pods: Pods, after: int) -> Manifest:
    requests = {"cpu": quantity(pods.cpus, "cpus"), "memory": quantity(pods.memory, "memory")}
    limits = {"memory": requests["memory"]}
    if pods.cpu_limit is not None:
        limits["cpu"] = quantity(pods.cpu_limit, "cpu_limit")
    more = {name: quantity(value, name) for name, value in pods.resources.items()}
    if pods.gpus:  # never a zero: a scheduler may take "0 GPUs" for a wish it cannot grant
        more[pods.gpu_resource] = str(pods.gpus)
    own = {
        "SWIMMY_RUN": run,
        "SWIMMY_PORT": str(PORT),
        "SWIMMY_BOOT": str(boot(pods) + after),
        "SWIMMY_LEASE": f"{pods.lease:g}",
        "SWIMMY_GRACE": f"{pods.grace:g}",
        "SWIMMY_KEEP": f"{pods.keep:g}",
        "SWIMMY_KEYS": KEYS,
        "SWIMMY_FOLDER": f"{FOLDER}/agent",
    }
    values = {"HOME": "/tmp", **pods.env, **own}
    environment: list[Manifest] = [{"name": name, "value": value} for name, value in values.items()]
    environment.append({"name": "SWIMMY_ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    return {
        "name": CONTAINER,
        "image": pods.image,
        "imagePullPolicy": pods.image_pull_policy,
        "command": [pods.python, "-m", "swimmy.agent"],
        "env": environment,
        "ports": [{"name": "agent", "containerPort": PORT}],
        "resources": {"requests": {**requests, **more}, "limits": {**limits, **more}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def secret(run: str, keys: Mapping[str, str], owner: Owner) -> Manifest:
    """The run's keys, as files for its agents; gone with its Job."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": run, "labels": {RUN_LABEL: run}, "ownerReferences": [owner.reference()]},
        "immutable": True,
        "type": "Opaque",
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()},
    }


def network_policy(run: str, owner: Owner, *, allow: Mapping[str, str] | None = None) -> Manifest:
    """Only Pods of the same run (and those with the labels ``allow``) reach the run's Pods; MPI's own ports know no
    password.
    """
    sources: list[Manifest] = [{"podSelector": {"matchLabels": {RUN_LABEL: run}}}]
    if allow:
        sources.append({"podSelector": {"matchLabels": dict(allow)}})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": run, "labels": {RUN_LABEL: run}, "ownerReferences": [owner.reference()]},
        "spec": {
            "podSelector": {"matchLabels": {RUN_LABEL: run}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": sources}],
        },
    }


# What a client needs, verb by verb; `swimmy doctor` asks for each, `swimmy rbac` prints them.
RULES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("batch", "jobs", ("create", "get", "list", "patch", "delete")),
    ("", "secrets", ("create",)),
    ("", "pods", ("list", "watch")),
    ("", "pods/log", ("get",)),
    ("", "pods/portforward", ("create", "get")),
    ("", "events", ("list",)),
)
NETWORK_RULE = ("networking.k8s.io", "networkpolicies", ("create",))


def rbac(namespace: str, subject: Manifest, *, network_policy: bool = False) -> list[Manifest]:
    """The Role with the least verbs that a client needs, and its binding to ``subject`` (a User, Group or
    ServiceAccount).
    """
    rules = [*RULES, NETWORK_RULE] if network_policy else list(RULES)
    role: Manifest = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "swimmy", "namespace": namespace},
        "rules": [{"apiGroups": [group], "resources": [kind], "verbs": list(verbs)} for group, kind, verbs in rules],
    }
    # Of each subject its own: a second one that is applied must not take the place of the first.
    whose = re.sub("[/%]", "-", f"{subject['kind'].lower()}-{subject['name']}")
    binding: Manifest = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"swimmy-{whose}", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "swimmy"},
        "subjects": [subject],
    }
    return [role, binding]


# How the API server merges the lists of a Pod's spec: by the field named here; other lists are replaced.
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}


def strategic_merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> Manifest:
    """``patch`` merged into ``base`` by the rules of a strategic merge patch; None removes a field. Neither is changed."""
    merged = copy.deepcopy(dict(base))
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = strategic_merge(merged[name], value)
        elif isinstance(value, list) and isinstance(merged.get(name), list) and name in _MERGE_KEYS:
            merged[name] = _merge_lists(merged[name], value, _MERGE_KEYS[name])
        else:
            merged[name] = copy.deepcopy(value)
    return merged


def _merge_lists(base: list[Manifest], patch: list[Manifest], key: str) -> list[Manifest]:
    merged = {each.get(key): each for each in base}
    for each in patch:
        name = each.get(key)
        if each.get("$patch") == "delete":
            merged.pop(name, None)
        else:
            merged[name] = strategic_merge(merged.get(name, {}), each)
    return list(merged.values())


def as_yaml(manifests: list[Manifest]) -> str:
    """Documents that kubectl takes. JSON is YAML, but what begins with a brace is read as JSON alone, of one document."""
    return "".join(f"---\n{json.dumps(each, indent=2)}\n" for each in manifests)
