"""What a run has on the cluster (Job, Secret, one watch over its Pods), shared by those who follow it.

One follower follows the whole run, or each follows one Pod that is a world of its own: then Job, Secret and watch are still
one, so that the requests to the API server do not grow with the Pods.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from swimmy import errors, manifests
from swimmy.channel import Keys
from swimmy.kubernetes import Cluster, NotFound, PodSource
from swimmy.manifests import Manifest, Owner
from swimmy.patience import pause
from swimmy.record import Access, Ahead, Spec
from swimmy.spec import Pods
from swimmy.watch import ListWatch

_EVENTS_LAST = 3.0  # seconds in which a second follower that asks for the events, or the Job, gets those of the first

Changed = Callable[[str, Any], None]
"""Told of each Pod: "set" or "deleted" and the Pod, or "error" and what ended the watch."""


class Objects:
    """The objects of one run, used from the threads of all its followers. `spec.pods.replicas` are those of the Job."""

    def __init__(self, cluster: Cluster, spec: Spec) -> None:
        self.cluster, self.spec = cluster, spec
        self._lock = threading.Lock()
        self._followers: dict[int | None, tuple[Changed, Callable[[str | None], None]]] = {}
        self._waiting: set[int | None] = set()
        self._access: Access | None = spec.attached or spec.made
        self._error: errors.SwimmyError | None = None
        self._created = self._access is not None
        self._source: PodSource | None = None
        self._watcher: threading.Thread | None = None
        self._stopping = threading.Event()
        self._events: tuple[float, list[Manifest]] | None = None
        self._job: tuple[float, Manifest | None] | None = None
        self._deadline_due = False
        self._deadline_failures = 0
        self._deadline_next = 0.0

    def join(self, pod: int | None, changed: Changed, trouble: Callable[[str | None], None]) -> None:
        """Follow one Pod of the Job by its index, or all of them; before anybody calls `create`. Both are called from the
        watching thread.
        """
        self._followers[pod] = (changed, trouble)
        self._waiting.add(pod)

    def create(self) -> Access:
        """Create the objects and begin to watch, once; who comes second gets the same keys, or the same error."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._access is None:
                try:
                    self._access = self._create()
                except errors.SwimmyError as error:
                    self._error = error
                    raise
            if self._watcher is None:
                self._source = self.cluster.pods_of(self.spec.run)
                watch = ListWatch(self._source, self._changed, self._trouble, self._stopping.wait)
                name = f"watch {self.spec.run}"
                self._watcher = threading.Thread(target=self._watch, args=(watch,), name=name, daemon=True)
                self._watcher.start()
            return self._access

    def _create(self) -> Access:
        """Job, then Secret and NetworkPolicy, which the Job owns from their first moment: a client killed in between
        leaves nothing.
        """
        spec = self.spec
        job = self.cluster.create(manifests.job(spec.run, spec.pods, spec.mpi, owner=spec.owner, alone=spec.alone))
        self._created = True
        owner = Owner("batch/v1", "Job", spec.run, job["metadata"]["uid"])
        server, agent, own = Keys.new(), Keys.new(), Keys.new()
        self._create_beside(spec.run, owner, spec.pods, server, agent, own)
        for each in spec.ahead:
            self._create_ahead(each, owner)
        return Access(own, server.public)

    def _create_ahead(self, ahead: Ahead, owner: Owner) -> None:
        """What the run's own function will use: gone with the run's Job, whoever deletes that."""
        name = ahead.run(self.spec.run)
        described = manifests.job(
            name, ahead.pods, ahead.mpi, owner=owner, alone=ahead.alone, after=manifests.boot(self.spec.pods)
        )
        job = self.cluster.create(described)
        own = Owner("batch/v1", "Job", name, job["metadata"]["uid"])
        self._create_beside(name, own, ahead.pods, ahead.server, ahead.agent, ahead.client)

    def _create_beside(self, run: str, owner: Owner, pods: Pods, server: Keys, agent: Keys, client: Keys) -> None:
        """What a run's Job owns: the Secret, and the NetworkPolicy where it is wanted."""
        keys = {
            "server-public": server.public,
            "server-secret": server.secret,
            "agent-public": agent.public,
            "agent-secret": agent.secret,
            "client-public": client.public,
        }
        self.cluster.create(manifests.secret(run, keys, owner))
        if pods.network_policy:
            self.cluster.create(manifests.network_policy(run, owner))

    # -- the watch ------------------------------------------------------------------------------------------------

    def _watch(self, watch: ListWatch) -> None:
        try:
            watch.run()
        except errors.SwimmyError as error:
            for changed, _ in self._listening():
                changed("error", error)

    def _listening(self) -> list[tuple[Changed, Callable[[str | None], None]]]:
        with self._lock:
            return list(self._followers.values())

    def _changed(self, kind: str, pod: Any) -> None:
        index = int(pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index", -1))
        # Under the lock: a follower that has left must not be told any more.
        with self._lock:
            for who in (None, index):
                if who in self._followers:
                    self._followers[who][0](kind, pod)

    def _trouble(self, trouble: str | None) -> None:
        with self._lock:
            for _, told in self._followers.values():
                told(trouble)

    def events(self) -> list[Manifest]:
        """What the cluster said about the run, as far as it can be had: they explain, and nothing hangs on them."""
        with self._lock:
            if self._events is None or time.monotonic() - self._events[0] > _EVENTS_LAST:
                found = [] if self._events is None else self._events[1]
                with contextlib.suppress(errors.ClusterUnreachable), self.cluster.patience(0):
                    found = self.cluster.list_events(self.spec.run)
                self._events = (time.monotonic(), found)
            return self._events[1]

    def job(self) -> Manifest | None:
        """The run's Job as it was seen last, `{}` before it could be had; None when it is gone."""
        with self._lock:
            if self._job is None or time.monotonic() - self._job[0] > _EVENTS_LAST:
                found: Manifest | None = {} if self._job is None else self._job[1]
                try:
                    with self.cluster.patience(0):
                        found = self.cluster.get_job(self.spec.run)
                except NotFound:
                    found = None
                except errors.ClusterUnreachable:
                    pass  # looked at again, and what was known until now still counts
                self._job = (time.monotonic(), found)
            return self._job[1]

    # -- the end --------------------------------------------------------------------------------------------------

    def begun(self, pod: int | None) -> None:
        """That follower's agents keep a lease now. When all do, the Job needs no time limit against a dead client."""
        with self._lock:
            self._deadline_due = True
            self._waiting.discard(pod)
        self.tend(time.monotonic())

    def tend(self, now: float) -> None:
        """Lift the Job's time limit, once that is due. Never waits: the run is at work, and its agents are to be heard."""
        with self._lock:
            if not self._deadline_due or self._waiting or now < self._deadline_next:
                return
            self._deadline_due = False
        try:
            with self.cluster.patience(0):
                self._set_deadline()
        except errors.ClusterUnreachable as away:
            with self._lock:
                self._deadline_due = True
                self._deadline_failures += 1
                self._deadline_next = now + pause(self._deadline_failures, away.retry_after)

    def _set_deadline(self) -> None:
        deadline = self.spec.pods.deadline
        self.cluster.set_deadline(self.spec.run, int(deadline) if deadline else None)

    def leave(self, pod: int | None, *, delete: bool) -> None:
        """That follower has ended. The last one ends the watch and, with `delete`, the Job. Raises what that raises."""
        with self._lock:
            if self._followers.pop(pod, None) is None:
                return
            self._waiting.discard(pod)
            last = not self._followers
        try:
            if last and delete and self._created:
                self.cluster.delete_job(self.spec.run)
        finally:
            if last:
                self._stopping.set()
                if self._source is not None:
                    self._source.stop()
                if self._watcher is not None:
                    self._watcher.join()
