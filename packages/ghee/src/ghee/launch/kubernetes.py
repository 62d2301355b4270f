"""Every stage on Pods, by swimmy. The only file of ghee that imports swimmy.

    user's process                Pod of the driver                        Pods of the stages
    ──────────────                ─────────────────                        ──────────────────
    start_driver ── swimmy ────►  ghee.run(…, on=KubernetesLauncher)
      log, outcome  ◄───────────    start(worlds) ── swimmy, a Job a stage ─►  run_in_pod: one rank
                                    driver's inbox  ◄══ CURVE over TCP ═════►  ranks' inboxes

The user's process speaks with the Kubernetes API and the driver's agent only; the stages' Pods end with the driver's Job,
which owns theirs.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ghee.errors import MachineError
from ghee.install import how_to_install_ours
from ghee.launch.contract import Death, World
from ghee.protocol.messages import Cause, RankId
from ghee.ranks.runner import run_rank
from ghee.resources import Resources
from ghee.transfer.contract import Endpoint, Store
from ghee.transfer.frames import FrameStore
from ghee.transfer.member import Member
from ghee.transfer.zeromq import Keys, ZmqEndpoint

if TYPE_CHECKING:
    import swimmy

DEFAULT_MEMORY = "1Gi"
"""Of a Pod whose stage asks for nothing; Kubernetes kills what goes over it, so say memory= for more."""

_KILLED = ("signal", "killed")


@dataclass(frozen=True)
class Kubernetes:
    """Where a run's Pods are made: `ghee.run(pipeline, on=ghee.Kubernetes(image="team/train:1.2"))`.

    `image` is that of the driver and of every stage that names none; it needs Python of the same minor version, ghee,
    swimmy and mpich. `kubeconfig`, `context` and `namespace` default to what kubectl uses. `service_account` is the
    driver's, with the Role that `swimmy rbac --service-account` prints. `home` is a folder on a volume that all Pods
    mount: checkpoints with values and `ghee resume` need it. `mpi` is the MPI of the images. `pods` are further options
    of `swimmy.Pods`, for all Pods: volumes, env, node_selector, tolerations, patch and others; what a stage asks for
    itself goes before them. `driver` are those of the driver's Pod alone.
    """

    image: str | None = None
    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None
    service_account: str = "ghee"
    home: str | None = None
    mpi: Literal["mpich", "openmpi", "none"] = "mpich"
    pods: Mapping[str, Any] = field(default_factory=dict)
    driver: Mapping[str, Any] = field(default_factory=dict)


def _swimmy() -> Any:
    how = how_to_install_ours("swimmy", "packages/ghee")
    try:
        import swimmy
    except ImportError as error:
        raise MachineError(f'on="kubernetes" needs swimmy ({error}): {how}') from error
    if "submit_each" not in getattr(swimmy, "__all__", ()):
        raise MachineError(
            f'on="kubernetes" needs the swimmy of ghee\'s repository; {swimmy.__file__} is another project of that name. '
            f"Remove it (python -m pip uninstall swimmy), then: {how}"
        )
    return swimmy


def cluster(settings: Kubernetes) -> swimmy.Cluster:
    """The cluster that the settings name. Raises swimmy's ClusterUnreachable where none is known."""
    return _swimmy().Cluster(settings.kubeconfig, settings.context, settings.namespace)  # type: ignore[no-any-return]


def driver_pods(settings: Kubernetes) -> swimmy.Pods:
    """What the driver's Pod is. Raises MachineError without an image."""
    asked: dict[str, Any] = {"cpus": "500m", "memory": DEFAULT_MEMORY, **settings.pods, **settings.driver}
    asked["env"] = {**asked.get("env", {}), "GHEE_HOME": settings.home or "/tmp/ghee"}
    return _pods(image=_image(None, settings), replicas=1, service_account=settings.service_account, **asked)


def stage_pods(resources: Resources, replicas: int, settings: Kubernetes) -> swimmy.Pods:
    """What the Pods of a world are: what the stage asks for itself goes before what is set for all Pods."""
    default = Resources()
    own = {"cpus": resources.cpus, "memory": resources.memory, "gpus": resources.gpus}
    asked: dict[str, Any] = {"cpus": default.cpus, "memory": DEFAULT_MEMORY, **settings.pods}
    asked |= {name: value for name, value in own.items() if value != getattr(default, name)}
    return _pods(image=_image(resources.image, settings), replicas=replicas, **asked)


def _pods(**asked: Any) -> swimmy.Pods:
    """swimmy's description. Raises MachineError for an option that it does not have."""
    known = [each.name for each in fields(_swimmy().Pods)]
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise MachineError(f"{name!r} is no option of swimmy.Pods, which pods= and driver= are for; {hint}")
    return _swimmy().Pods(**asked)  # type: ignore[no-any-return]


def _image(image: str | None, settings: Kubernetes) -> str:
    found = image or settings.image
    if found is None:
        raise MachineError(
            'on="kubernetes" needs an image: on=ghee.Kubernetes(image="registry/team/train:1.2"), or image= of every stage '
            "and of the driver (docs/cluster.md says how to build one)"
        )
    return found


def explain(stages: Sequence[tuple[str, Resources, bool]], settings: Kubernetes) -> str:
    """The YAML of the Jobs that a run would create. `stages`: name, resources, whether it is one world."""
    from swimmy import manifests

    mpi = _swimmy().mpi
    jobs = [manifests.job("ghee-driver", driver_pods(settings), mpi(1, kind="none"))]
    for name, resources, one_world in stages:
        pods = stage_pods(resources, resources.replicas, settings)
        job = f"ghee-{name}".replace("_", "-").lower()
        jobs.append(manifests.job(job, pods, mpi(resources.ranks, kind=settings.mpi), alone=not one_world))
    return str(manifests.as_yaml(jobs))


class DriverHandle:
    """The driver of a run as the user's process follows it: swimmy's handle, and the connection that it needs."""

    def __init__(self, start: Callable[[swimmy.Cluster], swimmy.Handle], settings: Kubernetes) -> None:
        self._cluster = cluster(settings)
        try:
            self.swimmy = start(self._cluster)
        except BaseException:
            self._cluster.close()
            raise

    def error(self) -> BaseException | None:
        """Wait for the end; what it ended with if the driver could not tell itself, such as a lost Pod."""
        try:
            self.swimmy.result()
        except _swimmy().errors.SwimmyError as error:
            return error  # type: ignore[no-any-return]
        return None

    def close(self) -> None:
        """Stop following; a run that is not detached ends. May be called twice."""
        self.swimmy.close()
        self._cluster.close()


Stages = Sequence[tuple[int, str, Resources, bool]]
"""Of each stage that has Pods: index, name, resources, whether it is one world."""


def start_driver(
    function: Callable[..., Any], args: Sequence[Any], settings: Kubernetes, stages: Stages, *, detach: bool = False
) -> DriverHandle:
    """Call the function in a Pod that may create the others, with the Pods of these stages as its last argument: they are
    made at the same time, so that they start while the driver does. Not where a queue lets Jobs in: it might let in those of
    the stages and not the driver's.
    """
    swimmy = _swimmy()
    if "queue" in settings.pods:
        stages = []
    ahead = {
        index: swimmy.ahead(
            name, pods=stage_pods(resources, resources.auto.min if resources.auto else resources.replicas, settings),
            mpi=swimmy.mpi(resources.ranks, kind=settings.mpi), each=not one_world,
        )
        for index, name, resources, one_world in stages
    }  # fmt: skip
    asked: dict[str, Any] = {"pods": driver_pods(settings), "name": "ghee", "detach": detach, "ahead": list(ahead.values())}
    return DriverHandle(
        lambda cluster: swimmy.submit(_in_image(function), [*args, ahead], cluster=cluster, **asked), settings
    )


def attach_driver(run: str, settings: Kubernetes) -> DriverHandle:
    """Follow the driver of a detached run again. Raises swimmy's RunGone."""
    return DriverHandle(lambda cluster: _swimmy().attach(run, cluster=cluster), settings)


def cancel_driver(run: str, settings: Kubernetes) -> None:
    """Delete the driver's Job, and all that it owns with it. Raises swimmy's RunGone."""
    with contextlib.closing(cluster(settings)) as connected:
        _swimmy().cancel(run, cluster=connected)


def list_drivers(settings: Kubernetes) -> list[dict[str, Any]]:
    """The runs on the cluster: swimmy's, without those that a driver has started for its stages."""
    with contextlib.closing(cluster(settings)) as connected:
        found = _swimmy().runs(cluster=connected)
    return [run for run in found if re.fullmatch(r"ghee-[0-9a-f]{6}", run["id"])]


def _in_image(function: Callable[..., Any]) -> Callable[..., Any]:
    """swimmy sends a function's own package along if it is installed from sources; ghee is in the image."""
    return functools.partial(function)


@dataclass(frozen=True)
class _Bootstrap:
    """What a rank needs to join: it travels to the agents over their own channel, and lies in no object of Kubernetes."""

    driver: str
    keys: Keys


def run_in_pod(bootstrap: _Bootstrap, stage: int, name: str, first: int, life: int) -> None:
    """One rank of a stage, called by swimmy in its Pod."""
    swimmy = _swimmy()
    address = os.environ["SWIMMY_ADDRESS"]
    rank = RankId(stage, first + swimmy.rank(), life)
    member = Member(rank, name, ZmqEndpoint(f"tcp://{address}:*", bootstrap.keys), FrameStore(), bootstrap.driver)
    try:
        run_rank(member, swimmy.rank(), swimmy.size(), address=address)
    finally:
        member.close()


class _Started:
    """A world on Pods."""

    def __init__(self, world: World, handle: swimmy.Handle) -> None:
        self.world, self.handle = world, handle
        self.followers: list[threading.Thread] = []
        self.submitted = time.time()
        self.joined = 0.0

    def seconds(self) -> dict[str, float]:
        """How long the parts of its start took: until its Pods ran, agents answered, MPI was up, the ranks had joined."""
        at: dict[str, float] = {}
        for event in self.handle.events:
            name = str(event.entry.get("state") if event.entry["kind"] == "state" else event.entry["kind"])
            at[name] = max(at.get(name, 0.0), event.at) if name == "agent" else at.get(name, event.at)
        marks = [self.submitted, at.get("starting"), at.get("agent"), at.get("running"), self.joined or None]
        parts = zip(("scheduling", "agent", "MPI", "import"), marks, marks[1:], strict=False)
        return {name: end - begin for name, begin, end in parts if begin is not None and end is not None}


class KubernetesLauncher:
    """Worlds on Pods, each a run of swimmy; used in the driver's Pod."""

    def __init__(
        self, settings: Kubernetes, resources: Mapping[int, tuple[Resources, bool]], logs: Path,
        line: Callable[[str, str], None], ahead: dict[int, swimmy.Ahead],
    ) -> None:  # fmt: skip
        """`resources` by stage, and whether the stage is one world; `line` is called with what a rank prints. `ahead` are
        Pods that start already, by stage; each is taken from it once.
        """
        self.cores: int | None = None
        self._settings, self._resources, self._logs, self._line = settings, resources, logs, line
        self._keys, self._ahead = Keys.make(), ahead
        self._address = os.environ["SWIMMY_ADDRESS"]
        self._cluster = _swimmy().Cluster()
        self._owner = self._find_owner()
        self._started: list[_Started] = []
        self._closed: list[_Started] = []
        self._deaths: list[Death] = []
        self._endpoint: ZmqEndpoint | None = None
        self._stopping = False

    def _find_owner(self) -> swimmy.Owner:
        """The driver's own Job: what it owns goes with it, whoever deletes it."""
        run = os.environ["SWIMMY_RUN"]
        job = self._cluster.get_job(run)
        return _swimmy().Owner("batch/v1", "Job", run, job["metadata"]["uid"])  # type: ignore[no-any-return]

    # ── the contract ─────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, worlds: Sequence[World]) -> None:
        """Raise MachineError where a stage has no image, SpecError for what swimmy would refuse."""
        from swimmy.spec import check

        for world in worlds:
            check(*self._asked(world))

    def endpoint(self) -> Endpoint:
        """The driver's inbox, at the Pod's address."""
        self._endpoint = ZmqEndpoint(f"tcp://{self._address}:*", self._keys)
        return self._endpoint

    def member(self) -> tuple[Endpoint, Store]:
        """An inbox for a rank in a thread of the driver."""
        return ZmqEndpoint(f"tcp://{self._address}:*", self._keys), FrameStore()

    def start(self, worlds: Sequence[World]) -> None:
        """Submit a Job for each stage: one world over its Pods, or as many worlds as Pods."""
        for world in worlds:
            for old in [s for s in self._started if (s.world.stage, s.world.replica) == (world.stage, world.replica)]:
                self._started.remove(old)
                threading.Thread(target=old.handle.close, daemon=True).start()
        for stage in dict.fromkeys(world.stage for world in worlds):
            self._start([world for world in worlds if world.stage == stage])

    def _asked(self, world: World) -> tuple[swimmy.Pods, swimmy.Mpi]:
        resources, one_world = self._resources[world.stage]
        pods = stage_pods(resources, resources.replicas if one_world else 1, self._settings)
        return pods, _swimmy().mpi(resources.ranks, kind=self._settings.mpi)

    def _start(self, worlds: Sequence[World]) -> None:
        assert self._endpoint is not None
        bootstrap = _Bootstrap(self._endpoint.address, self._keys)
        arguments = [(bootstrap, world.stage, world.name, world.first, world.life) for world in worlds]
        one_world = self._resources[worlds[0].stage][1]
        pods: swimmy.Pods | swimmy.Ahead
        pods, mpi = self._asked(worlds[0])
        ahead = self._ahead.pop(worlds[0].stage, None)
        if ahead is not None:
            if one_world or ahead.pods.replicas == len(worlds):
                pods = ahead
            else:  # the stage had grown before the run was gone on with
                self._cluster.delete_job(ahead.run(self._owner.name))
        asked: dict[str, Any] = {
            "pods": pods, "mpi": mpi, "cluster": self._cluster, "owner": self._owner,
            "name": f"{os.environ['SWIMMY_RUN']}-{worlds[0].name}",
        }  # fmt: skip
        if one_world or (len(worlds) == 1 and pods is not ahead):
            handles = [_swimmy().submit(_in_image(run_in_pod), arguments[0], reach="direct", **asked)]
        else:
            handles = _swimmy().submit_each(_in_image(run_in_pod), arguments, **asked)
        for world, handle in zip(worlds, handles, strict=True):
            started = _Started(world, handle)
            self._started.append(started)
            for work in (self._follow_logs, self._follow_end):
                thread = threading.Thread(target=work, args=(started,), name=f"ghee {world.name}", daemon=True)
                started.followers.append(thread)
                thread.start()

    def joined(self, rank: RankId, pid: int) -> None:
        """swimmy watches it."""
        for started in self._started:
            if rank in started.world.ranks:
                started.joined = time.time()

    def deaths(self) -> list[Death]:
        """What the followers have seen."""
        found, self._deaths = self._deaths, []
        return found

    def stop(self, seconds: float) -> None:
        """Wait for the ranks to return."""
        self._stopping = True
        for started in self._started:
            try:
                started.handle.wait_state("done", "failed", timeout=seconds)
            except TimeoutError:
                pass

    def close(self) -> None:
        """Delete every world's Job, all at once."""
        self._stopping = True
        closing = [threading.Thread(target=started.handle.close) for started in self._started]
        for thread in closing:
            thread.start()
        for thread in [*closing, *(thread for started in self._started for thread in started.followers)]:
            thread.join()
        self._closed += self._started
        self._started.clear()
        self._cluster.close()

    # ── following ────────────────────────────────────────────────────────────────────────────────────────────────

    def _follow_logs(self, started: _Started) -> None:
        world = started.world
        for line in started.handle.logs():
            source = f"{world.name} {world.first + (line.rank or 0)}"
            with (self._logs / f"{world.name}-{world.first + (line.rank or 0)}.log").open("a") as log:
                log.write(line.text + "\n")
            if line.rank is not None:
                self._line(source, line.text)

    def _follow_end(self, started: _Started) -> None:
        errors = _swimmy().errors
        try:
            started.handle.result()
            return  # told to stop
        except errors.SwimmyError as error:
            if self._stopping:
                return
            lost = error.retryable or isinstance(error, errors.OutOfMemory)
            index = started.world.first + (error.rank or 0)
            reason = f"rank {index} of stage {started.world.name!r}: {error}"
            dead = RankId(started.world.stage, index, started.world.life)
            killed = lost or error.reason in _KILLED
            self._deaths.append(Death(dead, reason, Cause.KILLED if killed else Cause.EXITED))
        if self._endpoint is not None:
            self._endpoint.wake()

    def waiting_for(self) -> list[str]:
        """Worlds whose Pods are not all there, each with what it waits for."""
        waiting = [s for s in self._started if s.handle.state in ("submitted", "scheduling")]
        return [f"{s.world.name} {s.world.replica}: {s.handle.status()}" for s in waiting]

    # ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────

    def requests(self) -> dict[str, int]:
        """What was asked of the API server so far, by verb and kind."""
        return dict(self._cluster.requests)

    def starts(self) -> dict[str, dict[str, float]]:
        """By world: the seconds of each part of its start."""
        return {f"{s.world.name} {s.world.replica}": s.seconds() for s in [*self._started, *self._closed]}
