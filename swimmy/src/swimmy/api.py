"""``run`` and ``submit``: the way in."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from swimmy import code
from swimmy.channel import Keys
from swimmy.errors import RunGone, SpecError
from swimmy.follow import Follower
from swimmy.handle import Handle
from swimmy.kubernetes import Cluster, NotFound
from swimmy.manifests import RUN_LABEL, Owner
from swimmy.objects import Objects
from swimmy.record import Access, Ahead, Spec
from swimmy.spec import Mpi, Pods, check

Reach = Literal["auto", "direct", "forward"]
_SINGLE = Mpi(1, "none", "all")


def new_run_id(name: str) -> str:
    """A name for the run's objects: the user's, and six random letters so that two runs of one name do not meet."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "run"
    return f"{cleaned}-{secrets.token_hex(3)}"


def submit(
    function: Callable[..., Any],
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    pods: Pods | Ahead,
    mpi: Mpi | None = None,
    cluster: Cluster | None = None,
    name: str | None = None,
    modules: Iterable[ModuleType] = (),
    detach: bool = False,
    reach: Reach = "auto",
    owner: Owner | None = None,
    ahead: Sequence[Ahead] = (),
) -> Handle:
    """Starts ``function(*args, **kwargs)`` on every rank of the Pods and returns a handle at once.

    ``mpi=None`` starts one rank per Pod without MPI. ``modules`` are sent along with the code, besides the function's own.
    ``detach`` leaves the run alone when this process ends (``attach`` finds it again, from this machine). ``reach`` says
    how the agents are reached: through the API server ("forward"), by their addresses ("direct"), or as fits where this
    process runs. ``owner``: the run ends with that object. ``ahead`` are made together with this run, for its function to
    submit to: as ``pods`` of a run whose ``owner`` is this run's Job.

    Raises SpecError for what is wrong with the arguments, ClusterUnreachable where no cluster is known; everything later is
    raised by ``Handle.result``.
    """
    pods, mpi, made = _made(pods, mpi, owner)
    if reach not in ("auto", "direct", "forward"):
        raise SpecError(f"reach={reach!r}; known: 'auto', 'direct', 'forward'")
    payload = code.dumps(function, args, kwargs, modules)
    cluster = cluster if cluster is not None else Cluster()
    direct = reach == "direct" or (reach == "auto" and cluster.inside)
    run_id = made[0] if made else new_run_id(str(name or getattr(function, "__name__", "run")))
    access = made[1] if made else None
    spec = Spec(run_id, pods, mpi or _SINGLE, payload, detach, direct, owner, made=access, ahead=tuple(ahead))
    handle = Handle(Follower(Objects(cluster, spec), spec), detached=detach)
    if detach:
        with handle._record.changed:
            handle._record.changed.wait_for(lambda: handle._record.started or handle._record.ended)
        _remember(cluster, spec, handle)
    return handle


def ahead(name: str, *, pods: Pods, mpi: Mpi | None = None, each: bool = False) -> Ahead:
    """Pods for a run that is submitted later, by the function of the run with which they are made (``submit(ahead=)``).

    Their images are fetched and their agents started while that run's own Pods start. ``each``: for ``submit_each``.
    Raises SpecError for what is wrong with them.
    """
    check(pods, mpi)
    cleaned = new_run_id(name[:24])
    return Ahead(cleaned, pods, mpi or _SINGLE, each, Keys.new(), Keys.new(), Keys.new())


def _made(pods: Pods | Ahead, mpi: Mpi | None, owner: Owner | None) -> tuple[Pods, Mpi | None, tuple[str, Access] | None]:
    """What is to run, and, where its objects were made ahead, its id and its keys."""
    if isinstance(pods, Pods):
        check(pods, mpi)
        return pods, mpi, None
    if owner is None:
        raise SpecError("Pods that were made ahead are of the run with which they were made: owner= must name its Job")
    return pods.pods, pods.mpi, (pods.run(owner.name), Access(pods.client, pods.server.public))


def submit_each(
    function: Callable[..., Any],
    args: Sequence[Iterable[Any]],
    *,
    pods: Pods | Ahead,
    mpi: Mpi | None = None,
    cluster: Cluster | None = None,
    name: str | None = None,
    modules: Iterable[ModuleType] = (),
    owner: Owner | None = None,
) -> list[Handle]:
    """Starts ``function(*args[i])`` on the ranks of Pod ``i``, each Pod a world of its own, and returns a handle for each.

    One that fails, or whose Pod is lost, ends alone: the others go on. All Pods are of one Job, and the requests to the API
    server are as many as for one Pod. ``pods.replicas`` is not used: there are as many as ``args``. The Pods are reached by
    their addresses, so this is for programs inside the cluster. The rest, and what is raised, is as with ``submit``.
    """
    pods, mpi, made = _made(pods, mpi, owner)
    if made and pods.replicas != len(args):
        raise SpecError(f"{pods.replicas} Pods were made ahead, and there are arguments for {len(args)}")
    asked = replace(pods, replicas=len(args))
    check(asked, mpi)
    cluster = cluster if cluster is not None else Cluster()
    run_id = made[0] if made else new_run_id(str(name or getattr(function, "__name__", "run")))
    how = mpi or _SINGLE
    access = made[1] if made else None
    objects = Objects(cluster, Spec(run_id, asked, how, b"", False, True, owner, alone=True, made=access))
    one = replace(pods, replicas=1)
    specs = [Spec(run_id, one, how, code.dumps(function, each, None, modules), False, True, owner) for each in args]
    # All join before the first of them creates anything.
    followers = [Follower(objects, spec, index) for index, spec in enumerate(specs)]
    return [Handle(follower, detached=False) for follower in followers]


def run(
    function: Callable[..., Any],
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    timeout: float | None = None,
    **options: Any,
) -> list[Any]:
    """``submit`` and the result of each rank, in the order of the ranks; cancels the run when ``timeout`` seconds have
    passed.

    ``options`` are those of ``submit``. Raises what ended the run (``swimmy.errors``), or TimeoutError.
    """
    with submit(function, args, kwargs, **options) as handle:
        return handle.result(timeout)


# -- detached runs ------------------------------------------------------------------------------------------------


def _folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "swimmy"


def _remember(cluster: Cluster, spec: Spec, handle: Handle) -> None:
    """Keeps a detached run's keys for this user, so that ``attach`` can prove itself to the agents."""
    access = handle._record.access
    if access is None:
        return
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    described = {
        "server": access.server,
        "client": [access.client.public, access.client.secret],
        "cluster": cluster.server,
        "namespace": cluster.namespace,
        "direct": spec.direct,
        "pods": {
            "image": spec.pods.image,
            "replicas": spec.pods.replicas,
            "memory": spec.pods.memory,
            "restarts": spec.pods.restarts,
        },
        "mpi": [spec.mpi.ranks_per_pod, spec.mpi.kind, spec.mpi.world],
    }
    with open(os.open(folder / f"{spec.run}.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(described, file)


def attach(run: str, *, cluster: Cluster | None = None) -> Handle:
    """Follows a detached run again: its log from the first line, its result. ``cluster`` is the namespace that the run was
    submitted to unless given.

    Raises RunGone where it, or its key, is not here. A run that is not where it was submitted to is forgotten with that.
    """
    known = _recall(run)
    if known is None:
        path = _folder() / f"{run}.json"
        raise RunGone(f"the keys of run {run!r} are not on this machine ({path}): attach from the machine that submitted it")
    cluster = cluster if cluster is not None else Cluster(namespace=known["namespace"])
    try:
        cluster.get_job(run)
    except NotFound:
        _forget_if_gone(run, known, cluster)
        raise RunGone(f"run {run!r} is no longer on the cluster (namespace {cluster.namespace!r})") from None
    access = Access(Keys(*known["client"]), known["server"])
    spec = Spec(run, Pods(**known["pods"]), Mpi(*known["mpi"]), b"", True, known["direct"], attached=access)
    return Handle(Follower(Objects(cluster, spec), spec), detached=True)


def cancel(run: str, *, cluster: Cluster | None = None) -> None:
    """Deletes a run's Job, with its Pods and its Secret; raises RunGone where there is none. ``cluster`` is the namespace
    that a detached run was submitted to unless given.
    """
    known = _recall(run)
    cluster = cluster if cluster is not None else Cluster(namespace=known["namespace"] if known else None)
    if cluster.delete_job(run):
        (_folder() / f"{run}.json").unlink(missing_ok=True)
        return
    if known is not None:
        _forget_if_gone(run, known, cluster)
    raise RunGone(f"there is no run {run!r} in namespace {cluster.namespace!r}; `swimmy ps` lists them")


def _recall(run: str) -> dict[str, Any] | None:
    """What is kept of a detached run; None where nothing is."""
    try:
        kept: dict[str, Any] = json.loads((_folder() / f"{run}.json").read_text())
    except FileNotFoundError:
        return None
    return kept


def _forget_if_gone(run: str, known: dict[str, Any], cluster: Cluster) -> None:
    """Throws the keys of a run away that is not where it was submitted to; raises RunGone, and keeps them, where another
    place was looked at: without them nobody could fetch the run's result.
    """
    submitted = known.get("cluster"), known["namespace"]
    if submitted != (cluster.server, cluster.namespace):
        raise RunGone(
            f"run {run!r} is not in namespace {cluster.namespace!r} of {cluster.server}: it was submitted to namespace "
            f"{submitted[1]!r} of {submitted[0] or 'a cluster'}. Name that (--namespace, --kubeconfig); its keys are kept"
        )
    (_folder() / f"{run}.json").unlink(missing_ok=True)


def runs(*, cluster: Cluster | None = None) -> list[dict[str, Any]]:
    """The runs of the namespace: id, when they started, and how many of their Pods are active, done or failed."""
    cluster = cluster if cluster is not None else Cluster()
    found = []
    for job in cluster.list_jobs():
        status = job.get("status", {})
        counts = {name: status.get(name, 0) for name in ("active", "succeeded", "failed")}
        found.append({"id": job["metadata"]["labels"][RUN_LABEL], "created": job["metadata"]["creationTimestamp"], **counts})
    return found
