"""Parquet from HDFS, S3 and a local disk through a map that does nothing: MB/s, beside the bytes alone and others.

    PYTHONPATH=tests python benchmarks/storage.py
    PYTHONPATH=tests python benchmarks/storage.py --stores hdfs --systems bytes ghee --megabytes 3000 --repeats 5

Starts the servers of tests/servers on this machine (Java and Maven for HDFS, Go for S3), which share its cores, and writes
files as pyarrow does by default. Each system reads all of them `--passes` times, in a process and an environment of its own:
hdfs-native the bytes alone, pyarrow its own scan, ghee, Ray Data and Dask a map that does nothing and a count. Ray's and
Dask's times begin when their workers run, ghee's holds its start. Every system must have seen every row. Prints medians, and
what ghee reaches of each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import keep, machine, measure
from scan import Scan, make_input

from servers.hdfs import Hdfs
from servers.s3 import S3

ENVIRONMENTS = {"bytes": "scan_ghee", "pyarrow": "scan_ghee", "ghee": "scan_ghee", "ray": "scan_ray", "dask": "scan_dask"}
BLOCK = 128 << 20  # bytes, HDFS's own default; the tests' blocks are small


class LargeBlocks(Hdfs):
    """HDFS with blocks of the usual size."""

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self._settings["dfs.blocksize"] = str(BLOCK)


def measured(store: str, chosen: argparse.Namespace) -> dict[str, list[float]]:
    """MB/s of each system, by repeat."""
    with tempfile.TemporaryDirectory() as state:
        if store == "local":
            return _scanned(Scan("local", "", "", f"{state}/scan", chosen.passes, chosen.workers), chosen)
        server = LargeBlocks(Path(state)) if store == "hdfs" else S3(Path(state))
        server.fetch()
        try:
            server.start()
            os.environ.update(server.env)
            web, folder = (server.web, "/scan") if isinstance(server, Hdfs) else ("", "bucket/scan")
            return _scanned(Scan(store, server.address, web, folder, chosen.passes, chosen.workers), chosen)
        finally:
            server.stop()


def _scanned(scan: Scan, chosen: argparse.Namespace) -> dict[str, list[float]]:
    rows, size = make_input(scan.filesystem(), scan.folder, chosen.megabytes, chosen.files)
    print(
        f"{scan.store}: {rows:,} rows, {size / 1e6:,.0f} MB in {chosen.files} files, read {chosen.passes} times", flush=True
    )
    return _repeats(scan, rows, size, chosen)


def _repeats(scan: Scan, rows: int, size: int, chosen: argparse.Namespace) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {}
    systems = [name for name in chosen.systems if name != "bytes" or scan.store == "hdfs"]
    for repeat in range(chosen.repeats + 1):
        for name in systems:
            done = measure(ENVIRONMENTS[name], f"scan_{name}", scan.argument, memory=name == "ghee", examples=False)
            seen, wanted = (done.result["bytes"], size) if name == "bytes" else (done.result["rows"], rows)
            if seen != wanted * scan.passes:
                raise SystemExit(f"{name} saw {seen:,} of {wanted * scan.passes:,}")
            speed = size * scan.passes / 1e6 / done.result["seconds"]
            more = f", peak {(done.peak_pss_bytes or 0) / 2**20:.0f} MiB" if name == "ghee" else ""
            note = "" if repeat else "  (not counted)"
            print(
                f"  {name:8} {done.result['seconds']:6.2f} s {speed:7.0f} MB/s, cpu {done.cpu_s:.1f} s{more}{note}",
                flush=True,
            )
            if repeat:
                speeds.setdefault(name, []).append(speed)
    return speeds


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", default=["hdfs", "s3", "local"], choices=["hdfs", "s3", "local"])
    parser.add_argument("--systems", nargs="+", default=list(ENVIRONMENTS), choices=list(ENVIRONMENTS))
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="processes or threads that read")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    print(machine())
    results: dict[str, Any] = {"machine": machine(), "settings": vars(chosen)}
    for name in chosen.stores:
        results[name] = speeds = measured(name, chosen)
        medians = {system: statistics.median(values) for system, values in speeds.items()}
        for system, median in medians.items():
            ratio = f"; ghee reaches {medians['ghee'] / median:.2f} of it" if "ghee" in medians and system != "ghee" else ""
            print(f"{name}, {system}: {median:.0f} MB/s{ratio}")
    print(f"kept: {keep('storage', results)}")


if __name__ == "__main__":
    main()
