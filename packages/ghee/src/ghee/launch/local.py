"""Every stage as MPI worlds of processes on this machine, started by `mpiexec` of the `mpich` wheel.

What belongs to a run lies in one folder that only this user can enter: the sockets, the run's keys, the pipes of the
ranks' output. It goes when the run ends. If the driver is killed, the ranks notice (they hold a pidfd of it), and a guard
does from before the first of them on (ghee.launch.belonging): the folder is removed, and all that belongs to the run ends.
Where all of them were killed at once, the user's next run removes the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ghee.errors import MachineError
from ghee.install import how_to_install
from ghee.io.stores.patience import say
from ghee.launch.belonging import Guard, end_marked, environment, kill_marked, mark
from ghee.launch.bootstrap import Bootstrap, make_store
from ghee.launch.contract import Death, World
from ghee.launch.memory import oom_kills
from ghee.launch.mpi import kill_below, parent_of, unlink
from ghee.launch.output import Output
from ghee.protocol.messages import Cause, RankId
from ghee.resources import format_bytes
from ghee.transfer.contract import Endpoint, Store
from ghee.transfer.zeromq import Keys, ZmqEndpoint

MPICH_SHARED_MEMORY = 2 << 20
"""Bytes of /dev/shm with which a world of MPICH starts, for each of its ranks; needs 1.01 MiB each, and a little once
(measured: benchmarks/shared_memory.py)."""

MPI_SETTINGS = {"UCX_TLS": "self,sysv,cma"}
"""What MPI is told unless the user's environment says otherwise. Ranks of one host talk through MPICH's own shared memory.
UCX below it would take four times as much of /dev/shm and never use it ("posix"), and listen on every interface ("tcp")."""

COPY_PAST_CACHE = "glibc.cpu.x86_non_temporal_threshold"
"""The size from which glibc's memcpy writes past the processor's cache: right for a batch, which another rank will read.

glibc's own choice is three quarters of the L3 cache: on a virtual machine that sees the whole of its host's hundreds of MB,
so that no copy ever does. 1 MiB is half of a core's L2 and about what glibc chooses on a machine of its own. With it 64 MB
move at 1.5 times the speed (benchmarks/transport_profile.py --choices). It works at a program's start, on x86."""

DESCRIPTORS, DESCRIPTORS_BESIDE = 10, 64
"""What the driver needs for each rank (connections, output and log, a process to watch), and besides."""

LEFT_SECONDS = 1.0
"""How long what functions have started may take to end when it is asked to, once the run has ended well."""

_LOST_PROXY = re.compile(r"^\[mpiexec@.*assert \(!closed\) failed", re.MULTILINE)
"""What mpiexec says, before it ends with code 255, when the proxy between it and the ranks is gone."""

_EXIT_STRING = re.compile(r"EXIT STRING: (.+?) \(signal (\d+)\)")


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the ranks are started with: what the user's environment says goes before ours."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    if COPY_PAST_CACHE not in tunables:
        tunables = ":".join(filter(None, [tunables, f"{COPY_PAST_CACHE}={1 << 20:#x}"]))
    return {**MPI_SETTINGS, **environment, "GLIBC_TUNABLES": tunables, "PYTHONUNBUFFERED": "1"}


LONGEST_TMPDIR = 80
"""Bytes: a socket's whole path has at most 107, and behind this come the run's folder and the socket's name."""


def make_folder() -> tuple[str, int]:
    """A temporary folder for one run, and a lock in it that this process holds for as long as it lives."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > LONGEST_TMPDIR:
        raise MachineError(
            f"the temporary folder {parent} has {len(os.fsencode(parent))} characters, and sockets in it may have "
            f"{LONGEST_TMPDIR} for it: set TMPDIR to a shorter one (TMPDIR=/tmp)"
        )
    folder = tempfile.mkdtemp(prefix="ghee-")
    lock = os.open(f"{folder}/.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(f"{folder}/.lock", f"{folder}/lock")  # only now, so that nobody finds one that is not held yet
    return folder, lock


def remove_left() -> None:
    """Remove the folders of this user's runs whose driver was killed together with all that would have cleaned up."""
    for path in Path(tempfile.gettempdir()).glob("ghee-*/lock"):
        with contextlib.suppress(OSError):
            if path.parent.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
            finally:
                os.close(lock)


@dataclass
class _Process:
    world: World
    popen: subprocess.Popen[bytes]
    log: Path
    pids: dict[RankId, int]
    mark: str


class LocalLauncher:
    """Worlds on this machine.

    `carrier` is "shm", or "tcp" to have the bytes carried as they are between hosts.
    """

    def __init__(self, logs: Path, line: Callable[[str, str], None] | None = None, carrier: str = "shm") -> None:
        """`logs` is the folder of the logs; `line` is called with (source, line) for each line that a rank prints."""
        self.cores: int | None = len(os.sched_getaffinity(0))
        self._mpiexec = _find_mpiexec()
        self._carrier = carrier
        self._logs = logs
        self._keys = Keys.make()
        self._processes: list[_Process] = []
        self._watched: dict[int, RankId | World | None] = {}
        self._deaths: list[Death] = []
        self._dead: set[RankId] = set()
        self._endpoint: ZmqEndpoint | None = None
        self._stopping = False
        self._failure: BaseException | None = None
        self._members = 0
        self._oom_kills = oom_kills()
        self._watcher: threading.Thread | None = None
        remove_left()
        with contextlib.ExitStack() as made:  # what was made goes again where the rest cannot be
            self._folder, lock = make_folder()
            made.callback(os.close, lock)
            made.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._guard = Guard(self._folder)
            made.callback(self._guard.end)
            self._output = Output(logs, line, self._on_failure)
            made.callback(self._output.close)
            self._poll = made.enter_context(select.epoll())
            self._unwatch, self._unwatch_end = os.pipe2(os.O_CLOEXEC)
            for descriptor in (self._unwatch, self._unwatch_end):
                made.callback(os.close, descriptor)
            self._poll.register(self._unwatch, select.EPOLLIN)
            self._made = made.pop_all()

    # ── the contract ─────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, worlds: Sequence[World]) -> None:
        """Raise MachineError where /dev/shm is too small for MPI, or too few files may be open at once."""
        have_descriptors(sum(world.size for world in worlds))
        needed = sum(world.size for world in worlds if world.size > 1) * MPICH_SHARED_MEMORY
        free, fix = shared_memory_free(), f"{max(64, needed >> 19)}m"
        if free < needed:
            raise MachineError(
                f"/dev/shm has {format_bytes(free)} free, but MPI needs about {format_bytes(needed)} there for "
                f"{sum(world.size for world in worlds if world.size > 1)} ranks; enlarge it "
                f"(mount -o remount,size={fix} /dev/shm; docker run --shm-size={fix}; "
                "on Kubernetes an emptyDir with medium: Memory) or ask for fewer replicas"
            )

    def endpoint(self) -> Endpoint:
        """The driver's inbox."""
        self._endpoint = ZmqEndpoint(self._bind("driver"), self._keys)
        return self._endpoint

    def _bind(self, name: str) -> str:
        return f"ipc://{self._folder}/{name}" if self._carrier == "shm" else "tcp://127.0.0.1:*"

    def member(self) -> tuple[Endpoint, Store]:
        """An inbox for a rank in a thread of this process."""
        self._members += 1
        return ZmqEndpoint(self._bind(f"hosted-{self._members}"), self._keys), make_store(self._carrier)

    def start(self, worlds: Sequence[World]) -> None:
        """Start `mpiexec` for each world."""
        assert self._endpoint is not None
        self._guard.start()
        bootstrap = Path(self._folder, "bootstrap")
        if not bootstrap.exists():
            content = Bootstrap(self._endpoint.address, os.getpid(), self._keys, self._folder, sys.path, self._carrier)
            bootstrap.touch(mode=0o600)
            bootstrap.write_bytes(pickle.dumps(content))
        for world in worlds:
            if world.life:
                self._bury(world)
            self._start(world, bootstrap)
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="ghee watcher", daemon=True)
            self._watcher.start()

    def _bury(self, world: World) -> None:
        """What is left of the life before: a world that is started again must be gone."""
        for process in [p for p in self._processes if (p.world.stage, p.world.replica) == (world.stage, world.replica)]:
            self._kill(process)
            kill_marked(process.mark)
            self._processes.remove(process)

    def _start(self, world: World, bootstrap: Path) -> None:
        for rank in world.ranks:
            self._output.add(rank, world.name, os.path.join(self._folder, f"output-{rank.stage}-{rank.index}-{rank.life}"))
        log = self._logs / f"mpiexec-{world.name}-{world.replica}-{world.life}.log"
        marked = mark(self._folder, f"{world.stage}-{world.replica}-{world.life}")
        with log.open("ab") as out:
            popen = subprocess.Popen(
                self._command(world, bootstrap),
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env=environment(rank_environment(os.environ), marked),
            )  # fmt: skip
        self._processes.append(_Process(world, popen, log, {}, marked))
        self._look_at(os.pidfd_open(popen.pid), None)

    def _look_at(self, descriptor: int, whose: RankId | World | None) -> None:
        """Watch a rank's process, the proxy between a world and its `mpiexec`, or (None) an `mpiexec`."""
        self._watched[descriptor] = whose
        self._poll.register(descriptor, select.EPOLLIN)

    def _command(self, world: World, bootstrap: Path) -> list[str]:
        numbers = [str(value) for value in (world.stage, world.first, world.life)]
        launch = [self._mpiexec, "-launcher", "fork", "-n", str(world.size)]
        return [*launch, sys.executable, "-m", "ghee.launch.process", str(bootstrap), world.name, *numbers]

    def joined(self, rank: RankId, pid: int) -> None:
        """Watch the rank's process."""
        process = next((p for p in self._processes if rank in p.world.ranks), None)
        if process is None:
            return
        process.pids[rank] = pid
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._on_rank_gone(rank)
            return
        self._look_at(descriptor, rank)
        proxy = parent_of(pid)
        if rank == process.world.ranks[0] and parent_of(proxy) == process.popen.pid:
            with contextlib.suppress(ProcessLookupError):  # then mpiexec is about to end, too
                self._look_at(os.pidfd_open(proxy), process.world)

    def deaths(self) -> list[Death]:
        """What the watcher has seen. Raises what it, or the thread that reads the ranks' output, has ended by."""
        if self._failure is not None:
            raise self._failure
        found, self._deaths = self._deaths, []
        return found

    def stop(self, seconds: float) -> None:
        """Wait for every `mpiexec`; kill what is left, and end what functions have started and not ended."""
        self._stopping = True
        deadline = time.monotonic() + seconds
        for process in self._processes:
            try:
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._kill(process)
        for left in end_marked(mark(self._folder), LEFT_SECONDS) if self._processes else ():
            say(f"process {left}, which a function had started and left, was ended with the run")

    def close(self) -> None:
        """Kill, stop watching, remove the folder: each of it, whatever another of it raises."""
        self._stopping = True
        made, self._made = self._made, contextlib.ExitStack()
        made.callback(self._stop_watching)
        if self._processes:
            made.callback(kill_marked, mark(self._folder))
        for process in self._processes:
            made.callback(self._kill, process)
        self._processes.clear()
        made.close()

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            os.write(self._unwatch_end, b"x")
            self._watcher.join()
            self._watcher = None
        for descriptor in self._watched:
            os.close(descriptor)
        self._watched.clear()

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _kill(self, process: _Process) -> None:
        if process.popen.poll() is None:
            unlink(kill_below(process.popen.pid))  # a rank may be in MPI_Init
            process.popen.kill()
        process.popen.wait()

    def _watch(self) -> None:
        """A thread of its own: waits for processes to end, however long the driver is busy."""
        try:
            while self._see_ends():
                pass
        except BaseException as error:  # the driver's thread raises it: nobody would hear of a death any more
            self._on_failure(error)

    def _on_failure(self, error: BaseException) -> None:
        """A thread of ours has ended by an exception: the run fails with it."""
        self._failure = self._failure or error
        if self._endpoint is not None:
            self._endpoint.wake()

    def _see_ends(self) -> bool:
        for descriptor, _ in self._poll.poll():
            if descriptor == self._unwatch:
                return False
            self._poll.unregister(descriptor)
            whose = self._watched.pop(descriptor, None)
            os.close(descriptor)
            if self._stopping:
                continue
            if isinstance(whose, World):
                self._on_proxy_gone(whose)
            elif whose is not None:
                self._on_rank_gone(whose)
            else:
                self._on_world_gone()
        return True

    def _on_rank_gone(self, rank: RankId) -> None:
        process = next((p for p in self._processes if rank in p.world.ranks), None)
        if process is None or any(other in self._dead for other in process.world.ranks):
            return  # mpiexec ends the others of its world: not a cause
        self._dead.add(rank)
        try:
            process.popen.wait(2.0)  # it knows the signal
        except subprocess.TimeoutExpired:
            pass
        self._report(process, rank)

    def _on_proxy_gone(self, world: World) -> None:
        """`mpiexec` ends soon after, but for a proxy that was killed while its ranks live: that it may not notice."""
        process = next((p for p in self._processes if p.world == world), None)
        if process is None or any(rank in self._dead for rank in world.ranks):
            return
        try:
            process.popen.wait(2.0)
        except subprocess.TimeoutExpired:
            self._dead.add(world.ranks[0])
            self._report(process, world.ranks[0], lost_proxy=True)

    def _on_world_gone(self) -> None:
        for process in self._processes:
            if process.popen.poll() is not None and not any(rank in self._dead for rank in process.world.ranks):
                left = [rank for rank in process.world.ranks if rank not in process.pids]
                rank = left[0] if left else process.world.ranks[0]
                self._dead.add(rank)
                self._report(process, rank)

    def _report(self, process: _Process, rank: RankId, *, lost_proxy: bool = False) -> None:
        said, pid = _text(process.log), process.pids.get(rank)
        cause, how = _how_it_ended(process.popen.returncode, said, has_joined=pid is not None)
        if lost_proxy:
            cause, how = Cause.KILLED, "lost the proxy of its mpiexec, which was killed"
        if cause.is_kill and oom_kills() > self._oom_kills:
            how += (
                " by the kernel, which was out of memory (the cgroup's limit): give the stage fewer ranks or smaller batches"
            )
        elif how.startswith("was killed by SIGKILL"):
            how += " (kill -9 by someone, or the kernel out of memory: see dmesg)"
        elif how.startswith("was killed by SIGBUS"):
            how += f" (memory that cannot be had: /dev/shm has {format_bytes(shared_memory_free())} free, see its size)"
        when = f"process {pid}" if pid else "before it had joined the run"
        tail = self._output.tail(rank) or "".join((said or "").splitlines(True)[:15])
        reason = f"rank {rank.index} of stage {process.world.name!r} ({when}) {how}; its log is {self._output.log(rank)}"
        if tail:
            reason += f", its last lines:\n{tail}"
        self._deaths.append(Death(rank, reason, cause))
        if self._endpoint is not None:
            self._endpoint.wake()


def have_descriptors(ranks: int) -> None:
    """See that the driver may open what so many ranks need, up to the hard limit. Raises MachineError where that is less.

    Sockets without a descriptor would end the process: libzmq calls abort().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + ranks * DESCRIPTORS + DESCRIPTORS_BESIDE
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise MachineError(
            f"{ranks} ranks need about {needed} open files in the driver's process, and it may have {hard}: raise the limit "
            f"(ulimit -Hn {needed} as root, LimitNOFILE= of a service, nofile in /etc/security/limits.conf; "
            f"docker run --ulimit nofile={needed}), or ask for fewer replicas"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _text(path: Path) -> str | None:
    """What a log holds; None where the folder of the run was removed meanwhile, or a full disk took nothing."""
    try:
        text = path.read_text(errors="replace")
        return text if text or shutil.disk_usage(path.parent).free else None
    except OSError:
        return None


def shared_memory_free() -> int:
    """Bytes that are free in /dev/shm."""
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0


def _how_it_ended(code: int | None, log: str | None, *, has_joined: bool) -> tuple[Cause, str]:
    """What `mpiexec` says of a world that is gone, by its exit code and what it has written."""
    killed = Cause.KILLED if has_joined else Cause.KILLED_AT_START
    if log is None:
        return killed, "is gone, and the file in which mpiexec says why is gone or empty on a full disk"
    found = _EXIT_STRING.search(log)
    if found:
        return killed, f"was killed by {signal.Signals(int(found[2])).name}"
    if code is not None and code < 0:
        return killed, f"lost its mpiexec, which was killed by {signal.Signals(-code).name}"
    if code is None:
        return killed, "is gone, and mpiexec does not say why"
    if _LOST_PROXY.search(log):
        return killed, "lost the proxy of its mpiexec, which was killed"
    ended = Cause.EXITED if has_joined else Cause.EXITED_AT_START
    return ended, f"ended by itself with exit code {code}, without having returned from its function"


def _find_mpiexec() -> str:
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise MachineError(f'no mpiexec was found; {how_to_install("mpi")} brings one (on="inline" needs none)')
    return found
