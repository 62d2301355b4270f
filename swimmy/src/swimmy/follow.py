"""The thread behind a handle: creates the run's objects, follows Pods and leader, and ends with a result or with a
reason.
"""

from __future__ import annotations

import hashlib
import json
import queue
import time
from collections.abc import Callable
from typing import Any

import cloudpickle

from swimmy import errors
from swimmy.channel import Caller, Loop, Waker, new_context
from swimmy.explain import STRONG, explained
from swimmy.forward import Forward
from swimmy.kubernetes import NotFound
from swimmy.objects import Objects
from swimmy.patience import AWAY
from swimmy.protocol import CHUNK, PORT, Header, differences, facts
from swimmy.reasons import Finding, Table, refined
from swimmy.record import Access, Record, Spec

_FOLLOW_WAIT = 2.0  # seconds that the leader may hold back an answer when there is nothing to tell
_AGAIN = _FOLLOW_WAIT + 3  # seconds after which a request that had no answer is sent once more
_HELLO_AGAIN = 2.0  # the same, of the first: the agent may have begun to listen since
_LAST = 15.0  # seconds in which a run that has ended tries to delete its objects; what is left then ends by itself
_EVENT_PAUSES = (
    0.0,
    5.0,
    10.0,
    20.0,
    40.0,
    60.0,
)  # between readings of the events, while something waits without a reason


class Follower:
    """Runs in a thread of its own; ``request_end`` may be called from any."""

    def __init__(self, objects: Objects, spec: Spec, pod: int | None = None) -> None:
        """``pod``: follow that Pod of the Job alone, which is a world of its own; ``spec`` is then that Pod's."""
        self.objects, self.cluster, self.spec, self.record = objects, objects.cluster, spec, Record()
        self.pod = pod
        self.table = Table(spec.run, spec.pods, time.monotonic(), first=pod or 0)
        objects.join(pod, self._pod_changed, self._watch_trouble)
        self._loop, self._waker = Loop(), Waker()
        self._loop.watch(self._waker, self._waker.drain)
        self._changes: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._end: str | None = None
        self._trouble: str | None = None
        self._context = new_context()
        self._caller: Caller | None = None
        self._forward: Forward | None = None
        self._events_read = 0
        self._events_due = 0.0
        self._finding: tuple[float, Finding] | None = None
        self._peers: dict[int, str] = {}
        self._lost_pods: dict[int, set[str]] = {}
        self._after = 0
        self._failed: dict[str, Any] | None = None
        self._done: dict[int, int] = {}

    # -- from other threads ---------------------------------------------------------------------------------------

    def request_end(self, how: str) -> None:
        """``how``: "cancel" ends the run, "leave" only stops following it."""
        self._end = how
        self._waker.wake()

    def _pod_changed(self, kind: str, pod: Any) -> None:
        self._changes.put((kind, pod))
        self._waker.wake()

    def _watch_trouble(self, trouble: str | None) -> None:
        self._trouble = trouble
        self.record.note(kind="watch", trouble=trouble)

    # -- the run --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        code, reason = 1, "the client gave up"
        try:
            with self.cluster.patience(None, lambda: self._end is not None):
                self._go()
            code, reason = 0, "done"
        except errors.SwimmyError as error:
            self.record.error = error
            reason = error.reason or type(error).__name__
        except BaseException as error:
            self.record.error = error
            raise
        finally:
            self._finish(code, reason)

    def _go(self) -> None:
        access = self.record.access = self.objects.create()
        self.record.note(kind="created", job=self.spec.run)
        self.record.enter("scheduling")
        self._until(self.table.all_running, self._start_problem)
        self._peers = self._addresses()
        self.record.enter("starting")
        self._lead(access)
        self.record.begin()
        self._follow(access)
        self.record.results = [self._result(rank) for rank in sorted(self._done)]
        self.record.enter("done")

    # -- waiting --------------------------------------------------------------------------------------------------

    def _turn(self, seconds: float) -> None:
        """One wait; takes Pod changes, reads events when they are needed, raises what is known to be fatal."""
        self._loop.turn(seconds)
        while True:
            try:
                kind, item = self._changes.get_nowait()
            except queue.Empty:
                break
            if kind == "error":
                raise item
            self.table.change(kind, item)
        if self._end == "cancel":
            raise errors.Cancelled(f"run {self.spec.run} was cancelled")
        if self._end == "leave":
            raise _Left
        now = time.monotonic()
        self.objects.tend(now)
        self._read_events(now)
        self._check_pods(now)

    def _read_events(self, now: float) -> None:
        if not self.table.waits_long(now):
            self._events_read, self._events_due = 0, now
            return
        if now >= self._events_due:
            self.table.events = self.objects.events()
            if self.table.lacks_pods():
                self.table.job = self.objects.job()
            self._events_read = min(self._events_read + 1, len(_EVENT_PAUSES) - 1)
            self._events_due = now + _EVENT_PAUSES[self._events_read]

    def _check_pods(self, now: float) -> None:
        if self._finding is not None:
            since, finding = self._finding
            if now - since > 2.0:  # time for the leader to say more
                raise self._with_log(finding)
            return
        for finding in self.table.findings(now):
            if finding.fatal and not self._comes_back(finding):
                self._finding = (now, finding)
                if self._caller is None:
                    raise self._with_log(finding)
                return

    def _comes_back(self, finding: Finding) -> bool:
        """Whether the Job replaces the Pod that is lost."""
        if not self.spec.pods.restarts or issubclass(finding.error, errors.NotPlaced):
            return False
        each = next((seen for seen in self.table.seen.values() if seen.name == finding.pod), None)
        if each is None:
            return False
        lost = self._lost_pods.setdefault(each.index, set())
        if finding.pod not in lost:
            lost.add(finding.pod)
            self.record.note(kind="lost", index=each.index, reason=finding.reason, text=finding.sentence)
        return len(lost) <= self.spec.pods.restarts

    def _with_log(self, finding: Finding) -> errors.SwimmyError:
        if finding.error is errors.Deleted:
            try:
                job = self.cluster.get_job(self.spec.run)
            except (NotFound, errors.ClusterUnreachable):
                job = None
            finding = refined(finding, job, self.spec.pods)
        wants_log = issubclass(finding.error, errors.AgentError | errors.RankFailed)
        log = tuple(self.cluster.pod_log(finding.pod, 20)) if wants_log else ()
        return finding.raised(log)

    def _until(self, ready: Callable[[], bool], problem: Callable[[], errors.SwimmyError | None]) -> None:
        while not ready():
            self._turn(0.5)
            if (error := problem()) is not None:
                raise error

    def _start_problem(self) -> errors.SwimmyError | None:
        now = time.monotonic()
        limit = self.spec.pods.schedule_timeout + self.spec.pods.start_timeout
        if now - self.table.started <= limit:
            return None
        return errors.NotPlaced(
            f"run {self.spec.run} did not start within {limit:g} s: {self.table.summary(now)}", reason="StartTimeout"
        )

    def _call(
        self, header: Header, body: bytes = b"", *, limit: float | None = None, again: float | None = _AGAIN
    ) -> tuple[Header, bytes]:
        """One request to the leader; ``again`` repeats it while no answer comes: what it was sent by may have been cut."""
        assert self._caller is not None
        got: list[tuple[Header, bytes]] = []
        limit = self._silence() if limit is None else limit
        began = sent = now = time.monotonic()
        away = 0.0
        self._caller.call(header, body, lambda *answer: got.append(answer))
        while not got:
            self._turn(0.5)
            passed, now = time.monotonic() - now, time.monotonic()
            if again is not None and now - sent > again and not got:
                sent = now
                self._caller.call(header, body, lambda *answer: got.append(answer))
            if not self.spec.direct and self._trouble is not None and away < AWAY:
                began, away = began + passed, away + passed  # the way to the leader leads through the API server
            if now - began > limit and not got and self._finding is None:
                if self.spec.direct or away >= AWAY or self.cluster.is_reachable():
                    raise self._silent(now - began)
                began, away = now, away + limit
        if "error" in got[0][0]:
            raise errors.LaunchError(f"the agent of run {self.spec.run} refused {header['op']}: {got[0][0]['error']}")
        return got[0]

    def _silence(self) -> float:
        """Seconds after which a leader that does not answer is given up. What lies between is more often the cause than
        the leader where it is reached through the API server; the run goes on by itself until the lease is over.
        """
        return self.spec.pods.silence if self.spec.direct else max(self.spec.pods.silence, self.spec.pods.lease)

    def _silent(self, seconds: float) -> errors.SwimmyError:
        leader = self.table.current().get(0)
        name = leader.name if leader is not None else self.spec.run
        if leader is not None and leader.condition("Ready").get("status") == "False":
            text = f"Pod {name} on {leader.node} was lost with its machine (the machine is not ready); run it again"
            return errors.NodeLost(text, pod=name, reason="NodeNotReady")
        more = f" (port-forward: {self._forward.trouble})" if self._forward is not None and self._forward.trouble else ""
        return errors.AgentSilent(
            f"the agent in Pod {name} has not answered for {seconds:.0f} s though the Pod runs{more}; is its network "
            "closed to this client?",
            pod=name, reason="AgentSilent", log=self.cluster.pod_log(name, 20),
        )  # fmt: skip

    # -- the leader -----------------------------------------------------------------------------------------------

    def _addresses(self) -> dict[int, str]:
        return {
            index: f"{each.address}:{PORT}" for index, each in self.table.current().items() if each.running and each.address
        }

    def _lead(self, access: Access) -> None:
        """Connects to the leader, compares versions, hands over the payload and the order to start."""
        self._disconnect()
        leader = self.table.current()[0]
        if self.spec.direct:
            address = self._peers[0]
        else:
            self._forward = self.cluster.forward(leader.name, PORT)
            address = self._forward.address
        self._caller = Caller(self._context, access.client, access.server, address)
        self._loop.watch(self._caller.socket, self._caller.receive)
        hello, _ = self._call({"op": "hello"}, limit=self.spec.pods.start_timeout, again=_HELLO_AGAIN)
        different = differences(facts(), hello["facts"])
        if different:
            raise errors.VersionMismatch(
                f"code pickled here may not run in image {self.spec.pods.image!r} (Pod {leader.name}): "
                f"{', '.join(different)}. Use an image with the same versions, or run from an environment like the image's",
                pod=leader.name, reason="VersionMismatch",
            )  # fmt: skip
        if hello["started"]:
            return
        if self.spec.attached is not None:
            raise errors.RunGone(f"run {self.spec.run} was never started: the process that submitted it died before")
        digest, total = hashlib.sha256(self.spec.payload).hexdigest(), len(self.spec.payload)
        have = 0
        while have < total:
            request = {"op": "put", "digest": digest, "offset": have, "total": total}
            answer, _ = self._call(request, self.spec.payload[have : have + CHUNK])
            have = answer["have"]
        self._call(self._order(digest, total))
        self.objects.begun(self.pod)

    def _order(self, digest: str, total: int) -> Header:
        spec = self.spec
        asked = {
            "replicas": spec.pods.replicas,
            "ranks_per_pod": spec.mpi.ranks_per_pod,
            "mpi": spec.mpi.kind,
            "per_pod": spec.mpi.world == "pod",
            "facts": facts(),
        }
        return {
            "op": "start", "digest": digest, "total": total, "detach": spec.detach, "asked": asked, "peers": self._peers,
            "silent_after": spec.pods.silence, "start_after": spec.pods.start_timeout, "restarts": spec.pods.restarts,
        }  # fmt: skip

    def _follow(self, access: Access) -> None:
        while True:
            request = {"op": "follow", "after": self._after, "wait": min(_FOLLOW_WAIT, self.spec.pods.lease / 4)}
            header, body = self._call(request)
            for entry in json.loads(body):
                self._after = entry.pop("seq")
                self._take(entry)
            if self._failed is not None:
                raise self._explain(self._failed)
            if header["state"] == "done" and len(self._done) == self._total():
                return
            self._replace(access)

    def _total(self) -> int:
        return self.spec.pods.replicas * self.spec.mpi.ranks_per_pod

    def _take(self, entry: dict[str, Any]) -> None:
        kind = entry["kind"]
        if kind == "log":
            with self.record.changed:
                self.record.lines.append((entry["rank"], entry["index"], entry["text"]))
                self.record.changed.notify_all()
            return
        if kind == "world":
            self.record.enter("running")
        elif kind == "done":
            self._done[entry["rank"]] = entry["bytes"]
        elif kind == "cause":
            self._failed = entry
        self.record.note(**{name: value for name, value in entry.items() if name != "pickled"})

    def _replace(self, access: Access) -> None:
        """Tells the leader of Pods that came back; a leader that came back is told everything."""
        if not self.spec.pods.restarts:
            return
        addresses = self._addresses()
        new = {index: address for index, address in addresses.items() if self._peers.get(index) != address}
        if not new:
            return
        self._peers.update(new)
        if 0 in new:
            self._after, self._done = 0, {}
            self._until(self.table.all_running, self._start_problem)
            self._peers = self._addresses()
            self._lead(access)
        else:
            self._call({"op": "peers", "peers": new}, again=None)

    def _explain(self, entry: dict[str, Any]) -> errors.SwimmyError:
        """The leader's reason, or what the cluster says where that is the cause of it."""
        if entry["cause"] not in STRONG:
            until = time.monotonic() + 2.5
            while self._finding is None and time.monotonic() < until:
                self._turn(0.25)
            if self._finding is not None:
                return self._with_log(self._finding[1])
        names = {index: each.name for index, each in self.table.current().items()}
        last = [text for rank, _, text in self.record.lines if rank == entry["rank"]][-20:]
        return explained(entry, self.spec.pods, names, last)

    def _result(self, rank: int) -> Any:
        pieces = []
        offset, total = 0, self._done[rank]
        while offset < total:
            _, piece = self._call({"op": "fetch", "rank": rank, "offset": offset})
            pieces.append(piece)
            offset += len(piece)
        return cloudpickle.loads(b"".join(pieces))

    # -- the end --------------------------------------------------------------------------------------------------

    def _disconnect(self) -> None:
        if self._caller is not None:
            self._loop.forget(self._caller.socket)
            self._caller.close()
            self._caller = None
        if self._forward is not None:
            self._forward.close()
            self._forward = None

    def _finish(self, code: int, reason: str) -> None:
        """Ends the Pods (unless the run is left alone), and everything that this process opened."""
        try:
            stays = self._end == "leave"
            if not stays and self._caller is not None:
                self._caller.call({"op": "stop", "code": code, "reason": reason})
            with self.cluster.patience(_LAST):
                self.objects.leave(self.pod, delete=not stays)
        except errors.SwimmyError as error:
            # The agents' lease and the Job's time to live end what could not be ended here.
            self.record.note(kind="cleanup", trouble=str(error))
        finally:
            self._disconnect()
            self._context.term()
            self._waker.close()
            with self.record.changed:
                self.record.ended = True
                if self.record.error is not None:
                    self.record.state = "cancelled" if isinstance(self.record.error, errors.Cancelled) else "failed"
                self.record.changed.notify_all()


class _Left(errors.SwimmyError):
    def __init__(self) -> None:
        super().__init__("this client no longer follows the run")
