"""What a user asks for: Pods, MPI, volumes. Data only, checked as a whole before anything is created."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from swimmy.errors import SpecError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|[kKMGTPE]i?B?|B)?")
_ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("SWIMMY_", "PMI_", "HYDRA_", "OMPI_", "PRTE_", "PMIX_", "JOB_COMPLETION_INDEX")


@dataclass(frozen=True)
class Volume:
    """A folder of the Pod that comes from elsewhere; made by the functions below."""

    path: str
    source: Mapping[str, Any]
    read_only: bool = True


def empty_dir(path: str, *, memory: bool = False, size: str | None = None) -> Volume:
    """An empty folder that lives as long as the Pod; ``memory=True`` keeps it in RAM, which counts to the Pod's memory."""
    options: dict[str, Any] = {"medium": "Memory"} if memory else {}
    if size is not None:
        options["sizeLimit"] = quantity(size, "size")
    return Volume(path, {"emptyDir": options}, read_only=False)


def claim(name: str, path: str, *, read_only: bool = False) -> Volume:
    """A PersistentVolumeClaim of the namespace."""
    return Volume(path, {"persistentVolumeClaim": {"claimName": name, "readOnly": read_only}}, read_only)


def secret(name: str, path: str) -> Volume:
    """A Secret of the namespace, one file for each of its keys."""
    return Volume(path, {"secret": {"secretName": name}})


def config_map(name: str, path: str) -> Volume:
    """A ConfigMap of the namespace, one file for each of its keys."""
    return Volume(path, {"configMap": {"name": name}})


def host_path(source: str, path: str | None = None, *, read_only: bool = True) -> Volume:
    """A folder of the node; a namespace under Pod security ``restricted`` refuses it."""
    return Volume(path or source, {"hostPath": {"path": source}}, read_only)


@dataclass(frozen=True)
class Mpi:
    """How ranks are started: ``kind`` names the MPI of the image, ``world`` whether one world spans all Pods or each has
    its own.
    """

    ranks_per_pod: int = 1
    kind: Literal["mpich", "openmpi", "none"] = "mpich"
    world: Literal["all", "pod"] = "all"


def mpi(
    ranks_per_pod: int = 1, *, kind: Literal["mpich", "openmpi", "none"] = "mpich", world: Literal["all", "pod"] = "all"
) -> Mpi:
    """``Mpi`` for ``run`` and ``submit``; ``kind="openmpi"`` for images with Open MPI, "none" for ranks without MPI."""
    return Mpi(ranks_per_pod, kind, world)


@dataclass(frozen=True)
class Pods:
    """The Pods of a run.

    ``cpus`` (cores) and ``memory`` ("4Gi", bytes) are what each Pod asks for; memory is its limit too, ``cpu_limit`` is
    none unless given. ``gpus`` counts devices of ``gpu_resource``. ``patch`` is merged into the Pod's spec as a
    strategic merge patch would be, after everything else. ``start_timeout`` seconds may pass until every agent answers,
    ``schedule_timeout`` while a Pod fits on no machine; ``deadline`` seconds until the run is ended whatever it does;
    within ``lease`` seconds after its client's death the agents end (later where they cannot reach the API server, at
    most five minutes); an agent that does not answer for ``silence`` seconds is given up. A detached run that has
    ended waits ``keep`` seconds for somebody to fetch its result. ``grace`` seconds lie between SIGTERM and SIGKILL
    for the ranks. ``restarts`` is how often a Pod that failed comes back (only with ``mpi(world="pod")``).
    """

    image: str
    replicas: int = 1
    cpus: float | str = 1
    memory: str | int = "1Gi"
    gpus: int = 0
    cpu_limit: float | str | None = None
    gpu_resource: str = "nvidia.com/gpu"
    resources: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    volumes: Sequence[Volume] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    image_pull_secrets: Sequence[str] = ()
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    service_account: str | None = None
    priority_class: str | None = None
    queue: str | None = None
    scheduler: str | None = None
    python: str = "python3"
    user: int = 10001
    network_policy: bool = False
    patch: Mapping[str, Any] = field(default_factory=dict)
    schedule_timeout: float = 300
    start_timeout: float = 120
    deadline: float | None = None
    lease: float = 60
    grace: float = 5
    silence: float = 20
    keep: float = 3600
    restarts: int = 0


def quantity(value: str | float, what: str) -> str:
    """A Kubernetes quantity from ``2``, ``"500m"``, ``"2Gi"``, ``"2GB"``; raises SpecError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SpecError(f"{what}={value!r} is no quantity; write a number, or text such as '500m', '2Gi', '2GB'")
    text = f"{value:g}" if isinstance(value, float) else str(value).strip()
    found = _QUANTITY.fullmatch(text)
    if found is None or float(found[1]) < 0:
        raise SpecError(f"{what}={value!r} is no quantity; write a number, or text such as '500m', '2Gi', '2GB'")
    unit = (found[2] or "").removesuffix("B")
    return found[1] + ("k" if unit == "K" else unit)


def check(pods: Pods, how: Mpi | None) -> None:
    """Raises SpecError that lists everything that is wrong with what was asked for."""
    problems = [*_pod_problems(pods), *_mpi_problems(pods, how)]
    if problems:
        raise SpecError("this run cannot be started:\n  " + "\n  ".join(problems))


def _quantities(pods: Pods) -> list[str]:
    problems = []
    asked: dict[str, Any] = {"cpus": pods.cpus, "memory": pods.memory, "cpu_limit": pods.cpu_limit or 0}
    asked.update({f"resources[{name!r}]": value for name, value in pods.resources.items()})
    for what, value in asked.items():
        try:
            if what in ("cpus", "memory") and re.fullmatch(r"0+(\.0*)?", quantity(value, what).rstrip("mkKMGTPEi")):
                problems.append(f"{what}={value!r} asks for nothing; ask for what one Pod needs, for example 1 or '1Gi'")
        except SpecError as error:
            problems.append(str(error))
    return problems


def _pod_problems(pods: Pods) -> list[str]:
    problems = _quantities(pods)
    if not pods.image or pods.image != pods.image.strip():
        problems.append(f"image={pods.image!r} is no image; name one, for example 'registry/team/train:1.2'")
    for name, least in (("replicas", 1), ("gpus", 0), ("restarts", 0), ("user", 1)):
        value = getattr(pods, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(f"{name}={value!r}; a whole number of {least} or more is needed")
    for name in ("schedule_timeout", "start_timeout", "lease", "silence", "keep", "deadline"):
        value = getattr(pods, name)
        if value is not None and not value >= 1:
            problems.append(f"{name}={value!r}; at least 1 (seconds) is needed")
    for name, value in pods.env.items():
        if not _ENVIRONMENT.fullmatch(name):
            problems.append(f"env name {name!r}; letters, digits and _ are allowed, no digit first")
        elif name.startswith(_RESERVED):
            problems.append(f"env name {name!r} is what agents and MPI are told by; choose a name that starts otherwise")
        if not isinstance(value, str):
            problems.append(f"env {name}={value!r}; a value is text, write {str(value)!r}")
    paths = [volume.path for volume in pods.volumes]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        problems.append(f"two volumes at {path!r}; each needs a path of its own")
    for path in paths:
        if not path.startswith("/") or ":" in path:
            problems.append(f"volume path {path!r}; an absolute path is needed")
        if path.rstrip("/") in ("/run/swimmy", "/run/swimmy-keys", ""):
            problems.append(f"volume path {path!r} is used by the agent; choose another")
    for name in pods.image_pull_secrets:
        if not _NAME.fullmatch(name):
            problems.append(f"image pull secret {name!r}; a name has small letters, digits and -")
    return problems


def _mpi_problems(pods: Pods, how: Mpi | None) -> list[str]:
    if how is None:
        return (
            ["restarts needs mpi(world='pod'): a world over several Pods cannot get one rank back"] if pods.restarts else []
        )
    problems = []
    if isinstance(how.ranks_per_pod, bool) or not isinstance(how.ranks_per_pod, int) or how.ranks_per_pod < 1:
        problems.append(f"ranks_per_pod={how.ranks_per_pod!r}; a whole number of 1 or more is needed")
    if how.kind not in ("mpich", "openmpi", "none"):
        problems.append(f"mpi kind {how.kind!r}; known: 'mpich', 'openmpi', 'none'")
    if how.world not in ("all", "pod"):
        problems.append(f"mpi world {how.world!r}; known: 'all' (one world over all Pods), 'pod' (each Pod its own)")
    if pods.restarts and how.world != "pod":
        problems.append("restarts needs mpi(world='pod'): a world over several Pods cannot get one rank back")
    if pods.patch.get("hostNetwork") and pods.replicas > 1:
        problems.append("patch with hostNetwork and several Pods: MPI takes Pods with the machine's address for one host")
    return problems
