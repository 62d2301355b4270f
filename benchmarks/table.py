"""The whole table of speed that ghee aims at: aim, what was measured, and by which command. Some 15 minutes, alone.

    python benchmarks/table.py
    python benchmarks/table.py --repeats 5                              more repeats, more minutes
    python benchmarks/table.py --only movielens --rows 131072 --repeats 1

Each line comes from a benchmark of its own, which prints more and keeps every figure; this runs them one after the other,
in the environments that they make themselves, and compares medians.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from harness import HERE, ROOT, WORK, BenchmarkError, environment, machine
from rich.console import Console
from rich.table import Table


class Line(NamedTuple):
    """One line of the table. `met`: None where nothing was measured."""

    what: str
    aim: str
    measured: str
    met: bool | None
    command: str


def call(python: Path | str, script: str, *options: object) -> tuple[str, str]:
    """Run a benchmark; returns what it printed and the command as a user would give it."""
    words = [script, *map(str, options)]
    print(f"… {' '.join(words)}", flush=True)
    run = subprocess.run(
        [str(python), str(HERE / script), *words[1:]], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if run.returncode:
        raise BenchmarkError(f"{script} ended with {run.returncode}:\n{run.stdout[-1500:]}{run.stderr[-1500:]}")
    return run.stdout, f"benchmarks/{' '.join(words)}"


def kept(name: str, since: float) -> Any:
    """The figures that a benchmark has kept since then."""
    path = max((WORK / "results").glob(f"{name}-*.json"), key=lambda path: path.stat().st_mtime)
    if path.stat().st_mtime < since:
        raise BenchmarkError(f"{name} kept no figures")
    return json.loads(path.read_text())


def at_most(what: str, value: float, aim: float, command: str, unit: str = "x") -> Line:
    """A line whose figure is to be this or less."""
    return Line(what, f"at most {aim:g} {unit}", f"{value:.2f} {unit}", value <= aim, command)


def at_least(what: str, value: float, aim: float, command: str, unit: str = "x") -> Line:
    """A line whose figure is to be this or more."""
    return Line(what, f"at least {aim:,g} {unit}", f"{value:,.2f} {unit}", value >= aim, command)


def movielens(options: argparse.Namespace) -> Iterator[Line]:
    """Wall time beside the peers, cold, and the streaming phase beside the limit of two cores."""
    began = time.time()
    weights = options.weight
    _, command = call(
        sys.executable, "movielens_peers.py", "--systems", "ghee", "dask", "ray", "dataloader", "null",
        "--weight", *weights, "--rows", options.rows, "--repeats", options.repeats,
    )  # fmt: skip
    for weight, by_system in kept("movielens", began)["runs"].items():
        wall = {name: statistics.median(run["wall_s"] for run in runs) for name, runs in by_system.items()}
        for peer, aim in (("dask", 0.75), ("ray", 0.4), ("dataloader", 1.0)):
            yield at_most(f"MovieLens FM, n = {weight}: wall / {peer}'s", wall["ghee"] / wall[peer], aim, command)
        stream = statistics.median(run["result"]["stream_s"] for run in by_system["ghee"])
        limit = statistics.median(run["result"]["two_core_limit_s"] for run in by_system["null"])
        yield at_most(f"  streaming / the two cores' limit ({limit:.2f} s)", stream / limit, 1.15, command)


def transport(options: argparse.Namespace) -> Iterator[Line]:
    """One batch from rank to rank on one host."""
    began = time.time()
    _, command = call(
        sys.executable, "transport.py", "--systems", "ghee", "ray", "dask", "dataloader", "zmq", "memcpy",
        "--sizes", "4k", "1M", "64M", "--repeats", options.repeats,
    )  # fmt: skip
    figures = kept("transport", began)["figures"]

    def median(system: str, size: int, figure: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(figure(run) for run in figures[system][str(size)])

    def speed(run: dict[str, float]) -> float:
        return run["bytes"] / run["seconds"]

    ours, small, large = median("ghee", 1 << 20, speed), 4 << 10, 64 << 20
    for peer, aim in (("ray", 8), ("dataloader", 5), ("zmq", 1.5)):
        yield at_least(f"one batch of 1 MB: GB/s / {peer}'s", ours / median(peer, 1 << 20, speed), aim, command)
    yield at_least(
        "64 MB: GB/s / one memcpy's", median("ghee", large, speed) / median("memcpy", large, speed), 0.85, command
    )
    rate = median("ghee", small, lambda run: run["batches"] / run["seconds"])
    yield at_least("4 kB through a map that does nothing", rate, 20_000, command, "batches/s")
    for size, name in ((small, "4 kB"), (1 << 20, "1 MB"), (large, "64 MB")):
        cpu = {s: median(s, size, lambda run: run["cpu_s"] / run["bytes"]) for s in ("ghee", "ray", "dask", "dataloader")}
        best = min((value, peer) for peer, value in cpu.items() if peer != "ghee")
        yield at_most(f"CPU seconds per GB, {name} / the best peer's ({best[1]})", cpu["ghee"] / best[0], 1, command)


def startup(options: argparse.Namespace) -> Iterator[Line]:
    """From `run()` to the first batch, and from epoch to epoch."""
    printed, command = call(environment("ghee"), "startup.py", "--repeats", 2 * options.repeats)
    yield at_most("run() to first batch", number(printed, r"first batch: median ([\d.]+) s"), 0.6, command, "s")
    yield at_most("epoch to epoch", number(printed, r"of the next: median ([\d.]+) ms"), 5, command, "ms")


def waiting(options: argparse.Namespace) -> Iterator[Line]:
    """The wait of a trainer whose preprocessing has 1.2 times the capacity needed."""
    printed, command = call(environment("ghee"), "trainer_wait.py", "--repeats", options.repeats)
    yield at_most("trainer's wait at 1.2 x the capacity", number(printed, r"trainer waited ([\d.]+) %"), 3, command, "%")


def number(printed: str, pattern: str) -> float:
    """The figure in what a benchmark printed."""
    found = re.search(pattern, printed)
    if found is None:
        raise BenchmarkError(f"no {pattern!r} in:\n{printed}")
    return float(found[1])


PARTS = {"movielens": movielens, "transport": transport, "startup": startup, "waiting": waiting}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--weight", type=int, nargs="+", default=[1, 100, 1000])
    options = parser.parse_args()
    began, console = time.monotonic(), Console(width=150)
    head = machine()
    table = Table("what", "aim", "measured", "", title="ghee: what it aims at, and what was measured", title_justify="left")
    commands: dict[str, None] = {}
    for part in options.only:
        try:
            for line in PARTS[part](options):
                met = {True: "met", False: "NOT met", None: "-"}[line.met]
                table.add_row(line.what, line.aim, line.measured, met)
                commands.setdefault(line.command)
        except BenchmarkError as error:
            table.add_row(part, "", "could not be measured", "-")
            console.print(f"{part}: {error}", highlight=False)
    console.print(f"{head}; {time.monotonic() - began:.0f} s", highlight=False)
    console.print(table)
    for command in commands:
        console.print(f"python {command}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
