"""What ends a run: it ends with the cause, within seconds, and leaves nothing, whatever fails and whoever is killed."""

from __future__ import annotations

import itertools
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import ghee
from ghee.errors import CheckpointError, MachineError, PipelineError, RankError, RankKilledError, RankStartError, SourceError
from ghee.launch.local import LocalLauncher, have_descriptors

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import a test module

LIMIT = 60.0
"""Seconds for what would otherwise never come; a limit, never something that is waited for."""

BATCHES = [np.arange(10)] * 20


def count(batches: Any) -> int:
    """The rows that came."""
    return sum(len(batch) for batch in batches)


def ended(run: ghee.Run) -> BaseException | None:
    """What a run has ended with."""
    assert run.wait(LIMIT), "the run hangs"
    try:
        run.results  # noqa: B018
    except BaseException as error:
        return error
    return None


# ── a failure while the run begins again, or in a thread of ours ──────────────────────────────────────────────────────


def killed_after_a_checkpoint(gone: str) -> Callable[[Any], int]:
    """A loop that is killed once, after something that the run needs was removed."""

    def train(batches: Any) -> int:
        for number, _ in enumerate(batches):
            if number == 3:
                ghee.checkpoint({"number": number})
            if number == 5 and ghee.restored() is None:
                shutil.rmtree(gone if os.path.isabs(gone) else next(Path(os.environ["GHEE_HOME"], "runs").iterdir()) / gone)
                os.kill(os.getpid(), signal.SIGKILL)
        return 1

    return train


@pytest.mark.parametrize(("gone", "kind"), [("checkpoints", CheckpointError), (".", CheckpointError)])
def test_a_run_that_cannot_be_begun_again_ends_with_the_cause(gone: str, kind: type[Exception]) -> None:
    error = ended(ghee.run(ghee.read(BATCHES).loop(killed_after_a_checkpoint(gone)), wait=False))
    assert isinstance(error, kind), error
    assert "the run could not be begun again, after this: RankKilledError: rank 0 of stage" in error.__notes__[0]
    assert isinstance(error.__cause__, RankKilledError)


def test_a_run_that_begins_again_without_a_temporary_folder_ends_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tempfile.mkdtemp()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", temporary)
        error = ended(ghee.run(ghee.read(BATCHES).loop(killed_after_a_checkpoint(temporary)), wait=False))
    assert isinstance(error, FileNotFoundError)
    assert isinstance(error.__cause__, RankKilledError)


def test_a_full_disk_ends_the_run_with_the_cause(tmp_path: Path) -> None:
    script = """
import os, pathlib, signal, numpy, ghee
def train(batches):
    for number, batch in enumerate(batches):
        if number == 5:
            try: pathlib.Path(os.environ["GHEE_HOME"], "fill").write_bytes(b"x" * 10_000_000)
            except OSError: pass
            os.kill(os.getpid(), signal.SIGKILL)
try:
    ghee.run(ghee.read([numpy.arange(10)] * 20).loop(train))
except Exception as error:
    print("raised", type(error).__name__)
"""
    home = tmp_path / "small"
    home.mkdir()
    inside = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "-m", "sh", "-c"]
    inside += [f'mount -t tmpfs -o size=200k tmpfs {home} && exec "$@"', "sh", sys.executable, "-c", script]
    done = subprocess.run(
        inside, env={**os.environ, "GHEE_HOME": str(home)}, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    # Where the journal's last page has room, the run is begun again until its retries are spent.
    assert done.stdout.splitlines()[-1:] in (["raised OSError"], ["raised RankKilledError"]), done


def test_a_thread_that_cannot_show_what_ranks_print_ends_the_run(tmp_path: Path) -> None:
    """As where standard output is a pipe that nobody reads any more."""

    def line(source: str, text: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    def chatty(batches: Any) -> int:
        print("x" * 200_000, flush=True)  # more than a pipe takes
        return count(batches)

    (tmp_path / "logs").mkdir()
    launcher = LocalLauncher(tmp_path / "logs", line)
    assert isinstance(ended(ghee.run(ghee.read(BATCHES).loop(chatty), on=launcher, wait=False)), BrokenPipeError)


def test_a_watcher_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No death would be told any more."""

    def fail(self: LocalLauncher, rank: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    def killed(batches: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(LocalLauncher, "_on_rank_gone", fail)
    monkeypatch.setattr(LocalLauncher, "_on_world_gone", lambda self: None)
    assert isinstance(ended(ghee.run(ghee.read(BATCHES).loop(killed), wait=False)), ZeroDivisionError)


# ── kills ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Kill:
    """Passes batches on; at the third, processes of its world are killed, once in the run."""

    def __init__(self, mark: Path, victims: tuple[str, ...]) -> None:
        self.mark, self.victims, self.calls = mark, victims, 0

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        if self.calls == 3 and self._is_first():
            proxy = os.getppid()
            pids = {"mpiexec": parent_of(proxy), "proxy": proxy, "rank": os.getpid()}
            chosen = [pids[name] for name in pids if name in self.victims]
            for pid in chosen:
                if pid != os.getpid():
                    os.kill(pid, signal.SIGSTOP)  # so that none of them says anything of another
            for pid in chosen:
                os.kill(pid, signal.SIGKILL)
            signal.pause()
        return batch

    def _is_first(self) -> bool:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


PROCESSES = ("rank", "proxy", "mpiexec")
VICTIMS = [victims for number in (1, 2, 3) for victims in itertools.combinations(PROCESSES, number)]


@pytest.mark.parametrize("victims", VICTIMS, ids="+".join)
def test_whoever_of_a_map_world_is_killed_it_is_started_again(tmp_path: Path, victims: tuple[str, ...]) -> None:
    batches = [np.array([number]) for number in range(30)]
    kill = Kill(tmp_path / "mark", victims)
    run = ghee.run(ghee.read(batches).map(kill, ranks=2).loop(lambda stream: [int(batch[0]) for batch in stream]))
    assert Counter(run.result) == Counter(range(30))
    assert len(run.report.restarts) == 1, run.report.restarts


@pytest.mark.parametrize("victims", VICTIMS, ids="+".join)
def test_whoever_of_a_loops_world_is_killed_the_run_begins_again(tmp_path: Path, victims: tuple[str, ...]) -> None:
    kill = Kill(tmp_path / "mark", victims)

    def train(batches: Any) -> int:
        return sum(len(kill(batch)) for batch in batches)

    run = ghee.run(ghee.read(BATCHES).loop(train, replicas=2))
    assert run.results["train"] == [100, 100]
    assert len(run.report.restarts) == 1, run.report.restarts


HANGING = """
import sys, time
if "ghee.launch.process" in " ".join(sys.orig_argv):
    time.sleep(300)
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver whose ranks hang at their start."""
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    script = (
        "import ghee; from ghee.driver import driver; driver.START_SECONDS = 0.5; "
        "ghee.run(ghee.read([1]).map(abs).loop(list))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(tmp_path)}, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_ranks_that_hang_at_their_start_are_named_and_go_with_a_killed_driver(
    hanging: subprocess.Popen[str], running: Callable[[], dict[int, str]]
) -> None:
    assert hanging.stderr is not None
    said = hanging.stderr.readline()
    assert said.startswith("ghee: waiting for rank 0 of 'builtin_function_or_method', rank 0 of 'list': 2 of 2 ranks"), said
    assert any(Path(tempfile.gettempdir()).glob("ghee-*/bootstrap"))
    left = [os.pidfd_open(pid) for pid in running()]
    assert len(left) >= 7  # the driver and its guard; mpiexec, proxy and rank, twice (but for what has not been started yet)
    hanging.kill()
    for descriptor in left:
        assert select.select([descriptor], [], [], LIMIT)[0]
        os.close(descriptor)
    assert os.listdir(tempfile.gettempdir()) == []


# ── what functions leave ─────────────────────────────────────────────────────────────────────────────────────────────


def leave(how: str) -> Callable[[Any], int]:
    """A loop that starts a process and does not end it."""

    def train(batches: Any) -> int:
        count(batches)
        if how == "popen":
            return subprocess.Popen(["sleep", "300"]).pid
        if how == "session of its own":
            return subprocess.Popen(["sleep", "300"], start_new_session=True).pid
        if how == "deaf":
            deaf = ["sh", "-c", "trap '' TERM; while :; do read -r _ <> /dev/zero; done"]
            return subprocess.Popen(deaf, start_new_session=True).pid
        pid = os.fork()
        if pid == 0:
            signal.pause()
        return pid

    return train


@pytest.mark.parametrize("how", ["popen", "session of its own", "deaf", "fork"])
def test_what_functions_have_started_goes_with_the_run(
    how: str, running: Callable[[], dict[int, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    pid = ghee.run(ghee.read(BATCHES).loop(leave(how)), progress=False).result
    assert pid not in running()
    assert f"ghee: process {pid} (" in capfd.readouterr().err


# ── causes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_rank_prints_does_not_decide_the_type_of_an_error() -> None:
    def exits(batch: Any) -> Any:
        print("worker 7 was killed before it had joined", flush=True)
        os._exit(3)

    error = ended(ghee.run(ghee.read(BATCHES).map(exits).loop(count), wait=False))
    assert type(error) is RankError
    assert "ended by itself with exit code 3" in str(error)


def test_a_kill_is_one_whatever_the_stage_is_called() -> None:
    def killed(batches: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    error = ended(ghee.run(ghee.read(BATCHES).loop(killed, name="before it had joined"), wait=False, retries=0))
    assert type(error) is RankKilledError


def test_a_rank_that_ends_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGING.replace("time.sleep(300)", "import os; os._exit(7)"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    error = ended(ghee.run(ghee.read(BATCHES).loop(count), wait=False))
    assert type(error) is RankStartError
    assert "(before it had joined the run) ended by itself with exit code 7" in str(error)


# ── checkpoints of one rank alone ────────────────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_of_one_rank_beside_a_collective_ends_the_run() -> None:
    def train(batches: Any) -> None:
        from mpi4py import MPI

        for number, _ in enumerate(batches):
            MPI.COMM_WORLD.Barrier()
            if number == 2 and ghee.rank() == 0:
                ghee.checkpoint({"number": number})

    error = ended(ghee.run(ghee.read(BATCHES).loop(train, replicas=2), wait=False))
    assert isinstance(error, CheckpointError)
    assert "rank 1 went on to batch 4 of epoch 0 without the checkpoint that rank 0 asked for after batch 3" in str(error)
    assert "write ghee.checkpoint(value) where you have `if ghee.rank() == 0: ghee.checkpoint(value)`" in str(error)


def test_a_checkpoint_that_ranks_wait_in_is_told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The collective stands before the next batch: whether the other is slow or will never come cannot be known."""
    monkeypatch.setattr(sys.modules["ghee.driver.driver"], "CHECKPOINT_SECONDS", 0.5)

    def train(batches: Any) -> None:
        from mpi4py import MPI

        for number, _ in enumerate(batches):
            if number == 2 and ghee.rank() == 0:
                ghee.checkpoint({"number": number})
            MPI.COMM_WORLD.Barrier()

    said = ""
    run = ghee.run(ghee.read(BATCHES).loop(train, replicas=2), wait=False, progress=False)
    while not said and not run.wait(0.1):
        said = capfd.readouterr().err
    run.cancel()
    assert "ghee: rank 0 of 'train' has waited in ghee.checkpoint (or batches.state) for" in said
    assert "for rank 1 to call it too" in said


# ── epochs without a number ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("epochs", [10**9, None])
def test_training_by_steps_beside_a_branch_that_fails(epochs: int | None) -> None:
    def steps(batches: Any) -> int:
        return sum(1 for _ in itertools.islice(batches, 50))

    def fails(batches: Any) -> None:
        for number, _ in enumerate(batches):
            if number == 5:
                raise ValueError("diverged")

    ready = ghee.read([np.arange(3)] * 4, epochs=epochs).map(lambda batch: batch)
    run = ghee.run(ghee.branches(ready.loop(steps, name="a"), ready.loop(fails, name="b")), on="inline", wait=False)
    assert ended(run) is None
    assert run.results == {"a": [50]}
    assert isinstance(run.failures["b"], ValueError)
    assert ("rows read until the loops returned" in str(run.report)) == (epochs is None)


def test_epochs_without_a_number_need_a_loop_and_something_to_read() -> None:
    with pytest.raises(PipelineError, match="epochs=None reads on until the loops return"):
        ghee.run(ghee.read(BATCHES, epochs=None).write([]), on="inline")
    with pytest.raises(SourceError, match="nothing to read"):
        ghee.run(ghee.read([], epochs=None).loop(count), on="inline")


# ── descriptors ──────────────────────────────────────────────────────────────────────────────────────────────────────

MANY = """
import resource, numpy, ghee
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
try:
    batches = ghee.read([numpy.arange(10)] * 20).map(lambda batch: batch, replicas=6)
    print(ghee.run(batches.loop(lambda stream: sum(len(batch) for batch in stream))).result)
except ghee.errors.MachineError as error:
    print(error)
"""


@pytest.mark.parametrize(("soft", "hard", "said"), [(60, 4096, "200"), (60, 100, "open files in the driver's process")])
def test_too_few_descriptors_are_raised_or_told(soft: int, hard: int, said: str) -> None:
    script = MANY.format(soft=soft, hard=hard)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, said in done.stdout) == (0, True), done


def test_what_is_asked_for_is_what_ranks_need(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    peak: list[int] = []

    def look(batches: Any) -> int:
        return count(batches)

    run = ghee.run(ghee.read(BATCHES * 5).map(lambda batch: batch, replicas=4).loop(look), wait=False)
    while not run.wait(0.01):
        peak.append(len(os.listdir("/proc/self/fd")))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0], limits[1]))
    asked = sys.modules["ghee.launch.local"]
    assert max(peak) - before <= 5 * asked.DESCRIPTORS + asked.DESCRIPTORS_BESIDE
    with pytest.raises(MachineError, match="ulimit -Hn"):
        have_descriptors(10**8)
