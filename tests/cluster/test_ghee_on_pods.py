"""The same pipeline on Pods of a real cluster: results, report, errors, deaths, and nothing left behind."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import ghee


def batches(count: int) -> list[dict[str, Any]]:
    return [{"id": np.arange(10 * number, 10 * number + 10)} for number in range(count)]


def test_a_list_through_two_map_pods_into_a_loop_of_two_pods(place: Any) -> None:
    def where(batch: dict[str, Any]) -> dict[str, Any]:
        import os

        return {"id": batch["id"], "pod": np.full(len(batch["id"]), int(os.environ["SWIMMY_ADDRESS"].replace(".", "")))}

    def train(stream: Any) -> tuple[int, int, list[int], list[int]]:
        from mpi4py import MPI

        ids: list[int] = []
        pods: set[int] = set()
        for batch in stream:
            MPI.COMM_WORLD.allreduce(1)  # a collective at every step
            ids += map(int, batch["id"])
            pods |= set(map(int, batch["pod"]))
        print(f"rank {ghee.rank()} has seen {len(ids)} rows")
        return ghee.rank(), ghee.size(), ids, sorted(pods)

    pipeline = ghee.read(batches(40)).map(where, replicas=2, cpus="50m").loop(train, replicas=2, cpus="50m")
    run = ghee.run(pipeline, on=place.on())
    first, second = run.results["train"]
    assert (first[:2], second[:2]) == ((0, 2), (1, 2))
    assert len(first[2]) == len(second[2]) == 200
    assert Counter(first[2] + second[2]) == Counter(range(400))
    assert len(set(first[3] + second[3])) == 2  # both map Pods had work
    assert run.report.balanced
    assert run.report.rows_read == 400
    assert "rank 1 has seen 200 rows" in run.logs("train")["train-1"]
