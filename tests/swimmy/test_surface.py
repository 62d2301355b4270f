"""The public names, the command, and what is sent along with a function."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import yaml

import swimmy
from swimmy import code
from swimmy.cli import main
from swimmy.errors import ClusterUnreachable, RankFailed, SpecError, SwimmyError


def test_the_public_names() -> None:
    assert sorted(swimmy.__all__) == [
        "Ahead", "Cluster", "Event", "Handle", "LogLine", "Mpi", "Owner", "PodView", "Pods", "Volume", "ahead", "attach",
        "cancel", "claim", "config_map", "empty_dir", "errors", "host_path", "mpi", "rank", "run", "runs", "secret", "size",
        "submit", "submit_each",
    ]  # fmt: skip
    for name in swimmy.__all__:
        assert getattr(swimmy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        swimmy.nothing  # noqa: B018


def test_an_agent_does_not_import_the_kubernetes_client() -> None:
    script = "import sys, swimmy.agent.server, swimmy.inside; print([name for name in sys.modules if 'kubernetes' in name])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_outside_a_run_there_is_one_rank() -> None:
    assert (swimmy.rank(), swimmy.size()) == (0, 1)


def test_a_function_of_the_users_module_loads_where_the_module_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "helpers.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "mine" / "main.py").write_text("from mine.helpers import double\n\ndef work(x):\n    return double(x) + 1\n")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from mine.main import work\nfrom swimmy import code\n"
        "sys.stdout.buffer.write(code.dumps(work, (20,)))"
    )
    sent = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True).stdout
    function, args, kwargs = cloudpickle.loads(sent)  # here, where `mine` is unknown
    assert function(*args, **kwargs) == 41
    assert "mine" not in sys.modules


def test_what_cannot_be_sent_is_said_before_anything_is_started() -> None:
    with pytest.raises(SpecError, match="cannot be sent to a Pod"):
        code.dumps(lambda lock: lock, (threading.Lock(),))
    with pytest.raises(SpecError, match="cannot be called"):
        code.dumps(3)  # type: ignore[arg-type]


def test_the_log_is_part_of_an_errors_text() -> None:
    error = RankFailed("rank 1 ended", rank=1, log=["one", "two"])
    assert str(error) == "rank 1 ended\n  last lines of its log:\n    one\n    two"
    assert isinstance(error, SwimmyError)


def test_rbac_is_printed_without_a_cluster(capsys: Any) -> None:
    assert main(["rbac", "--namespace", "team", "--user", "alice", "--network-policy"]) == 0
    role, binding = yaml.safe_load_all(capsys.readouterr().out)
    assert role["metadata"] == {"name": "swimmy", "namespace": "team"}
    assert binding["subjects"] == [{"kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io"}]
    assert any("networkpolicies" in rule["resources"] for rule in role["rules"])


def test_help_names_the_commands(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("ps", "cancel", "logs", "doctor", "rbac"))


def test_without_a_kubeconfig_it_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterUnreachable, match=r"[^.]\. Set KUBECONFIG"):
        swimmy.Cluster()
    assert main(["ps"]) == 1
    assert "Set KUBECONFIG" in capsys.readouterr().err


_KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {}}]
contexts: [{name: one, context: {cluster: c, user: u}}]
current-context: one
"""


@pytest.mark.parametrize(
    ("text", "context", "error", "words"),
    [
        (None, None, ClusterUnreachable, "there is no kubeconfig at"),
        ("a: b: c: [", None, ClusterUnreachable, "is no kubeconfig"),
        ("hello", None, ClusterUnreachable, "is no kubeconfig"),
        ("", None, ClusterUnreachable, "is empty"),
        (_KUBECONFIG.replace("current-context: one", "current-context: two"), None, ClusterUnreachable, "name two"),
        (_KUBECONFIG, "two", SpecError, "context 'two' is not in the kubeconfig; known: one"),
    ],
)
def test_a_wrong_kubeconfig_is_said_in_words(
    tmp_path: Path, text: str | None, context: str | None, error: Any, words: str
) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=re.escape(words)):
        swimmy.Cluster(str(path), context)


def test_a_namespace_that_is_not_there_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(_KUBECONFIG)
    cluster = swimmy.Cluster(str(tmp_path / "kubeconfig"), namespace="nobodys")
    said = json.dumps({"message": 'namespaces "nobodys" not found'}).encode()
    error = cluster._refusal("create Job", SimpleNamespace(status=404, read=lambda: said))
    cluster.close()
    assert isinstance(error, SpecError)
    assert "has no namespace 'nobodys'" in str(error)
    assert "kubectl create namespace nobodys" in str(error)
