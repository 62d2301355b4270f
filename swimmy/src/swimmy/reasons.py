"""Pods as the API server describes them -> what happened, in a sentence with what to do. Pure: the time is an argument.

The reason for one trouble may stand in a condition, in a container's state, in the Pod's status or in an event only;
``Table`` reads them in that order, gives what may pass by itself some time, and keeps the first cause.
"""

from __future__ import annotations

import re
import signal
from collections import Counter
from dataclasses import dataclass, replace

from swimmy import errors
from swimmy.pod import Object, Seen
from swimmy.spec import Pods

# Seconds that each trouble is given, since it may pass: a registry hiccup, a Secret that is created a moment later.
_PATIENCE = {
    "ErrImagePull": 20.0,
    "ImagePullBackOff": 20.0,
    "RegistryUnavailable": 20.0,
    "CreateContainerConfigError": 10.0,
    "CreateContainerError": 5.0,
    "FailedMount": 8.0,
    "FailedAttachVolume": 20.0,
    "FailedCreatePodSandBox": 30.0,
    "FailedCreate": 3.0,
}
_LATE = ("failed to sync", "no relationship found between node")
"""What a kubelet says of a volume that it will get: it is busy, or the API server has not heard yet that the Pod and its
volumes belong to the kubelet's node. What is not there is told in other words."""
_IMAGE = (
    "ErrImagePull",
    "ImagePullBackOff",
    "RegistryUnavailable",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
)
_COMMAND = ("StartError", "ContainerCannotRun", "RunContainerError")


@dataclass(frozen=True)
class Finding:
    """Something that keeps a Pod from running. ``fatal`` when waiting longer would be of no use."""

    error: type[errors.SwimmyError]
    pod: str
    reason: str
    sentence: str
    fatal: bool
    since: float

    def raised(self, log: tuple[str, ...] = ()) -> errors.SwimmyError:
        return self.error(self.sentence, pod=self.pod, reason=self.reason, log=log)


class Table:
    """The Pods of one run: takes changes and events, tells what is wrong and how far it is."""

    def __init__(self, run: str, pods: Pods, now: float, first: int = 0) -> None:
        """``first``: the index that counts as 0, where only one of a Job's Pods is looked at."""
        self.run, self.pods, self.started, self.first = run, pods, now, first
        self.seen: dict[str, Seen] = {}
        self.events: list[Object] = []
        self.job: Object | None = {}
        """The Job, where it was looked at; None when it is gone."""

    def change(self, kind: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if uid in self.seen:
            self.seen[uid].pod = pod
        else:
            self.seen[uid] = Seen(pod)
        self.seen[uid].gone = kind == "deleted"

    def current(self) -> dict[int, Seen]:
        """The newest Pod of each index, counted from the first."""
        found: dict[int, Seen] = {}
        for each in sorted(self.seen.values(), key=lambda each: each.pod["metadata"].get("creationTimestamp", "")):
            index = each.index - self.first
            other = found.get(index)
            if other is None or other.leaving or other.phase == "Failed" or not each.leaving:
                found[index] = each
        return found

    def all_running(self) -> bool:
        current = self.current()
        return len(current) == self.pods.replicas and all(each.running and each.address for each in current.values())

    def lacks_pods(self) -> bool:
        """Whether Pods of the run were not seen. They may be gone already: those that were made ahead are followed late."""
        return len(self.current()) < self.pods.replicas

    def waits_long(self, now: float) -> bool:
        """Whether something waits whose reason may stand in an event only."""
        if self.lacks_pods():
            return now - self.started > 1.0
        starting = [each for each in self.current().values() if each.phase == "Pending" and each.node]
        return any(now - each.since.setdefault("starting", now) > 2.0 for each in starting)

    # -- what is wrong --------------------------------------------------------------------------------------------

    def findings(self, now: float) -> list[Finding]:
        found = [finding for each in self.current().values() if (finding := self.finding(each, now)) is not None]
        if self.lacks_pods() and (finding := self._job_ended() or self._no_pods(now)) is not None:
            found.append(finding)
        return found

    def finding(self, each: Seen, now: float) -> Finding | None:
        """What is wrong with this Pod now, or None."""
        lost = self._lost(each, now)
        if lost is not None:
            return lost
        if each.phase == "Failed" or "terminated" in each.container.get("state", {}):
            return self._ended(each, now)
        if each.running:
            return None
        return self._unscheduled(each, now) or self._waiting(each, now) or self._by_event(each, now)

    def _age(self, each: Seen, reason: str, now: float) -> float:
        return now - each.since.setdefault(reason, now)

    def _unscheduled(self, each: Seen, now: float) -> Finding | None:
        condition = each.condition("PodScheduled")
        if condition.get("status") != "False" or condition.get("reason") not in ("Unschedulable", "SchedulerError"):
            return None
        age = self._age(each, "Unschedulable", now)
        said = _scheduler(condition.get("message", ""))
        several = [other for other in self.current().values() if other.condition("PodScheduled").get("status") == "False"]
        sentence = (
            f"{len(several)} of {self.pods.replicas} Pods fit on no machine: {said}. Each asks for {asked(self.pods)}: "
            f"{_fit(said)}"
        )
        return Finding(
            errors.Unschedulable, each.name, "Unschedulable", sentence, age >= self.pods.schedule_timeout, now - age
        )

    def _waiting(self, each: Seen, now: float) -> Finding | None:
        waiting = each.container.get("state", {}).get("waiting")
        if waiting is None or waiting.get("reason") in (None, "ContainerCreating", "PodInitializing"):
            return None
        reason, message = waiting["reason"], waiting.get("message", "").strip()
        age = self._age(each, reason if reason != "ImagePullBackOff" else "ErrImagePull", now)
        fatal = age >= _PATIENCE.get(reason, 0.0)
        where = f"Pod {each.name} on {each.node}"
        if reason in _IMAGE:
            return Finding(errors.ImagePullFailed, each.name, reason, self._image(where, reason, message), fatal, now - age)
        if reason == "CreateContainerConfigError":
            sentence = f"{where} cannot start: {message}. Create what is missing in the same namespace, or correct its name"
            return Finding(errors.ContainerConfigError, each.name, reason, sentence, fatal, now - age)
        if reason in ("CreateContainerError", *_COMMAND):
            return Finding(errors.CommandMissing, each.name, reason, self._command(where, message), fatal, now - age)
        sentence = f"{where} waits: {reason}: {message or 'the kubelet says no more'}"
        return Finding(errors.NotPlaced, each.name, reason, sentence, False, now - age)

    def _image(self, where: str, reason: str, message: str) -> str:
        image = self.pods.image
        if reason == "InvalidImageName":
            return f"{image!r} is no valid image name ({where}); write registry/path:tag in small letters"
        if reason == "ErrImageNeverPull":
            return (
                f"image {image!r} is not on the machine of {where}, and image_pull_policy='Never' forbids fetching it; "
                "bring it there, or use 'IfNotPresent'"
            )
        secrets = ", ".join(self.pods.image_pull_secrets) or "none"
        return (
            f"image {image!r} cannot be fetched for {where}: {message}. Check its name and tag, and image_pull_secrets= "
            f"(given: {secrets})"
        )

    def _command(self, where: str, message: str) -> str:
        return (
            f"{where} cannot start {self.pods.python!r} of image {self.pods.image!r}: {message[:300]}. The image "
            "needs Python and swimmy; "
            "python= names its interpreter"
        )

    def _by_event(self, each: Seen, now: float) -> Finding | None:
        for event in reversed(self.events):
            if event["involvedObject"].get("uid") != each.pod["metadata"]["uid"] or event.get("type") != "Warning":
                continue
            reason, message = event.get("reason", ""), event.get("message", "").strip()
            if reason not in _PATIENCE:
                continue
            age = self._age(each, reason, now)
            fatal = age >= _PATIENCE[reason]
            if reason == "FailedMount" and any(words in message for words in _LATE):
                sentence = f"Pod {each.name} waits: the kubelet of {each.node} has not read its volumes yet ({message})"
                return Finding(errors.ContainerConfigError, each.name, reason, sentence, False, now - age)
            if reason in ("FailedMount", "FailedAttachVolume"):
                sentence = (
                    f"Pod {each.name} on {each.node} waits for a volume: {message}. Create the Secret, ConfigMap or "
                    "claim in the same "
                    "namespace, or correct its name"
                )
                return Finding(errors.ContainerConfigError, each.name, reason, sentence, fatal, now - age)
            sentence = f"Pod {each.name} on {each.node} cannot start: {message}"
            return Finding(errors.NotPlaced, each.name, reason, sentence, fatal, now - age)
        return None

    def _job_ended(self) -> Finding | None:
        """The Job makes no Pods any more."""
        if self.job is None or "deletionTimestamp" in self.job.get("metadata", {}):
            sentence = f"the Job of run {self.run} was deleted by somebody; run it again"
            return Finding(errors.Deleted, self.run, "Deleted", sentence, True, self.started)
        status = self.job.get("status", {})
        conditions = [each for each in status.get("conditions", []) if each.get("status") == "True"]
        failed = next((each for each in conditions if each.get("type") in ("FailureTarget", "Failed")), None)
        if failed is None and self.first not in _indexes(status.get("failedIndexes", "")):
            return None
        said = "" if failed is None else f" ({failed.get('reason')}: {failed.get('message')})"
        kind = errors.DeadlineExceeded if failed and failed.get("reason") == "DeadlineExceeded" else errors.PodLost
        sentence = f"Pods of run {self.run} were lost before they could be followed{said}; run it again"
        return Finding(kind, self.run, kind.__name__, sentence, True, self.started)

    def _no_pods(self, now: float) -> Finding | None:
        for event in reversed(self.events):
            if event.get("reason") != "FailedCreate" or event["involvedObject"].get("kind") != "Job":
                continue
            message = event.get("message", "").removeprefix("Error creating: ")
            fatal = now - self.started >= _PATIENCE["FailedCreate"]
            if "exceeded quota" in message:
                sentence = (
                    f"{self._how_many()} of run {self.run} may be created: {message}. Each asks for {asked(self.pods)}: "
                    "ask for less, or have the quota raised"
                )
                return Finding(errors.QuotaExceeded, self.run, "quota", sentence, fatal, self.started)
            if "violates PodSecurity" in message:
                sentence = f"Pod security refuses the Pods: {message}. Leave out what it names (hostPath, patch=)"
                return Finding(errors.PermissionMissing, self.run, "PodSecurity", sentence, fatal, self.started)
            if "error looking up service account" in message:
                account = self.pods.service_account or "default"
                sentence = (
                    f"no Pod of run {self.run} can be created: its service account {account!r} is not in the namespace; "
                    f"kubectl create serviceaccount {account}, and `swimmy rbac --service-account {account}` for its Role"
                )
                return Finding(errors.PermissionMissing, self.run, "NoServiceAccount", sentence, fatal, self.started)
            sentence = f"{self._how_many()} of run {self.run} can be created: {message}"
            return Finding(errors.NotPlaced, self.run, "FailedCreate", sentence, fatal, self.started)
        if self.pods.queue and not self.seen:
            sentence = (
                f"the queue {self.pods.queue!r} has not let run {self.run} in; `kubectl get workloads` says why, and "
                "schedule_timeout= how long to wait for it"
            )
            return Finding(errors.NotPlaced, self.run, "Queued", sentence, False, self.started)
        return None

    def _how_many(self) -> str:
        there = len(self.current())
        return f"only {there} of {self.pods.replicas} Pods" if there else "no Pod"

    def _lost(self, each: Seen, now: float) -> Finding | None:
        disruption = each.condition("DisruptionTarget")
        status = each.pod.get("status", {})
        reason, said = disruption.get("reason"), disruption.get("message") or status.get("message") or ""
        where = f"Pod {each.name} on {each.node}"
        kind: type[errors.SwimmyError]
        if reason == "PreemptionByScheduler":
            kind, sentence = errors.Preempted, f"{where} had to make room for a Pod with a higher priority: {said}"
        elif reason in ("DeletionByTaintManager", "DeletionByPodGC") or status.get("reason") == "NodeLost":
            kind, sentence = errors.NodeLost, f"{where} was lost with its machine ({said or reason}); run it again"
        elif reason in ("EvictionByEvictionAPI", "TerminationByKubelet") or status.get("reason") == "Evicted":
            kind, reason = errors.Evicted, reason or "Evicted"
            sentence = (
                f"{where} was evicted: {said or status.get('message', '')}; run it again, or ask for what it really uses"
            )
        elif status.get("reason") == "DeadlineExceeded":
            kind, reason = errors.DeadlineExceeded, "DeadlineExceeded"
            sentence = f"{where} ran into the run's time limit; raise deadline="
        elif each.leaving:
            kind, reason = errors.Deleted, "Deleted"
            sentence = f"{where} was deleted by somebody; run it again"
        else:
            return None
        return Finding(kind, each.name, reason or "NodeLost", sentence, True, now)

    def _ended(self, each: Seen, now: float) -> Finding | None:
        ended = each.container.get("state", {}).get("terminated", {})
        reason, code = ended.get("reason", ""), ended.get("exitCode")
        message = (ended.get("message") or each.pod.get("status", {}).get("message") or "").strip()
        where = f"Pod {each.name} on {each.node}"
        if reason == "OOMKilled":
            sentence = (
                f"{where} was killed at its memory limit of {self.pods.memory}; raise memory=, or start fewer ranks per Pod"
            )
            return Finding(errors.OutOfMemory, each.name, reason, sentence, True, now)
        if reason in _COMMAND:
            return Finding(errors.CommandMissing, each.name, reason, self._command(where, message), True, now)
        if code == 0:
            return None
        if message.startswith("exec ") and "no such file" in message:  # some runtimes report it as the program's own end
            return Finding(errors.CommandMissing, each.name, "StartError", self._command(where, message), True, now)
        if code == 85:
            return Finding(errors.LeaseLost, each.name, "LeaseLost", f"{where} ended: {_reason_of(message)}", True, now)
        if "No module named" in message:
            missing = message.strip().splitlines()[-1]
            sentence = (
                f"{where}: image {self.pods.image!r} cannot run the agent ({missing}); "
                "install swimmy in it, for the Python that python= names"
            )
            return Finding(errors.ImportFailed, each.name, "ImportFailed", sentence, True, now)
        how = code_in_words(code) if code is not None else "in a way that the kubelet does not tell"
        sentence = f"the agent of {where} ended {how}: {_reason_of(message) or reason or 'nothing more is known'}"
        kind = errors.AgentKilled if code is not None and code > 128 else errors.AgentError
        return Finding(kind, each.name, reason or "Error", sentence, True, now)

    # -- how far it is --------------------------------------------------------------------------------------------

    def summary(self, now: float) -> str:
        """One line for people who wait: "2 of 3 Pods running, 1 unschedulable for 12 s: …"."""
        current = self.current()
        running = sum(each.running for each in current.values())
        parts = [f"{running} of {self.pods.replicas} Pods running"]
        found = self.findings(now)
        counts = Counter(finding.reason for finding in found)
        for reason, count in counts.items():
            first = next(finding for finding in found if finding.reason == reason)
            parts.append(f"{count} {_word(reason)} for {now - first.since:.0f} s: {first.sentence}")
        rest = self.pods.replicas - running - len(found)
        if rest > 0 and not found:
            starting = sum(each.node is not None for each in current.values()) - running
            parts.append(f"{starting} starting" if starting > 0 else f"{rest} waiting for a machine")
        return ", ".join(parts)


def _indexes(text: str) -> set[int]:
    """ "1,3-5" as a Job tells its indexes: 1, 3, 4, 5."""
    bounds = [[int(end) for end in part.split("-")] for part in text.split(",") if part]
    return {index for ends in bounds for index in range(ends[0], ends[-1] + 1)}


def refined(finding: Finding, job: Object | None, pods: Pods) -> Finding:
    """What the Job says about Pods that were deleted: its own controller deletes them when their time is up."""
    if finding.error is not errors.Deleted:
        return finding
    if job is None or "deletionTimestamp" in job["metadata"]:
        sentence = f"{finding.sentence.partition(' was deleted')[0]} was deleted with its Job by somebody; run it again"
        return replace(finding, sentence=sentence)
    conditions = job.get("status", {}).get("conditions", [])
    if any(each.get("reason") == "DeadlineExceeded" for each in conditions):
        limit = job["spec"].get("activeDeadlineSeconds")
        sentence = (
            f"{finding.sentence.partition(' was deleted')[0]} ran into the run's time limit of {limit} s; raise deadline="
        )
        if pods.deadline is None:
            sentence = sentence.replace("raise deadline=", "the agents did not all start in that time; raise start_timeout=")
        return replace(finding, error=errors.DeadlineExceeded, reason="DeadlineExceeded", sentence=sentence)
    return finding


def asked(pods: Pods) -> str:
    """What one Pod asks for, as the user would write it."""
    parts = [f"cpus={pods.cpus}", f"memory={pods.memory}"]
    if pods.gpus:
        parts.append(f"gpus={pods.gpus} ({pods.gpu_resource})")
    parts += [f"{name}={value}" for name, value in pods.resources.items()]
    if pods.node_selector:
        parts.append("node_selector=" + ",".join(f"{name}={value}" for name, value in pods.node_selector.items()))
    return ", ".join(parts)


def code_in_words(code: int) -> str:
    """An exit code as people say it; negative numbers and those above 128 are signals."""
    number = -code if code < 0 else code - 128 if 128 < code < 160 else 0
    if number:
        try:
            name = signal.Signals(number).name
        except ValueError:
            return f"by signal {number}"
        return f"by signal {number} ({name})"
    return f"with exit code {code}"


def _scheduler(message: str) -> str:
    """The scheduler's sentence without what it says about preemption, which repeats it."""
    return re.sub(r"\s*(preemption:|no new claims to deallocate).*$", "", message).strip().rstrip(".,")


def _fit(said: str) -> str:
    for pattern, advice in (
        (r"Insufficient (cpu|memory)", "ask for less, or wait for room"),
        (r"Insufficient (\S+)", "ask for fewer devices, or for a cluster that has them"),
        (r"node affinity/selector", "correct node_selector= or affinity="),
        (r"untolerated taint", "add the toleration with tolerations="),
        (r"persistentvolumeclaim", "create the claim in the same namespace, or correct its name"),
    ):
        if re.search(pattern, said):
            return advice
    return "change what each asks for, or add a machine"


def _word(reason: str) -> str:
    return "unschedulable" if reason == "Unschedulable" else reason


def _reason_of(message: str) -> str:
    """The reason in the agent's last words, or the last line of what it printed."""
    found = re.search(r'"reason": "([^"]*)"', message)
    if found:
        return found[1]
    return message.splitlines()[-1][:300] if message else ""
