"""The MovieLens job on ghee and its peers, side by side.

    python benchmarks/movielens_peers.py                        five repeats, weight 1
    python benchmarks/movielens_peers.py --weight 1 100 1000    preprocessing made heavier
    python benchmarks/movielens_peers.py --systems ghee dask --repeats 3 --rows 500000

Two preprocessing processes and one trainer for each. The systems take turns within a repeat, in an order that moves on
by one from repeat to repeat, after one run of each that is not counted. Printed are medians; the ratio is ghee's wall
time over the system's. `null` is one process without a pipeline, `trainer` the trainer on batches that lie in memory;
`limit` is what two cores allow: the larger of the training and half of all work, as `null` measured them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from harness import ROOT, WORK, BenchmarkError, Measured, keep, machine, measure
from rich.console import Console
from rich.table import Table

SYSTEMS = {  # name -> environment, script
    "ghee": ("ghee", "ghee_pipeline"),
    "dask": ("dask", "dask_futures"),
    "ray": ("ray", "ray_data"),
    "dataloader": ("torch", "dataloader"),
    "null": ("null", "null"),
    "trainer": ("null", "trainer"),
}
Runs = dict[int, dict[str, list[Measured]]]  # weight -> system -> its repeats


def input_folder(rows: int) -> Path:
    """The Parquet files of about that many ratings, written once."""
    sys.path.insert(0, str(ROOT / "examples" / "movielens"))
    import data
    import job

    folder = WORK / "data" / f"rows-{rows}"
    if not (folder / "checksum.json").is_file():
        job.make_input(data.prepare(), folder, rows)
    return folder


def checked(name: str, run: Measured, folder: Path) -> Measured:
    """The run, if the trainer saw every row once; else BenchmarkError."""
    wanted = json.loads((folder / "checksum.json").read_text())
    got = {key: run.result[key] for key in wanted}
    if got != wanted:
        raise BenchmarkError(f"{name} trained on {got}, the input holds {wanted}")
    return run


def run_all(options: argparse.Namespace, console: Console) -> Runs:
    """Every system at every weight, in turns."""
    folder, runs = input_folder(options.rows), defaultdict[int, dict[str, list[Measured]]](lambda: defaultdict(list))
    for weight in options.weight:
        for repeat in range(1 if options.cold else 0, options.repeats + 1):
            turn = repeat % len(options.systems)
            for name in options.systems[turn:] + options.systems[:turn]:
                if repeat == 0 and weight != options.weight[0]:
                    continue  # warm already
                arguments = (folder, "--weight", weight, "--workers", options.workers)
                run = checked(name, measure(*SYSTEMS[name], *arguments, memory=options.memory), folder)
                if repeat:
                    runs[weight][name].append(run)
                counted = f"weight {weight} repeat {repeat}" if repeat else "warm-up"
                console.print(f"{counted}: {name} {run.wall_s:.1f} s", highlight=False)
    return runs


def table(weight: int, by_system: dict[str, list[Measured]]) -> Table:
    """Medians over the repeats, with the lowest and highest wall time."""
    printed = Table(title=f"MovieLens FM, preprocessing weight {weight}: medians")
    columns = "system, wall s, (low-high), ghee's ratio, start-up s, stream s, rows/s, waited %, CPU s, PSS MiB, left"
    for column in columns.split(", "):
        printed.add_column(column, justify="left" if column == "system" else "right")
    ours = median(by_system, "ghee", lambda run: run.wall_s) if "ghee" in by_system else None
    for name, runs in by_system.items():
        walls = [run.wall_s for run in runs]
        wall = statistics.median(walls)
        stream = median(by_system, name, lambda run: run.result["stream_s"])
        printed.add_row(
            name,
            f"{wall:.2f}",
            f"({min(walls):.2f}-{max(walls):.2f})",
            f"{ours / wall:.2f}" if ours is not None else "-",
            f"{median(by_system, name, lambda run: run.result['startup_s']):.2f}",
            f"{stream:.2f}",
            f"{runs[0].result['rows'] / stream:,.0f}",
            f"{median(by_system, name, lambda run: 100 * run.result['wait_s'] / run.result['stream_s']):.1f}",
            f"{median(by_system, name, lambda run: run.cpu_s):.1f}",
            f"{max(run.peak_pss_bytes for run in runs) / 2**20:.0f}" if runs[0].peak_pss_bytes else "-",
            str(max(run.left_behind for run in runs)),
        )
    if "null" in by_system:
        limit = median(by_system, "null", lambda run: run.result["two_core_limit_s"])
        printed.add_section()
        printed.add_row("limit", *[""] * 4, f"{limit:.2f}", *[""] * 5)
    return printed


def median(by_system: dict[str, list[Measured]], name: str, figure) -> float:
    """The middle one of a system's figures."""
    return statistics.median(figure(run) for run in by_system[name])


def main() -> None:
    """See the module's docstring."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--weight", type=int, nargs="+", default=[1], help="rounds of extra work per batch")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--rows", type=int, default=2_000_000)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    options.add_argument("--cold", action="store_true", help="without the run before that is not counted")
    options.add_argument("--memory", action="store_true", help="sample memory too; costs some CPU time")
    chosen, console = options.parse_args(), Console()
    console.print(machine(), highlight=False)
    try:
        runs = run_all(chosen, console)
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    versions = {
        key: value for by in runs.values() for run in by.values() for key, value in run[0].result["versions"].items()
    }
    console.print(", ".join(f"{name} {version}" for name, version in versions.items()), highlight=False)
    for weight, by_system in runs.items():
        console.print(table(weight, by_system))
    plain = {weight: {name: [asdict(r) for r in rs] for name, rs in by.items()} for weight, by in runs.items()}
    console.print(f"all figures: {keep('movielens', {'machine': machine(), 'runs': plain})}", soft_wrap=True)


if __name__ == "__main__":
    main()
