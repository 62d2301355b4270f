"""Real scripts in real processes: Ctrl-C, kill -9, no memory left, a small /dev/shm, functions from everywhere."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ghee
from ghee.launch.local import COPY_PAST_CACHE, make_folder, rank_environment, remove_left

LIMIT = 60.0
"""Seconds for a script to get to the next thing that is waited for."""

BUSY = """
import os, signal, sys
import numpy
import ghee

def work(batch):
    return batch

def train(batches):
    from mpi4py import MPI          # its shared memory must go too
    MPI.COMM_WORLD.Barrier()
    for batch in batches:
        print("ready", os.getpid(), flush=True)
        signal.pause()

ghee.run(ghee.read([numpy.arange(1 << 20)] * 8).map(work, replicas=2).loop(train, replicas=2))
"""


class Script:
    """A script of the user's, running in a process (and process group) of its own."""

    def __init__(self, folder: Path, text: str, *before: str) -> None:
        path = folder / "users_script.py"
        path.write_text(text)
        self.process = subprocess.Popen(
            [*before, sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            text=True, cwd=folder,
        )  # fmt: skip

    def wait_for(self, *lines: str) -> None:
        """Read what it prints until each of these has been seen as often as it stands here."""
        left = list(lines)
        assert self.process.stdout is not None
        while left:
            line = self.process.stdout.readline()
            assert line, f"the script ended before it said {left}: {self.process.communicate()}"
            left = left[1:] if left[0] in line else left

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: exit status, stdout, stderr."""
        out, err = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, out, err


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """Start scripts; those that still run at the end of the test are killed."""
    started: list[Script] = []

    def start(text: str, *before: str) -> Script:
        started.append(Script(tmp_path, text, *before))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def test_ctrl_c_ends_everything_with_one_line(script: Callable[..., Script], running: Callable[[], dict[int, str]]) -> None:
    user = script(BUSY)
    user.wait_for("ready", "ready")
    assert len(running()) > 5  # the script, mpiexec and ranks
    user.process.send_signal(signal.SIGINT)
    status, _, err = user.end()
    assert status == -signal.SIGINT  # a shell shows 130
    assert len(err.splitlines()) == 1, err
    assert err.startswith("ghee: interrupted after ")
    assert running() == {}


def test_ctrl_c_that_the_user_catches(script: Callable[..., Script]) -> None:
    catching = BUSY.replace("ghee.run(", "try:\n    ghee.run(") + (
        "except KeyboardInterrupt as error:\n    print('caught', str(error)[:17])\n"
    )
    user = script(catching)
    user.wait_for("ready", "ready")
    user.process.send_signal(signal.SIGINT)
    status, out, err = user.end()
    assert (status, out.splitlines()[-1], err) == (0, "caught ghee: interrupted", "")


def test_a_killed_driver_leaves_nothing(script: Callable[..., Script], running: Callable[[], dict[int, str]]) -> None:
    user = script(BUSY)
    user.wait_for("ready", "ready")
    folders = [Path(tempfile.gettempdir(), name) for name in os.listdir(tempfile.gettempdir())]
    assert any(folder.name.startswith("ghee-") and any(folder.iterdir()) for folder in folders)
    left = [os.pidfd_open(pid) for pid in running()]
    user.process.kill()
    for descriptor in left:
        assert select.select([descriptor], [], [], LIMIT)[0]
        os.close(descriptor)
    assert user.end()[0] == -signal.SIGKILL
    assert running() == {}
    assert os.listdir(tempfile.gettempdir()) == []


def test_a_kill_of_everything_at_once_leaves_no_shared_memory(
    script: Callable[..., Script], running: Callable[[], dict[int, str]]
) -> None:
    before = set(os.listdir("/dev/shm"))
    user = script(BUSY)
    user.wait_for("ready", "ready")
    pids = running()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that none of them can tidy up after another
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    user.end()
    assert {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("mpich")} == set()
    assert os.listdir(tempfile.gettempdir()), "a folder of files is all that is left"
    folder, lock = make_folder()  # of a driver that lives
    remove_left()  # as every run does at first
    assert os.listdir(tempfile.gettempdir()) == [Path(folder).name]
    os.close(lock)
    remove_left()
    assert os.listdir(tempfile.gettempdir()) == []


def test_functions_come_from_everywhere(script: Callable[..., Script], tmp_path: Path) -> None:
    (tmp_path / "beside_the_script.py").write_text("FACTOR = 3\ndef times(batch):\n    return batch * FACTOR\n")
    user = script(
        """
import functools
import numpy
import beside_the_script
import ghee

OFFSET = 100

class Failure(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

def of_main(batch):
    return batch + OFFSET

class Adder:
    def __init__(self, by):
        self.by = by
    def __call__(self, batch):
        return batch + self.by

def closure(by):
    def add(batch):
        return batch + by
    return add

def total(batches):
    return int(sum(batch.sum() for batch in batches))

def fail(batch):
    raise Failure(1, 2)

if True:
    for on in ("inline", "local"):
        ready = ghee.read([numpy.array([1, 2])])
        ready = ready.map(of_main).map(beside_the_script.times).map(lambda batch: batch + 1).map(closure(10))
        ready = ready.map(functools.partial(numpy.add, 1000)).map(Adder(5), name="instance")
        ready = ready.map(functools.partial(Adder, 7), name="class")
        print(on, ghee.run(ready.loop(total)).result)
        try:
            ghee.run(ghee.read([1]).map(fail).loop(total), on=on)
        except Failure as error:
            print(on, type(error) is Failure, error, error.__notes__[0].splitlines()[0].rpartition("/")[2])
"""
    )
    status, out, err = user.end()
    assert (status, err) == (0, "")
    expected = 3 * (101 + 102) + 2 * (1 + 10 + 1000 + 5 + 7)
    said = "True 1 and 2 users_script.py:31 in fail: raise Failure(1, 2)"
    assert out.splitlines() == [f"inline {expected}", f"inline {said}", f"local {expected}", f"local {said}"]


def test_an_interpreter_without_a_script(script: Callable[..., Script], tmp_path: Path) -> None:
    """As in a notebook: the functions are in `__main__`, and there is no file of it."""
    text = "import ghee\ndef f(x): return x + 1\ndef g(b): return sum(b)\n"
    text += "print(ghee.run(ghee.read([1, 2]).map(f).loop(g)).result)"
    done = subprocess.run(
        [sys.executable, "-"], input=text, capture_output=True, text=True, timeout=LIMIT, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")


def test_a_small_shared_memory_is_found_before_anything_starts(script: Callable[..., Script]) -> None:
    inside = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "-m", "sh", "-c"]
    inside += ['mount -t tmpfs -o size=3m tmpfs /dev/shm && exec "$@"', "sh"]
    user = script(BUSY.replace("loop(train, replicas=2)", "loop(train, replicas=4)"), *inside)
    status, out, err = user.end()
    assert status == 1
    assert "MachineError: /dev/shm has 3Mi free, but MPI needs about 8Mi there for 4 ranks" in err
    for fix in ("mount -o remount,size=64m /dev/shm", "--shm-size=64m", "emptyDir"):
        assert fix in err
    assert "ready" not in out


def test_a_shared_memory_that_is_just_large_enough_is(script: Callable[..., Script]) -> None:
    inside = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "-m", "sh", "-c"]
    inside += ['mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$@"', "sh"]
    user = script(BUSY.replace("signal.pause()", "pass").replace("replicas=2))", "replicas=4))"), *inside)
    status, out, err = user.end()
    assert (status, err) == (0, "")
    assert out.count("ready") == 8


# ── no memory left ───────────────────────────────────────────────────────────────────────────────────────────────

GREEDY = """
import numpy
import ghee

def work(batch):
    kept = []
    while True:
        kept.append(numpy.ones(64 << 20, numpy.uint8))

ghee.run(ghee.read([1]).map(work).loop(list))
"""


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A memory cgroup of 1 GiB (version 1 or 2), empty."""
    group = Path(
        "/sys/fs/cgroup/memory" if os.path.isdir("/sys/fs/cgroup/memory") else "/sys/fs/cgroup", f"ghee-{os.getpid()}"
    )
    limit = "memory.limit_in_bytes" if group.parent.name == "memory" else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(1 << 30))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"needs root and a memory cgroup that can be written: {error}")
    yield group
    group.rmdir()


def test_a_rank_that_the_kernel_kills_for_want_of_memory(script: Callable[..., Script], memory_group: Path) -> None:
    user = script(GREEDY, "sh", "-c", f'echo $$ > {memory_group}/cgroup.procs && exec "$@"', "sh")
    status, _, err = user.end()
    assert status == 1
    last = err[err.rindex("RankKilledError") :]
    assert "rank 0 of stage 'work'" in last
    assert "was killed by SIGKILL by the kernel, which was out of memory" in last


def test_the_users_own_choices_of_glibc_and_mpi_go_before_ours():
    ours = f"{COPY_PAST_CACHE}=0x100000"
    assert rank_environment({})["GLIBC_TUNABLES"] == ours
    assert rank_environment({"GLIBC_TUNABLES": "glibc.malloc.check=3"})["GLIBC_TUNABLES"] == f"glibc.malloc.check=3:{ours}"
    chosen = f"glibc.malloc.check=3:{COPY_PAST_CACHE}=0x4000000"
    assert rank_environment({"GLIBC_TUNABLES": chosen})["GLIBC_TUNABLES"] == chosen
    assert rank_environment({"UCX_TLS": "tcp"})["UCX_TLS"] == "tcp"


def test_ranks_copy_what_is_large_past_the_cache(tmp_path, monkeypatch):
    """Told at their start: glibc reads it then, once."""
    monkeypatch.setenv("GHEE_HOME", str(tmp_path))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    started = ghee.run(ghee.read([0]).map(lambda _: [os.environ["GLIBC_TUNABLES"]]).loop(list), progress=False).result
    assert list(started[0]) == [f"{COPY_PAST_CACHE}=0x100000"]
