"""How long a run takes from submit to the user's function, where the time goes, and what it asks of the API server.

    PYTHONPATH=tests python benchmarks/swimmy_startup.py [--runs 5] [--payload-mb 200]

Starts the cluster of tests/servers/kube on this machine (Go, root) and prints medians, and the load of the machine beside
them: all Pods, the control plane and the kubelet share its cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import swimmy
from servers.kube import Cluster, images
from swimmy.manifests import RUN_LABEL

IMAGE = "localhost/swimmy/python:bench"
LEFT_OUT = (
    *("kubernetes", "mypy", "mypyc", "pip", "setuptools", "ruff", "hypothesis", "_pytest", "pygments", "rich", "grimp"),
    *("pyarrow", "numpy", "numpy.libs", "botocore", "hdfs_native", "confluent_kafka"),
)


def touch(data: bytes) -> int:
    print("begun")
    return len(data)


def measured(
    kube: Cluster, cluster: swimmy.Cluster, replicas: int, ranks: int, reach: Any, payload: bytes
) -> dict[str, float]:
    """Seconds of each part of one run, and its requests."""
    before = sum(cluster.requests.values())
    pods = swimmy.Pods(
        image=IMAGE, replicas=replicas, cpus="20m", memory="768Mi" if payload else "256Mi", python=sys.executable,
        image_pull_policy="Never", grace=1,
    )  # fmt: skip
    began = time.time()
    with swimmy.submit(touch, (payload,), pods=pods, mpi=swimmy.mpi(ranks), cluster=cluster, reach=reach) as handle:
        next(handle.logs(follow=True), None)  # None where it failed: its result says why
        first = time.time()
        handle.result(300)
        at: dict[str, float] = {}
        for event in handle.events:
            name = event.entry.get("state") if event.entry["kind"] == "state" else event.entry["kind"]
            at[str(name)] = max(at.get(str(name), 0.0), event.at) if name == "agent" else at.get(str(name), event.at)
        run = handle.id
    ended = time.time()
    query = f"?labelSelector={RUN_LABEL}={run}"
    for path in (
        "/apis/batch/v1/namespaces/default/jobs",
        "/api/v1/namespaces/default/pods",
        "/api/v1/namespaces/default/secrets",
    ):
        kube.wait_gone(path + query)
    return {
        "scheduled": at["starting"] - began,
        "agents": at["agent"] - at["starting"],
        "MPI": at["running"] - at["agent"],
        "function": first - at["running"],
        "submit to function": first - began,
        "all gone": time.time() - ended,
        "requests": sum(cluster.requests.values()) - before,
    }


def cases(payload_mb: int) -> Iterator[tuple[str, int, int, str, bytes]]:
    for reach in ("direct", "forward"):
        for replicas in (1, 3, 8):
            yield f"{replicas} Pods x 2 ranks, {reach}", replicas, 2, reach, b""
        if payload_mb:
            yield f"3 Pods x 1 rank, {reach}, payload of {payload_mb} MB", 3, 1, reach, os.urandom(payload_mb * 1_000_000)
    yield "8 Pods x 8 ranks, direct", 8, 8, "direct", b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--payload-mb", type=int, default=200)
    options = parser.parse_args()
    with Cluster() as kube:
        kube.import_image(images.python_image(kube.state / "python.tar", IMAGE, leave_out=LEFT_OUT))
        cluster = swimmy.Cluster(str(kube.kubeconfig), namespace="default")
        for name, replicas, ranks, reach, payload in cases(options.payload_mb):
            runs = [measured(kube, cluster, replicas, ranks, reach, payload) for _ in range(1 if payload else options.runs)]
            parts = ", ".join(f"{part} {statistics.median(run[part] for run in runs):.2f}" for part in runs[0])
            print(
                f"{name}: {parts} (median of {len(runs)}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)",
                flush=True,
            )
        cluster.close()


if __name__ == "__main__":
    main()
