"""Pods as the API server describes them -> sentences. The objects are what a kubelet 1.34 sent, cut down to what is read."""

from __future__ import annotations

from typing import Any

import pytest

import swimmy
from swimmy import errors
from swimmy.explain import explained
from swimmy.reasons import Table, code_in_words, refined

NODE = "node-1"


def pod(name: str = "run-1-0-abcde", index: int = 0, phase: str = "Pending", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name, "uid": f"uid-{name}", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "spec": {"nodeName": NODE},
        "status": {"phase": phase, **status},
    }  # fmt: skip


def state(**state_: Any) -> list[dict[str, Any]]:
    return [{"name": "agent", "state": state_}]


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return pod(containerStatuses=state(waiting={"reason": reason, "message": message}))


def terminated(reason: str, code: int, message: str = "") -> dict[str, Any]:
    ended = {"reason": reason, "exitCode": code, "message": message}
    return pod(phase="Failed", containerStatuses=state(terminated=ended))


def disrupted(reason: str, message: str) -> dict[str, Any]:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}
    return pod(phase="Failed", conditions=[condition])


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    found = pod(conditions=[condition])
    del found["spec"]["nodeName"]
    return found


def found(item: dict[str, Any], after: float = 0.0, events: Any = (), **pods: Any) -> Any:
    table = Table("run-1", swimmy.Pods(image="team/train:1", **pods), now=0.0)
    table.change("set", item)
    table.events = list(events)
    table.findings(0.0)
    findings = table.findings(after)
    return findings[0] if findings else None


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (waiting("InvalidImageName", "couldn't parse"), errors.ImagePullFailed, "no valid image name"),
        (waiting("ErrImageNeverPull"), errors.ImagePullFailed, "forbids fetching"),
        (waiting("ImagePullBackOff", "pull access denied"), errors.ImagePullFailed, "pull access denied"),
        (
            waiting("CreateContainerConfigError", 'configmap "c" not found'),
            errors.ContainerConfigError,
            'configmap "c" not found',
        ),
        (waiting("CreateContainerError", "no command"), errors.CommandMissing, "cannot start 'python3'"),
        (terminated("StartError", 128, "exec: python3: not found"), errors.CommandMissing, "exec: python3"),
        (terminated("OOMKilled", 137), errors.OutOfMemory, "memory limit of 1Gi"),
        (terminated("Error", 85, '{"code": 85, "reason": "nobody renewed the lease of 60 s"}'), errors.LeaseLost, "60 s"),
        (terminated("Error", 1, "x\n/bin/python: No module named swimmy"), errors.ImportFailed, "install swimmy"),
        (terminated("Error", 137), errors.AgentKilled, "by signal 9 (SIGKILL)"),
        (disrupted("PreemptionByScheduler", "preempted"), errors.Preempted, "higher priority"),
        (disrupted("DeletionByTaintManager", "taint"), errors.NodeLost, "lost with its machine"),
        (disrupted("DeletionByPodGC", "node gone"), errors.NodeLost, "node gone"),
        (disrupted("EvictionByEvictionAPI", "evicted"), errors.Evicted, "was evicted"),
        (disrupted("TerminationByKubelet", "low on memory"), errors.Evicted, "low on memory"),
        (
            pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory"),
            errors.Evicted,
            "low on resource",
        ),
        (pod(phase="Failed", reason="NodeLost", message="gone"), errors.NodeLost, "gone"),
        (pod(phase="Failed", reason="DeadlineExceeded"), errors.DeadlineExceeded, "raise deadline="),
    ],
)
def test_each_reason_in_a_sentence(item: Any, error: Any, words: str) -> None:
    finding = found(item, after=60)
    assert finding.error is error
    assert finding.fatal
    assert words in finding.sentence
    assert NODE in finding.sentence
    raised = finding.raised()
    assert type(raised) is error
    assert raised.pod == "run-1-0-abcde"


@pytest.mark.parametrize(("reason", "passes", "fatal"), [("ErrImagePull", 10, 25), ("CreateContainerConfigError", 5, 11)])
def test_what_may_pass_by_itself_gets_time(reason: str, passes: float, fatal: float) -> None:
    assert not found(waiting(reason), after=passes).fatal
    assert found(waiting(reason), after=fatal).fatal


def test_back_off_does_not_begin_the_waiting_anew() -> None:
    table = Table("run-1", swimmy.Pods(image="i"), now=0.0)
    for second in range(30):
        table.change("set", waiting("ErrImagePull" if second % 2 else "ImagePullBackOff"))
        finding = table.findings(float(second))[0]
    assert finding.fatal


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available", "ask for less"),
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "fewer devices"),
        ("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.", "node_selector="),
        ("0/3 nodes are available: 3 node(s) had untolerated taint {gpu: }.", "tolerations="),
        ('0/3 nodes are available: persistentvolumeclaim "d" not found.', "create the claim"),
    ],
)
def test_unschedulable_says_what_would_help(message: str, advice: str) -> None:
    finding = found(unscheduled(message), after=301, node_selector={"pool": "a"})
    assert finding.error is errors.Unschedulable
    assert advice in finding.sentence
    assert "preemption" not in finding.sentence
    assert "cpus=1, memory=1Gi, node_selector=pool=a" in finding.sentence
    assert not found(unscheduled(message), after=299).fatal


def event(reason: str, message: str, kind: str = "Pod", uid: str = "uid-run-1-0-abcde") -> dict[str, Any]:
    return {
        "type": "Warning",
        "reason": reason,
        "message": message,
        "involvedObject": {"kind": kind, "uid": uid, "name": "run-1"},
    }


def test_a_missing_volume_is_known_from_an_event_only() -> None:
    creating = pod(containerStatuses=state(waiting={"reason": "ContainerCreating"}))
    events = [event("FailedMount", 'secret "s" not found')]
    assert not found(creating, after=1, events=events).fatal
    finding = found(creating, after=9, events=events)
    assert finding.fatal
    assert finding.error is errors.ContainerConfigError
    assert 'secret "s" not found' in finding.sentence
    assert found(creating, after=9, events=[event("FailedMount", "x", uid="another")]) is None
    for message in (
        "failed to sync secret cache: timed out waiting for the condition",  # a busy kubelet
        'claims "c" is forbidden: User "system:node:n": no relationship found between node \'n\' and this object',
    ):
        finding = found(creating, after=60, events=[event("FailedMount", message)])
        assert (finding.fatal, "has not read its volumes yet" in finding.sentence) == (False, True)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ('Error creating: pods "x" is forbidden: exceeded quota: small', errors.QuotaExceeded),
        ('Error creating: pods "x" is forbidden: violates PodSecurity "restricted"', errors.PermissionMissing),
        ("Error creating: admission webhook said no", errors.NotPlaced),
    ],
)
def test_pods_that_may_not_be_created(message: str, error: Any) -> None:
    table = Table("run-1", swimmy.Pods(image="i"), now=0.0)
    table.events = [event("FailedCreate", message, kind="Job")]
    assert not table.findings(1.0)[0].fatal
    finding = table.findings(4.0)[0]
    assert finding.error is error
    assert finding.fatal
    assert message.removeprefix("Error creating: ") in finding.sentence


def test_a_pod_that_runs_or_has_done_its_work_is_no_finding() -> None:
    assert found(pod(phase="Running", podIP="10.0.0.1", containerStatuses=state(running={})), after=999) is None
    assert found(pod(phase="Succeeded", containerStatuses=state(terminated={"exitCode": 0, "reason": "Completed"}))) is None
    assert found(pod(), after=999) is None


def test_the_newest_pod_of_an_index_counts() -> None:
    table = Table("run-1", swimmy.Pods(image="i", replicas=1), now=0.0)
    old, new = (
        terminated("Error", 1),
        pod("run-1-0-newer", phase="Running", podIP="10.0.0.2", containerStatuses=state(running={})),
    )
    new["metadata"]["creationTimestamp"] = "2026-01-01T00:01:00Z"
    table.change("set", new)
    table.change("set", old)
    assert table.current()[0].name == "run-1-0-newer"
    assert table.all_running()
    table.change("deleted", new)
    assert table.findings(0.0)[0].error is errors.Deleted


def test_the_line_for_people_who_wait() -> None:
    table = Table("run-1", swimmy.Pods(image="i", replicas=3), now=0.0)
    table.change("set", pod("a", 0, phase="Running", podIP="1", containerStatuses=state(running={})))
    table.change("set", pod("b", 1, phase="Running", podIP="2", containerStatuses=state(running={})))
    alone = unscheduled("0/1 nodes are available: 1 Insufficient cpu.")
    alone["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = "2"
    table.change("set", alone)
    table.findings(0.0)
    assert table.summary(12.0).startswith(
        "2 of 3 Pods running, 1 unschedulable for 12 s: 1 of 3 Pods fit on no machine: 0/1 nodes"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "by signal 9 (SIGKILL)"),
        (139, "by signal 11 (SIGSEGV)"),
        (3, "with exit code 3"),
        (255, "with exit code 255"),
        (-63, "by signal 63"),
    ],
)
def test_exit_codes_in_words(code: int, words: str) -> None:
    assert code_in_words(code) == words


def test_a_deleted_pod_is_explained_by_its_job() -> None:
    table = Table("run-1", swimmy.Pods(image="i"), now=0.0)
    table.change("deleted", pod(phase="Running"))
    [finding] = table.findings(0.0)
    late = {
        "metadata": {}, "spec": {"activeDeadlineSeconds": 6},
        "status": {"conditions": [{"type": "FailureTarget", "reason": "DeadlineExceeded"}]},
    }  # fmt: skip
    told = refined(finding, late, swimmy.Pods(image="i", deadline=6))
    assert told.error is errors.DeadlineExceeded
    assert "time limit of 6 s; raise deadline=" in told.sentence
    assert "raise start_timeout=" in refined(finding, late, swimmy.Pods(image="i")).sentence
    assert "with its Job by somebody" in refined(finding, None, swimmy.Pods(image="i")).sentence
    assert refined(finding, {"metadata": {}}, swimmy.Pods(image="i")) is finding


def test_a_quota_that_has_room_for_some_of_the_pods() -> None:
    table = Table("run-1", swimmy.Pods(image="i", replicas=2), now=0.0)
    table.change("set", pod())
    table.events = [event("FailedCreate", 'Error creating: pods "x" is forbidden: exceeded quota: small', kind="Job")]
    finding = next(each for each in table.findings(4.0) if each.error is errors.QuotaExceeded)
    assert finding.fatal
    assert "only 1 of 2 Pods of run run-1 may be created" in finding.sentence


def test_a_service_account_that_is_not_there() -> None:
    table = Table("run-1", swimmy.Pods(image="i", service_account="nobody"), now=0.0)
    said = 'pods "x" is forbidden: error looking up service account team/nobody: serviceaccount "nobody" not found'
    table.events = [event("FailedCreate", f"Error creating: {said}", kind="Job")]
    finding = table.findings(4.0)[0]
    assert finding.error is errors.PermissionMissing
    assert "kubectl create serviceaccount nobody" in finding.sentence


def test_a_run_that_its_queue_holds_says_so_and_waits() -> None:
    table = Table("run-1", swimmy.Pods(image="i", queue="team"), now=0.0)
    finding = table.findings(100.0)[0]
    assert "the queue 'team' has not let run run-1 in" in finding.sentence
    assert not finding.fatal
    assert finding.sentence in table.summary(100.0)
    table.change("set", pod(phase="Running"))
    assert not [each for each in table.findings(101.0) if each.reason == "Queued"]


def test_a_launcher_that_was_killed_before_it_said_anything() -> None:
    entry = {"kind": "cause", "index": 0, "rank": None, "cause": "launch", "code": -9, "text": "", "joined": 0}
    error = explained(entry, swimmy.Pods(image="i"), {0: "run-1-0"}, [])
    assert str(error).splitlines()[0].endswith("(the launcher ended by signal 9 (SIGKILL)): it has said nothing")


def test_one_pod_of_a_job_is_looked_at_alone() -> None:
    table = Table("run-1", swimmy.Pods(image="i"), now=0.0, first=3)
    item = pod()
    item["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": "3"}
    table.change("set", item)
    assert list(table.current()) == [0]


def failed_job(reason: str, message: str, kind: str = "Failed") -> dict[str, Any]:
    return {
        "metadata": {"name": "run-1"},
        "status": {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]},
    }


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        (None, errors.Deleted, "the Job of run run-1 was deleted by somebody"),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:01Z"}}, errors.Deleted, "was deleted by somebody"),
        (failed_job("BackoffLimitExceeded", "has reached its limit"), errors.PodLost, "BackoffLimitExceeded: has reached"),
        (failed_job("BackoffLimitExceeded", "", kind="FailureTarget"), errors.PodLost, "before they could be followed"),
        (failed_job("DeadlineExceeded", "was active too long"), errors.DeadlineExceeded, "was active too long"),
        ({"metadata": {}, "status": {"failedIndexes": "0,2-4"}}, errors.PodLost, "before they could be followed"),
    ],
)
def test_pods_that_were_gone_before_they_were_followed_are_told(job: Any, kind: Any, words: str) -> None:
    """Those that are made ahead may be lost while the driver starts, and no watch tells of what was before it."""
    table = Table("run-1", swimmy.Pods(image="team/train:1", replicas=2), now=0.0)
    assert not table.findings(5.0)
    table.job = job
    (finding,) = table.findings(5.0)
    assert finding.error is kind
    assert finding.fatal
    assert words in finding.sentence


@pytest.mark.parametrize(
    "job",
    [{}, {"metadata": {}, "status": {"active": 2}}, {"metadata": {}, "status": {"failedIndexes": "1,3-5"}}],
)
def test_a_job_that_still_makes_pods_is_waited_for(job: Any) -> None:
    table = Table("run-1", swimmy.Pods(image="team/train:1"), now=0.0, first=2)
    table.job = job
    assert not table.findings(5.0)
