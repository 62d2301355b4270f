"""How long cumin takes to say that nothing changed, over many files in 100 partitions, at `stat` strength.

    python benchmarks/cumin_nothing_changed.py --prepare 1000 100000     # makes the files; DVC takes them in (minutes)
    python benchmarks/cumin_nothing_changed.py 1000 100000 [--no-peers]

The files stay below `build/benchmarks/lakes/` between the two, so that the second one measures only. Page cache warm.

* cumin: `cumin.plan` and the look into the store, in a process that has planned before; and `cumin plan FILE` as a command.
* the floors: `os.scandir` with `stat`, and `os.stat` by the folder's descriptor, alone, in Python.
* DVC: `dvc status -q` as a command, after `dvc add`; its state database is warm.
* HF: `datasets.load_dataset_builder("parquet", data_files=…)`, which resolves the pattern and every file's state and is
  the part of `load_dataset` that finds the cache; without the import of `datasets`.

cumin and the floors run by turns; medians of five passes, of a hundred over 1,000 files. Of the peers three, or
`--peer-passes` (with one, HF is not warmed up by a call before it).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pyarrow as pa
import pyarrow.parquet as pq

import cumin

PARTITIONS = 100
SQL = "SELECT count(*) AS n FROM t"
HF = """
import sys, time, statistics, datasets
datasets.disable_progress_bars()
times = []
passes, warm_up = int(sys.argv[3]), int(sys.argv[3]) > 1
for _ in range(passes + warm_up):
    start = time.perf_counter()
    datasets.load_dataset_builder("parquet", data_files=sys.argv[1] + "/t/**/*.parquet", cache_dir=sys.argv[2])
    times.append(time.perf_counter() - start)
print(statistics.median(times[warm_up:]))
"""


def lake(root: Path, files: int) -> None:
    """`files` small Parquet files in 100 partitions."""
    root.mkdir(parents=True)
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


def prepare(root: Path, files: int, *, with_dvc: bool) -> None:
    if not (root / "ready").exists():
        shutil.rmtree(root, ignore_errors=True)
        lake(root, files)
        (root / "ready").touch()
    if with_dvc and not (root / "t.dvc").exists():
        started = time.perf_counter()
        run(root, "git", "init", "-q")
        dvc(root, "init", "-q")
        dvc(root, "add", "-q", "t")
        dvc(root, "status", "-q")
        print(f"{files:,} files: dvc init, add and a first status took {time.perf_counter() - started:.0f} s", flush=True)


def run(root: Path, *command: str) -> None:
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def dvc(root: Path, *words: str) -> None:
    run(root, str(harness.environment("dvc").with_name("dvc")), *words)


def median(call: Callable[[], Any], passes: int) -> float:
    return medians([call], passes)[0]


def medians(calls: list[Callable[[], Any]], passes: int) -> list[float]:
    """The median time of each of the calls, which take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(passes):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return list(map(statistics.median, times))


def scan(root: Path) -> None:
    for folder in os.scandir(root / "t"):
        for entry in os.scandir(folder.path):
            entry.stat()


def stat_by_folder(root: Path) -> None:
    for folder in os.scandir(root / "t"):
        descriptor = os.open(folder.path, os.O_RDONLY)
        for name in os.listdir(descriptor):
            os.stat(name, dir_fd=descriptor)
        os.close(descriptor)


def decide(root: Path, source: Any) -> bool:
    made = cumin.plan("x", sql=SQL, inputs={"t": source})
    return cumin.open_store(root / "store").entry(made.build_id) is not None


def command(root: Path) -> None:
    (root / "x.yaml").write_text(
        f"name: x\nsql: {SQL}\nstore: store\ninputs:\n  t: {{kind: hive, root: t, partition: {{p: int}}}}\n"
    )
    run(root, str(Path(sys.executable).with_name("cumin")), "plan", "x.yaml")


def peers(root: Path, passes: int) -> dict[str, float]:
    found = {}
    if (root / "t.dvc").exists():
        found["dvc status"] = median(lambda: dvc(root, "status", "-q"), passes)
    script = [str(harness.environment("datasets")), "-c", HF, str(root), str(root / "hf"), str(passes)]
    done = subprocess.run(script, check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    found["HF resolve"] = float(done.stdout.split()[-1])
    return found


def row(root: Path, files: int, *, peer_passes: int) -> str:
    source = cumin.hive(root / "t", partition={"p": "int"})
    decide(root, source)
    whole, listing, floor, by_folder = medians(
        [
            lambda: decide(root, source),
            lambda: (opened := source.open()).parts(list(opened.partitions)),
            lambda: scan(root),
            lambda: stat_by_folder(root),
        ],
        max(5, 100_000 // files),
    )
    process = median(lambda: command(root), 3)
    beside = peers(root, peer_passes) if peer_passes else {}
    shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in beside.items())
    micro = 1e6 / files
    return (
        f"| {files:,} | {whole:.4f} | {whole * micro:.2f} | {listing * micro:.2f} | {floor * micro:.2f} | "
        f"{by_folder * micro:.2f} | {process:.2f} | {shown} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=int, nargs="+")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--peer-passes", type=int, default=3)
    arguments = parser.parse_args()
    roots = {files: harness.WORK / f"lakes/{files}" for files in arguments.files}
    for files, root in roots.items():
        prepare(root, files, with_dvc=arguments.prepare and not arguments.no_peers)
    if arguments.prepare:
        return
    print(f"python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, cache warm")
    print("| files | cumin, s | µs a file | of it listing and token | scandir+stat alone | stat by folder alone | "
          "command `cumin plan`, s | peers |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for files, root in roots.items():
        print(row(root, files, peer_passes=0 if arguments.no_peers else arguments.peer_passes), flush=True)


if __name__ == "__main__":
    main()
