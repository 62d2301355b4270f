"""What the benchmarks have in common: an environment per system, processes measured whole, results kept.

Every system runs in its own process with its own environment, so that no system's dependencies touch another's.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / "build" / "benchmarks"
PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 10.0  # for what a system leaves behind when its main process has ended


class BenchmarkError(Exception):
    """A system could not be measured; the message says which, and shows what it printed."""


def environment(name: str) -> Path:
    """The Python of the environment of `requirements/<name>.txt`, made with uv on the first call."""
    uv = shutil.which("uv")
    if uv is None:
        raise BenchmarkError("uv is not on the PATH: python -m pip install uv, or tox run -e bench.")
    requirements, folder = HERE / "requirements" / f"{name}.txt", WORK / "envs" / name
    python, stamp = folder / "bin" / "python", folder / "requirements.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"environment {name}: installing {requirements.relative_to(ROOT)}", flush=True)
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", python, "--requirements", requirements]
        subprocess.run(install, check=True, cwd=ROOT)
        stamp.write_text(wanted)
    return python


@dataclass
class Measured:
    """One run of one system, its processes taken together."""

    wall_s: float  # from the start of the main process to its end
    cpu_s: float  # user and system time of every process
    left_behind: int  # processes still there GRACE_S after the main one ended; they were killed
    peak_pss_bytes: int | None  # highest sum over all processes, if it was asked for
    result: dict[str, Any] = field(default_factory=dict)  # what the adapter printed


def measure(name: str, script: str, *arguments: object, memory: bool = False, timeout_s: float = 900,
            examples: bool = True) -> Measured:  # fmt: skip
    """Runs `systems/<script>.py` in the environment `name`; raises BenchmarkError if it prints no result.

    `examples`: it can import the MovieLens example, one of whose files is called as a package of Dask is.
    """
    command = [environment(name), HERE / "systems" / f"{script}.py", *arguments]
    # Processes that a system orphans become children of this one, so that their CPU time counts and none stays.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    others = _descendants(os.getpid())  # servers of the benchmark
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=_variables(start, scratch, examples),
        )
        watch = _MemoryWatch(process.pid) if memory else None
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - start
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
        orphans_cpu, left_behind = _reap_orphans(others)
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    results = [line.removeprefix("RESULT ") for line in text.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not results:
        raise BenchmarkError(f"{script} ended with {process.returncode} after {wall:.0f} s:\n{text[-4000:]}")
    cpu = usage.ru_utime + usage.ru_stime + orphans_cpu
    return Measured(wall, cpu, left_behind, watch.stop() if watch else None, json.loads(results[-1]))


def _variables(start: float, scratch: str, examples: bool) -> dict[str, str]:
    """This process's environment, but one thread per process for every library, bytecode kept, our folders first."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    path = os.pathsep.join(map(str, (HERE, ROOT / "examples" / "movielens")[: 1 + examples]))
    return {**inherited, **threads, "PYTHONPATH": path, "BENCHMARK_STARTED": repr(start), "TMPDIR": scratch}


def _reap_orphans(others: set[int]) -> tuple[float, int]:
    """CPU seconds of the orphans that came to this process, and how many had to be killed; the `others` stay."""
    cpu, deadline, killed = 0.0, time.monotonic() + GRACE_S, set[int]()
    while True:
        try:
            pid, _, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return cpu, len(killed)
        if pid:
            cpu += usage.ru_utime + usage.ru_stime
        elif not (alive := _descendants(os.getpid()) - others):
            return cpu, len(killed)
        elif time.monotonic() > deadline:
            killed |= alive
            for each in alive:
                os.kill(each, signal.SIGKILL)
            time.sleep(0.1)
        else:
            time.sleep(0.01)


def _descendants(root: int) -> set[int]:
    """The processes below `root`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended since
            parents[int(entry.name)] = int(after_name[1])
    found, grew = {root}, True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grew = found | more, bool(more)
    return found - {root}


class _MemoryWatch:
    """Samples the proportional set size of a process and all below it, twice a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._ended = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._ended.wait(0.5):
            total = 0
            for pid in {self._pid} | _descendants(self._pid):
                try:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                except OSError:
                    continue  # it has ended since
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
            self._peak = max(self._peak, total)


def keep(name: str, results: object) -> Path:
    """Writes the results as JSON below build/benchmarks/results."""
    folder = WORK / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(results, indent=1))
    return path


def machine() -> str:
    """Cores, memory, kernel and load, for the head of a report."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    release, cores = os.uname().release, len(os.sched_getaffinity(0))
    return f"{cores} cores, {memory:.0f} GiB, Linux {release}, Python {sys.version.split()[0]}, load {load:.1f}"
