"""What a batch costs does not grow with the number of ranks: counted in lines and bytes, not in seconds."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ghee.protocol import messages as m
from ghee.protocol.credit import Credit
from ghee.protocol.messages import RankId

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "ranks.py"


def load() -> Any:
    """The benchmark's simulation."""
    spec = importlib.util.spec_from_file_location("benchmark_ranks", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(ranks: int, around: Callable[[Callable[..., list[m.Action]]], Callable[..., list[m.Action]]]) -> int:
    """Run the simulation with `around` put around the rules' `on`; how many batches there were."""
    simulation = load().Simulation(ranks, ranks, batches=10, epochs=2, checkpoints=5)
    simulation.coordinator.on = around(simulation.coordinator.on)
    simulation.run()
    assert isinstance(simulation.outcome, m.Finish), simulation.outcome
    return int(simulation.sent)


def lines_a_batch(ranks: int) -> float:
    """Lines of Python that the rules run, each pass through a loop by itself."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    def around(on: Callable[..., list[m.Action]]) -> Callable[..., list[m.Action]]:
        def counted(*events: m.Event) -> list[m.Action]:
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                return on(*events)
            finally:
                sys.settrace(before)

        return counted

    batches = run(ranks, around)
    return lines / batches


def bytes_a_batch(ranks: int) -> float:
    """Memory that the rules take while they answer an event, kept or not: what C copies is no line of Python."""
    taken = 0

    def around(on: Callable[..., list[m.Action]]) -> Callable[..., list[m.Action]]:
        def counted(*events: m.Event) -> list[m.Action]:
            nonlocal taken
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            actions = on(*events)
            taken += tracemalloc.get_traced_memory()[1] - before
            return actions

        return counted

    tracemalloc.start()
    try:
        batches = run(ranks, around)
    finally:
        tracemalloc.stop()
    return taken / batches


@pytest.mark.parametrize("work", [lines_a_batch, bytes_a_batch])
def test_the_work_for_a_batch_does_not_grow_with_the_ranks(work: Callable[[int], float]) -> None:
    assert work(96) < 1.05 * work(8)


def test_what_credit_remembers_does_not_grow_with_the_batches() -> None:
    """Also where nobody asks who holds the least: batches of a loop are dealt in rounds."""
    ranks = [RankId(1, number) for number in range(4)]
    credit = Credit(ranks, 1000, 10)
    for _ in range(1000):
        for rank in ranks:
            credit.charge(rank, 10, 0)
            credit.give_back(rank, 10, 0)
    assert len(credit._heap) < 200
