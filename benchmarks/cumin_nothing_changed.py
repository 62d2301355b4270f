"""How long cumin takes to say that nothing changed, over many files in 100 partitions, at `stat` strength.

    python benchmarks/cumin_nothing_changed.py 1000 100000 1000000 [--peers]

Page cache warm (second pass); every figure is the median of five passes in one process that has planned once before.
Beside it: `os.scandir` with `stat` alone (the ceiling in Python), and with `--peers`, where they are installed,
`dvc status` (cache warm, as a command) and Hugging Face's resolving of `data_files` (without reading any).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import cumin

PARTITIONS = 100


def lake(root: Path, files: int) -> None:
    """`files` small Parquet files in 100 partitions."""
    one = root / "one.parquet"
    pq.write_table(pa.table({"a": [1]}), one)
    data = one.read_bytes()
    one.unlink()
    for partition in range(PARTITIONS):
        folder = root / f"t/p={partition}"
        folder.mkdir(parents=True)
        for number in range(files // PARTITIONS):
            handle = os.open(f"{folder}/part-{number:06}.parquet", os.O_CREAT | os.O_WRONLY)
            os.write(handle, data)
            os.close(handle)


def median(run: Callable[[], Any], passes: int = 5) -> float:
    times = []
    for _ in range(passes):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def scan(root: Path) -> None:
    for folder in os.scandir(root / "t"):
        for entry in os.scandir(folder.path):
            entry.stat()


def decide(root: Path, source: Any) -> bool:
    made = cumin.plan("x", sql="SELECT count(*) AS n FROM t", inputs={"t": source})
    return cumin.open_store(root / "store").entry(made.build_id) is not None


def peers(root: Path) -> dict[str, float]:
    found = {}
    if shutil.which("dvc"):

        def quiet(*command: str) -> None:
            subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        quiet("git", "init", "-q")
        quiet("dvc", "init", "-q")
        quiet("dvc", "add", "-q", "t")
        found["dvc status"] = median(lambda: quiet("dvc", "status", "-q"), 3)
    try:
        from datasets import load_dataset_builder
    except ImportError:
        return found
    pattern = str(root / "t/**/*.parquet")
    resolve = lambda: load_dataset_builder("parquet", data_files=pattern, cache_dir=str(root / "hf"))  # noqa: E731
    resolve()
    found["HF resolve"] = median(resolve, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=int, nargs="+")
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    print(f"python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, cache warm")
    print("| files | cumin plan, s | µs a file | scandir+stat alone, µs a file | listing and token, µs a file | peers |")
    print("|---|---|---|---|---|---|")
    for files in arguments.files:
        with tempfile.TemporaryDirectory() as name:
            print(row(Path(name), files, with_peers=arguments.peers), flush=True)


def row(root: Path, files: int, *, with_peers: bool) -> str:
    lake(root, files)
    source = cumin.hive(root / "t", partition={"p": "int"})
    decide(root, source)
    whole = median(lambda: decide(root, source))
    listing = median(lambda: (opened := source.open()).parts(list(opened.partitions)))
    ceiling = median(lambda: scan(root))
    beside = peers(root) if with_peers else {}
    shown = ", ".join(f"{name} {seconds:.2f} s ({seconds / whole:.1f}x)" for name, seconds in beside.items())
    micro = 1e6 / files
    return f"| {files:,} | {whole:.3f} | {whole * micro:.2f} | {ceiling * micro:.2f} | {listing * micro:.2f} | {shown} |"


if __name__ == "__main__":
    main()
