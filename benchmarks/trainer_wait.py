"""The share of its time that a trainer waits when preprocessing has 1.2 times the capacity that it needs.

    python benchmarks/trainer_wait.py
    python benchmarks/trainer_wait.py --capacity 1.1 1.2 1.5 --replicas 4 --jitter 0.8

Trainer and preprocessing sleep, as a trainer waits for its GPU and preprocessing for other cores than these: so the figure
is of the pipeline and not of this machine's two cores. A batch takes each replica `replicas / capacity` steps of the
trainer, more or less by `--jitter` (0.5: from half of it to one and a half, evenly). Sleeping takes longer than it was
asked to; so each function measures what it has slept, and the capacity that there really was is printed beside the wait.
What a trainer would wait at the least with these very times is computed beside it.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import statistics
import time
from typing import Any

import numpy as np

import ghee


def preprocess(seconds: float, jitter: float, batch: Any) -> Any:
    """Sleeps about so many seconds; says how long it was."""
    began = time.perf_counter()
    time.sleep(seconds * random.Random(int(batch["n"][0])).uniform(1 - jitter, 1 + jitter))
    return {**batch, "slept": np.array([time.perf_counter() - began])}


def train(step: float, batches: Any) -> tuple[float, float, list[float], list[float]]:
    """Seconds waited, seconds in steps, and of each batch's preprocessing, of each wait; from the first batch on."""
    waited, stepped, slept, waits = 0.0, 0.0, [], []
    asked = 0.0
    for batch in batches:
        got = time.perf_counter()
        if asked:
            waits.append(got - asked)
        slept.append(float(batch["slept"][0]))
        time.sleep(step)
        asked = time.perf_counter()
        stepped += asked - got
        waited = sum(waits)
    return waited, stepped, slept, waits


def measure(capacity: float, options: argparse.Namespace) -> dict[str, float]:
    """One run; shares and the capacity that there was."""
    source = [{"n": np.array([number]), "x": np.zeros(options.bytes // 8)} for number in range(options.batches)]
    seconds = options.step * options.replicas / capacity
    pipeline = (
        ghee.read(source)
        .map(functools.partial(preprocess, seconds, options.jitter), replicas=options.replicas, name="preprocess")
        .loop(functools.partial(train, options.step), name="train")
    )
    run = ghee.run(pipeline, progress=False)
    waited, stepped, slept, waits = run.result
    step = stepped / len(slept)
    return {
        "waited": waited / (waited + stepped),
        "p95": float(np.percentile(waits, 95)),
        "capacity": options.replicas * step / statistics.mean(slept),
        "least": least_wait(slept, options.replicas, step),
        "reported": run.report.stage("train").waited_input,
    }


def least_wait(slept: list[float], replicas: int, step: float) -> float:
    """The share that a trainer waits who has every batch the moment it is ready, and all the room in the world."""
    free, ready = [0.0] * replicas, []
    for seconds in slept:
        first = min(range(replicas), key=free.__getitem__)
        free[first] += seconds
        ready.append(free[first])
    now = waited = 0.0
    for number, at in enumerate(sorted(ready)):
        if number:
            waited += max(0.0, at - now)
        now = max(now, at) + step
    return waited / (waited + step * len(slept))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capacity", type=float, nargs="+", default=[1.2])
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--jitter", type=float, default=0.5)
    parser.add_argument("--step", type=float, default=0.02, help="seconds of a step")
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--bytes", type=int, default=1 << 18, help="of a batch")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {options.batches} batches of {options.bytes} bytes, "
          f"{options.replicas} replicas, steps of {1000 * options.step:.0f} ms, jitter {options.jitter}")  # fmt: skip
    for capacity in options.capacity:
        runs = [measure(capacity, options) for _ in range(options.repeats)]
        figure = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        worst = max(run["waited"] for run in runs)
        print(
            f"capacity {figure['capacity']:.2f} (asked for: {capacity:.2f}): the trainer waited "
            f"{100 * figure['waited']:.2f} % of its time (median; at most {100 * worst:.2f} %), "
            f"95 of 100 waits under {1000 * figure['p95']:.2f} ms; "
            f"at the least {100 * figure['least']:.2f} %; the report said {100 * figure['reported']:.2f} %"
        )


if __name__ == "__main__":
    main()
