"""Seconds of a run of ghee on Pods from submit to its first batch, where they go, and what it asks of the API server.

    PYTHONPATH=tests python benchmarks/kubernetes_startup.py [--runs 3] [--maps 1 2 4]

Starts the cluster of tests/servers/kube on this machine (Go, root). A list of ten small batches goes through map Pods into a
loop of two Pods. Prints, for each number of map Pods, medians: scheduling and agent of the driver's Pod, with which the
others are made; what its process then takes to import and plan; the slowest of each part of the other worlds (they start
side by side); the first batch, the end of the last object, and requests; and the machine's load beside them, since all
Pods, the control plane and the kubelet share its cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import ghee
from cluster.conftest import Place, open_place


def passed(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def train(stream: Any) -> float:
    import time

    first = 0.0
    for _ in stream:
        first = first or time.time()
    return first


def measured(place: Place, maps: int) -> dict[str, float]:
    """Seconds of each part of one run, and its requests."""
    batches = [{"x": [number] * 10} for number in range(10)]
    pipeline = ghee.read(batches).map(passed, replicas=maps).loop(train, replicas=2)
    began = time.time()
    run = ghee.run(pipeline, on=place.on(cpus="20m", memory="256Mi"), wait=False)
    first = min(run.results["train"])
    ended = time.time()
    for path in place.paths():
        place.kube.wait_gone(path)
    gone = time.time() - ended
    at: dict[str, float] = {}
    for event in run._handle.events:
        at.setdefault(str(event.entry.get("state") or event.entry["kind"]), event.at)
    worlds = run.starts.values()
    figures = {"scheduling": at["starting"] - began, "agent": at["agent"] - at["starting"]}
    stages = {
        "the stages' agents": max(world["scheduling"] + world["agent"] for world in worlds),
        "MPI": max(world["MPI"] for world in worlds),
        "import": max(world["import"] for world in worlds),
    }
    figures["the driver's import and planning"] = first - began - sum(figures.values()) - sum(stages.values())
    figures |= stages
    requests = {name: count for name, count in run.requests.items() if name != "forward port"}
    return {
        **figures, "submit to first batch": first - began, "all gone": gone,
        "requests": sum(requests.values()), "port-forwards": sum(run.requests.values()) - sum(requests.values()),
    }  # fmt: skip


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--maps", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    with open_place() as place:
        for maps in options.maps:
            runs = [measured(place, maps) for _ in range(options.runs)]
            parts = ", ".join(f"{part} {statistics.median(run[part] for run in runs):.2f}" for part in runs[0])
            load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
            print(f"{maps} map Pods, 2 loop Pods: {parts} (median of {len(runs)}; {load})", flush=True)


if __name__ == "__main__":
    main()
