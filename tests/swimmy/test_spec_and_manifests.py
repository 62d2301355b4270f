"""From what is asked for to manifests, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import swimmy
from swimmy.errors import SpecError
from swimmy.manifests import CONTAINER, Owner, as_yaml, job, network_policy, pod, rbac, secret, strategic_merge
from swimmy.objects import Objects
from swimmy.record import Spec
from swimmy.spec import check, quantity

OWNER = Owner("batch/v1", "Job", "run-1", "uid-1")


def container(pods: swimmy.Pods) -> Any:
    return pod("run-1", pods)["containers"][0]


@pytest.mark.parametrize(
    ("given_", "written"),
    [
        (2, "2"),
        (0.5, "0.5"),
        ("500m", "500m"),
        ("2Gi", "2Gi"),
        ("2GB", "2G"),
        ("2GiB", "2Gi"),
        ("3K", "3k"),
        (1 << 30, "1073741824"),
    ],
)
def test_quantities(given_: Any, written: str) -> None:
    assert quantity(given_, "memory") == written


@pytest.mark.parametrize("wrong", ["two", "", "-1", "1 Gi", "5 apples", True, None, [2], "1e3q"])
def test_no_quantities(wrong: Any) -> None:
    with pytest.raises(SpecError, match=r"memory=.* is no quantity; write"):
        quantity(wrong, "memory")


def test_all_problems_are_told_at_once() -> None:
    pods = swimmy.Pods(
        image="", replicas=0, cpus="two", memory=0, gpus=-1, env={"1X": "a", "PMI_RANK": "0", "N": 5},  # type: ignore[dict-item]
        volumes=[swimmy.empty_dir("/a"), swimmy.empty_dir("/a"), swimmy.empty_dir("b"), swimmy.empty_dir("/run/swimmy")],
        image_pull_secrets=["Not A Name"], lease=0, restarts=1,
    )  # fmt: skip
    with pytest.raises(SpecError) as caught:
        check(pods, swimmy.Mpi(0, "lam", "some"))  # type: ignore[arg-type]
    text = str(caught.value)
    for words in ("image=''", "replicas=0", "cpus='two'", "memory=0", "gpus=-1", "'1X'", "'PMI_RANK'",
                  "N=5", "two volumes at '/a'",
                  "'b'",
                  "'/run/swimmy'", "'Not A Name'", "lease=0", "ranks_per_pod=0", "'lam'", "'some'", "restarts"):  # fmt: skip
        assert words in text, words


def test_a_pod_is_closed_by_default() -> None:
    spec = pod("run-1", swimmy.Pods(image="i"))
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    closed = spec["containers"][0]["securityContext"]
    assert closed == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "hostNetwork" not in spec


def test_no_key_and_no_code_is_in_the_pod() -> None:
    text = json.dumps(job("run-1", swimmy.Pods(image="i"), swimmy.mpi(2)))
    assert "secretName" in text
    names = {each["name"] for each in container(swimmy.Pods(image="i"))["env"]}
    assert names == {
        "HOME",
        "SWIMMY_RUN",
        "SWIMMY_PORT",
        "SWIMMY_BOOT",
        "SWIMMY_LEASE",
        "SWIMMY_GRACE",
        "SWIMMY_KEEP",
        "SWIMMY_KEYS",
        "SWIMMY_FOLDER",
        "SWIMMY_ADDRESS",
    }


def test_nothing_is_asked_for_that_was_not_asked_for() -> None:
    resources = container(swimmy.Pods(image="i", cpus=2, memory="4Gi"))["resources"]
    assert resources == {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}
    resources = container(swimmy.Pods(image="i", gpus=2, cpu_limit=4, resources={"rdma/hca": "1"}))["resources"]
    assert resources["limits"] == {"memory": "1Gi", "cpu": "4", "rdma/hca": "1", "nvidia.com/gpu": "2"}
    assert resources["requests"]["nvidia.com/gpu"] == "2"


def test_a_job_that_nobody_follows_ends_by_itself() -> None:
    spec = job("run-1", swimmy.Pods(image="i", schedule_timeout=10, start_timeout=20, lease=30), swimmy.mpi())["spec"]
    assert spec["activeDeadlineSeconds"] == 60
    assert spec["ttlSecondsAfterFinished"] == 30
    assert spec["backoffLimit"] == 0
    assert job("run-1", swimmy.Pods(image="i"), swimmy.mpi(), after=7)["spec"]["activeDeadlineSeconds"] == 487
    assert job("run-1", swimmy.Pods(image="i", deadline=5), swimmy.mpi())["spec"]["activeDeadlineSeconds"] == 5


def test_an_agent_waits_for_its_client_as_long_as_its_job_does() -> None:
    pods = swimmy.Pods(image="i", schedule_timeout=10, start_timeout=20, lease=30)
    for after in (0, 100):
        spec = job("run-1", pods, swimmy.mpi(), after=after)["spec"]
        environment = {each["name"]: each.get("value") for each in spec["template"]["spec"]["containers"][0]["env"]}
        assert environment["SWIMMY_BOOT"] == str(spec["activeDeadlineSeconds"]) == str(60 + after)


def test_what_was_made_ahead_needs_the_run_it_was_made_with_and_as_many_arguments() -> None:
    ahead = swimmy.ahead("each", pods=swimmy.Pods(image="i", replicas=2), each=True)
    with pytest.raises(swimmy.errors.SpecError, match="owner= must name its Job"):
        swimmy.submit(len, pods=ahead)
    owner = swimmy.Owner("batch/v1", "Job", "driver-1", "uid")
    with pytest.raises(swimmy.errors.SpecError, match="2 Pods were made ahead, and there are arguments for 1"):
        swimmy.submit_each(len, [("a",)], pods=ahead, owner=owner)


def test_what_is_made_ahead_belongs_to_the_run_it_is_made_with() -> None:
    made: list[Any] = []

    class Cluster:
        def create(self, manifest: Any) -> Any:
            made.append(manifest)
            return {"metadata": {"uid": f"uid-{len(made)}"}}

    ahead = swimmy.ahead("each", pods=swimmy.Pods(image="i", network_policy=True), each=True)
    spec = Spec("driver-1", swimmy.Pods(image="i"), swimmy.mpi(), b"", ahead=(ahead,))
    Objects(Cluster(), spec)._create()  # type: ignore[arg-type]
    name = ahead.run("driver-1")
    assert name.startswith("driver-1-each-")
    owners = {
        (each["kind"], each["metadata"]["name"]): [owner["uid"] for owner in each["metadata"].get("ownerReferences", [])]
        for each in made
    }
    assert owners == {
        ("Job", "driver-1"): [], ("Secret", "driver-1"): ["uid-1"],
        ("Job", name): ["uid-1"], ("Secret", name): ["uid-3"], ("NetworkPolicy", name): ["uid-3"],
    }  # fmt: skip
    assert made[2]["spec"]["backoffLimitPerIndex"] == 0
    keys = {field: base64.b64decode(value).decode() for field, value in made[3]["data"].items()}
    assert (keys["client-public"], keys["server-public"]) == (ahead.client.public, ahead.server.public)
    assert ahead.client.secret not in json.dumps(made)  # whoever reads the Secret is no client


def test_a_world_for_each_pod_gets_its_pods_back() -> None:
    spec = job("run-1", swimmy.Pods(image="i", restarts=3), swimmy.mpi(world="pod"))["spec"]
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (3, 0)
    assert "backoffLimit" not in spec


def test_everything_of_a_run_is_owned_by_its_job_and_its_job_by_who_asked() -> None:
    for manifest in (
        secret("run-1", {"a": "b"}, OWNER),
        network_policy("run-1", OWNER),
        job("r", swimmy.Pods(image="i"), swimmy.mpi(), owner=OWNER),
    ):
        assert manifest["metadata"]["ownerReferences"] == [
            {"apiVersion": "batch/v1", "kind": "Job", "name": "run-1", "uid": "uid-1"}
        ]


def test_kueue_gets_a_suspended_job() -> None:
    manifest = job("run-1", swimmy.Pods(image="i", queue="team"), swimmy.mpi())
    assert manifest["spec"]["suspend"] is True
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_every_option_reaches_the_manifest() -> None:
    spec = pod("run-1", swimmy.Pods(
        image="i", node_selector={"a": "b"}, tolerations=[{"key": "gpu", "operator": "Exists"}],
        affinity={"nodeAffinity": {}},
        image_pull_secrets=["pull"], service_account="me", priority_class="high", scheduler="mine", user=1234,
        volumes=[swimmy.claim("data", "/data"), swimmy.secret("s", "/s"), swimmy.config_map("c", "/c"),
                 swimmy.host_path("/usr"),
                 swimmy.empty_dir("/tmp", memory=True, size="1Gi")],
        patch={"dnsPolicy": "None", "containers": [{"name": CONTAINER, "env": [{"name": "X", "value": "1"}]}]}))  # fmt: skip
    assert spec["nodeSelector"] == {"a": "b"}
    assert spec["tolerations"][0] == {"key": "gpu", "operator": "Exists"}
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("me", True)
    assert (spec["priorityClassName"], spec["schedulerName"], spec["dnsPolicy"]) == ("high", "mine", "None")
    assert spec["securityContext"]["fsGroup"] == 1234
    mounts = {each["mountPath"]: each for each in spec["containers"][0]["volumeMounts"]}
    assert set(mounts) == {"/run/swimmy-keys", "/run/swimmy", "/dev/shm", "/data", "/s", "/c", "/usr", "/tmp"}
    assert mounts["/usr"]["readOnly"] is True
    assert mounts["/tmp"]["readOnly"] is False
    assert {"name": "X", "value": "1"} in spec["containers"][0]["env"]
    assert any(each["name"] == "SWIMMY_RUN" for each in spec["containers"][0]["env"])  # merged, not replaced


def test_the_role_has_the_least_verbs() -> None:
    role, binding = rbac("team", {"kind": "User", "name": "alice"})
    allowed = {(rule["resources"][0], verb) for rule in role["rules"] for verb in rule["verbs"]}
    assert ("secrets", "create") in allowed
    assert not any(resource in ("pods/exec",) or verb == "*" or resource == "*" for resource, verb in allowed)
    assert not {("secrets", "get"), ("secrets", "list"), ("pods", "create"), ("pods", "delete")} & allowed
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    text = as_yaml([role, binding])
    assert text.startswith("---\n")  # or kubectl reads JSON, of which there is only one document
    assert [each["kind"] for each in yaml.safe_load_all(text)] == ["Role", "RoleBinding"]


def test_each_subject_has_a_binding_of_its_own() -> None:
    subjects = [("User", "ghee"), ("User", "a/b"), ("Group", "ghee"), ("ServiceAccount", "ghee")]
    bindings = [rbac("team", {"kind": kind, "name": name})[1] for kind, name in subjects]
    assert len({binding["metadata"]["name"] for binding in bindings}) == 4
    assert all("/" not in binding["metadata"]["name"] for binding in bindings)


objects = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcde"), inner, max_size=3) | st.lists(inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from("abcde"), objects), st.dictionaries(st.sampled_from("abcde"), objects | st.none()))
def test_a_merge_patch_applied_twice_changes_nothing_more(base: dict[str, Any], patch: dict[str, Any]) -> None:
    before = json.dumps([base, patch])
    once = strategic_merge(base, patch)
    assert strategic_merge(once, patch) == once
    assert json.dumps([base, patch]) == before
    for name, value in patch.items():
        assert (name not in once) if value is None else (name in once)


def test_lists_merge_by_their_key_and_can_lose_an_element() -> None:
    base = {"volumes": [{"name": "a", "emptyDir": {}}, {"name": "b"}], "args": ["x"]}
    patch = {
        "volumes": [{"name": "a", "emptyDir": {"medium": "Memory"}}, {"name": "b", "$patch": "delete"}, {"name": "c"}],
        "args": ["y"],
    }
    assert strategic_merge(base, patch) == {
        "volumes": [{"name": "a", "emptyDir": {"medium": "Memory"}}, {"name": "c"}],
        "args": ["y"],
    }
