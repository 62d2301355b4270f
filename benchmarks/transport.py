"""One batch from rank to rank on one host: ghee beside Ray, Dask, PyTorch DataLoader, bare pyzmq and one memcpy.

    python benchmarks/transport.py
    python benchmarks/transport.py --systems ghee zmq memcpy --sizes 4k 1M 64M --repeats 3

The mapping is the identity, the receiver reads every 4,096th byte. The systems take turns; printed are medians over the
repeats: GB/s (10^9 bytes), batches/s, and CPU seconds of all the system's processes per GB while the batches flowed.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from harness import BenchmarkError, keep, machine, measure
from rich.console import Console
from rich.table import Table

SYSTEMS = {  # name -> environment, script
    "ghee": ("ghee", "hop_ghee"),
    "ray": ("ray", "hop_ray"),
    "dask": ("dask", "hop_dask"),
    "dataloader": ("torch", "hop_dataloader"),
    "zmq": ("ghee", "hop_zmq"),
    "memcpy": ("null", "hop_memcpy"),
}
SIZES = {"4k": 4 << 10, "64k": 64 << 10, "256k": 256 << 10, "1M": 1 << 20, "8M": 8 << 20, "64M": 64 << 20}
FAST = {"ghee", "zmq", "memcpy"}  # these get more batches, to be measured for as long as the others
Figures = dict[str, dict[str, list[dict[str, float]]]]  # system -> size in bytes -> its repeats


def count(system: str, size: int) -> int:
    """How many batches are sent: half a GB, but 16 at least and 4,000 at most; five times that for a fast system."""
    return min(max((512 << 20) // size, 16), 4_000) * (5 if system in FAST else 1)


def run_all(options: argparse.Namespace, console: Console) -> Figures:
    """Every system at every size, in turns."""
    figures: Figures = {name: {str(SIZES[size]): [] for size in options.sizes} for name in options.systems}
    for repeat in range(options.repeats):
        turn = repeat % len(options.systems)
        for name in options.systems[turn:] + options.systems[:turn]:
            pairs = [f"{SIZES[size]}={count(name, SIZES[size])}" for size in options.sizes]
            run = measure(*SYSTEMS[name], *pairs)
            for size, measured in figures[name].items():
                measured.append(run.result[size])
            console.print(f"repeat {repeat + 1}: {name} {run.wall_s:.1f} s", highlight=False)
    return figures


def table(title: str, figures: Figures, sizes: list[str], form: str, figure) -> Table:
    """One figure, systems down, sizes across: medians."""
    printed = Table(title=title)
    printed.add_column("")
    for size in sizes:
        printed.add_column(size, justify="right")
    for name, by_size in figures.items():
        printed.add_row(name, *(form.format(statistics.median(map(figure, runs))) for runs in by_size.values()))
    return printed


def main() -> None:
    """See the module's docstring."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    options.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options.add_argument("--repeats", type=int, default=5)
    chosen, console = options.parse_args(), Console()
    console.print(machine(), highlight=False)
    try:
        figures = run_all(chosen, console)
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    for title, form, figure in (
        ("GB/s", "{:.2f}", lambda run: run["bytes"] / run["seconds"] / 1e9),
        ("batches/s", "{:,.0f}", lambda run: run["batches"] / run["seconds"]),
        ("CPU seconds per GB", "{:.2f}", lambda run: run["cpu_s"] / run["bytes"] * 1e9),
    ):
        console.print(table(title, figures, chosen.sizes, form, figure))
    console.print(f"all figures: {keep('transport', {'machine': machine(), 'figures': figures})}", soft_wrap=True)


if __name__ == "__main__":
    main()
