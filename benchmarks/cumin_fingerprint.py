"""A content-strong (`bytes`) fingerprint of a large table, first time, cache of digests empty.

    python benchmarks/cumin_fingerprint.py --gigabytes 10 [--cold]

Beside it in the same run: one core's BLAKE3 over memory, reading the same files without hashing, MD5 of the same files
on one core (what DVC does), and `dvc add` itself, with its cache linked by hard links. `--cold` drops the files from the
page cache before each pass (`posix_fadvise(DONTNEED)` after `fsync`).
"""

import argparse
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
from blake3 import blake3

import cumin

FILES = 100
OURS = "cumin, strength='bytes'"


def timed(run: Callable[[], object], size: int) -> float:
    started = time.perf_counter()
    run()
    return size / (time.perf_counter() - started) / 1e9


def drop(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(paths: list[Path]) -> None:
    buffer = bytearray(1 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def md5(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, "md5")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["CUMIN_CACHE"] = str(root / "cache")
        size = int(arguments.gigabytes * 1e9) // FILES
        block = os.urandom(1 << 22)
        (root / "t").mkdir()
        for number in range(FILES):
            with (root / f"t/{number:03}.bin").open("wb") as file:
                file.write(number.to_bytes(8, "big"))
                for start in range(8, size, len(block)):
                    file.write(block[: min(len(block), size - start)])
        paths = sorted((root / "t").iterdir())
        total = sum(path.stat().st_size for path in paths)
        before = (lambda: drop(paths)) if arguments.cold else (lambda: read(paths))
        state = "cold" if arguments.cold else "warm"
        print(f"{total / 1e9:.1f} GB in {FILES} files, cache {state}, load {os.getloadavg()[0]:.1f}")
        memory = bytes(1 << 28)
        core = max(timed(lambda: blake3(memory).digest(), len(memory)) for _ in range(3))
        rows = {}
        for label, run in (
            ("read only, 1 thread", lambda: read(paths)),
            (OURS, lambda: fingerprint(root)),
            ("MD5, 1 thread", lambda: md5(paths)),
        ):
            before()
            rows[label] = timed(run, total)
        dvc = harness.environment("dvc").with_name("dvc")
        settings = [[dvc, "config", "cache.type", "hardlink"], [dvc, "config", "core.checksum_jobs", "2"]]
        for command in (["git", "init", "-q"], [dvc, "init", "-q"], *settings):
            subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
        before()
        rows["dvc add (MD5, 2 threads, hard links)"] = timed(
            lambda: subprocess.run([dvc, "add", "-q", "t"], cwd=root, check=True, stdout=subprocess.DEVNULL), total
        )
        print("| what | GB/s | of one core's BLAKE3 |\n|---|---|---|")
        print(f"| BLAKE3 over memory, 1 thread | {core:.2f} | 1.00 |")
        for label, speed in rows.items():
            print(f"| {label} | {speed:.2f} | {speed / core:.2f} |")
        ceiling = min(core, rows["read only, 1 thread"])
        print(f"cumin / min(disk, one core's BLAKE3) = {rows[OURS] / ceiling:.2f}")


def fingerprint(root: Path) -> None:
    table = cumin.files(root / "t/*.bin", format="parquet", strength="bytes").open()
    table.parts([""])


if __name__ == "__main__":
    main()
