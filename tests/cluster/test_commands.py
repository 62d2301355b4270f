"""The commands of docs/cluster.md as a user types them, right and with the usual mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROGRAM = """
import ghee

def same(batch):
    return batch

def train(stream):
    return sum(len(batch["x"]) for batch in stream)

pipeline = ghee.read([{"x": [1, 2]}] * 9).map(same, replicas=2, cpus="50m").loop(train, cpus="50m")
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    (tmp_path / "program.py").write_text(PROGRAM)
    return f"{tmp_path / 'program.py'}:pipeline"


def command(place: Any, *words: str, namespace: str | None = None) -> tuple[int, str]:
    """A command's exit code, and what it has printed."""
    on = place.on()
    asked = [f"{sys.prefix}/bin/{words[0]}", *words[1:], f"--kubeconfig={on.kubeconfig}"]
    asked.append(f"--namespace={namespace or on.namespace}")
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=180)
    return done.returncode, done.stdout + done.stderr


def test_a_pipeline_is_explained_and_run(place: Any, pipeline: str) -> None:
    image, namespace = place.on().image, place.on().namespace
    code, manifests = command(place, "ghee", "explain", pipeline, "--on=kubernetes", f"--image={image}")
    assert code == 0, manifests
    jobs = list(yaml.safe_load_all(manifests))
    assert [job["metadata"]["name"] for job in jobs] == ["ghee-driver", "ghee-same", "ghee-train"]
    for job in jobs:  # the API server takes them as they are
        place.kube.request("POST", f"/apis/batch/v1/namespaces/{namespace}/jobs?dryRun=All", job)
    code, said = command(place, "ghee", "run", pipeline, "--on=kubernetes", f"--image={image}")
    assert code == 0, said
    assert "train returned 18" in said


def test_doctor_and_ps(place: Any) -> None:
    code, said = command(place, "swimmy", "doctor", f"--image={place.on().image}")
    assert code == 0, said
    assert "an MPI world of 2 ranks came up" in said
    assert command(place, "swimmy", "ps") == (0, "")


@pytest.mark.parametrize(
    ("image", "namespace", "words"),
    [
        ("Team/Train:1.2", None, "'Team/Train:1.2' is no valid image name"),
        (None, "nobodys", "kubectl create namespace nobodys"),
        (None, "default", "service account 'ghee' is not in the namespace; kubectl create serviceaccount ghee"),
    ],
    ids=["image", "namespace", "service account"],
)
def test_a_mistake_is_answered_with_its_remedy(
    place: Any, pipeline: str, image: str | None, namespace: str | None, words: str
) -> None:
    asked = ("ghee", "run", pipeline, "--on=kubernetes", f"--image={image or place.on().image}")
    code, said = command(place, *asked, namespace=namespace)
    assert code == 1, said
    assert words in said
    assert "Traceback" not in said
