"""What every real server of these tests is: started on first use, on free ports, gone when the tests are.

    class Kafka(Server):
        name = "kafka"
        tools = (JAVA, MAVEN)
        ...

    @pytest.fixture(scope="session")
    def kafka(tmp_path_factory):
        yield from running(Kafka, tmp_path_factory)

A server's state lies in a folder of its own. Each of its programs is a process group that is killed whole, and that ends
with the tests however they end. Its log is shown under a test that fails. Where a tool is missing the tests are skipped
with the line that installs it; where CI is set they fail.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

START_SECONDS = 120.0
_PR_SET_PDEATHSIG = 1
_STARTED: list[Server] = []


@dataclass(frozen=True)
class Tool:
    """A program that must be on the path, and the line that installs it."""

    program: str
    install: str


JAVA = Tool("java", "apt-get install openjdk-17-jre-headless")
MAVEN = Tool("mvn", "apt-get install maven")
GO = Tool("go", "https://go.dev/doc/install")


class Server(ABC):
    """A server, or a set of programs that are one server. Made by `running`; `state` is its own empty folder."""

    name: ClassVar[str]
    tools: ClassVar[tuple[Tool, ...]] = ()

    def __init__(self, state: Path) -> None:
        self.state = state

    @classmethod
    def missing(cls) -> list[str]:
        """What this machine lacks to run it, each with the line that installs it."""
        return [f"{tool.program} is missing: {tool.install}" for tool in cls.tools if shutil.which(tool.program) is None]

    @classmethod
    @abstractmethod
    def fetch(cls) -> None:
        """Fetch or build what it needs, once, into `cache()`. `python tests/servers/fetch.py` does it before the tests,
        whose limits of time are too short for it."""

    @property
    @abstractmethod
    def address(self) -> str:
        """Where clients find it; the same after `restart`."""

    @property
    @abstractmethod
    def programs(self) -> Sequence[Program]:
        """Its programs in the order in which they start."""

    @abstractmethod
    def start(self) -> None:
        """Start in an empty folder; returns when it serves."""

    def kill(self) -> None:
        """`kill -9` of every program, as a crash; the state stays."""
        for program in self.programs:
            program.kill()

    def restart(self) -> None:
        """Start what does not run, with the same state and address; returns when it serves."""
        for program in self.programs:
            program.start()

    def stop(self) -> None:
        """End it. Its state goes with the folder."""
        self.kill()

    def log(self) -> str:
        """The end of what its programs have printed."""
        return "\n".join(program.log() for program in self.programs)


class Program:
    """One process group of a server; `answers` says whether it serves."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        answers: Callable[[], bool],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.command, self.folder, self._answers = name, list(command), folder, answers
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running program."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it unless it runs; returns when it answers. Raises RuntimeError with its log where it does not."""
        if self.runs:
            return
        # Not a process of the test that happens to be the first to need it.
        env = {name: value for name, value in os.environ.items() if name not in ("GHEE_TEST_SESSION", "TMPDIR")}
        with self._path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**env, **self._env}, preexec_fn=_end_with_parent,  # noqa: PLW1509  (one call of libc, found beforehand)
            )  # fmt: skip
        wait_until(self._answers_or_ended, START_SECONDS, lambda: f"{self.name} does not answer:\n{self.log()}")

    def _answers_or_ended(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{self.log()}")
        return self._answers()

    def kill(self) -> None:
        """`kill -9` of the whole group."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait(30)
            self._process = None

    def pause(self) -> None:
        """It is there and answers nothing."""
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The end of `pause`."""
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        """Send a signal to the group; one that is gone already gets none."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}.log"

    def log(self) -> str:
        """The end of what it has printed."""
        text = self._path.read_text(errors="replace")[-3000:] if self._path.exists() else ""
        return f"── {self.name} ──\n{text}"


S = TypeVar("S", bound=Server)


def running(kind: type[S], tmp_path_factory: pytest.TempPathFactory) -> Iterator[S]:
    """For a session's fixture: the server, from its first use to the end of the tests."""
    need(kind.missing(), kind.name)
    server = kind(tmp_path_factory.mktemp(kind.name))
    _STARTED.append(server)
    try:
        server.fetch()
        server.start()
        yield server
    finally:
        server.stop()
        _STARTED.remove(server)


def need(missing: Sequence[str], what: str) -> None:
    """Skip the test where something is missing; fail it where CI is set."""
    if missing:
        text = f"{what} cannot run here: {'; '.join(missing)}"
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, Any, None]:
    """Import this into a conftest: it shows the servers' logs under a test that fails."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections += [(f"log of {server.name}", server.log()) for server in _STARTED]


def cache() -> Path:
    """Where what was fetched or built is kept between sessions: $GHEE_CACHE, else ~/.cache/ghee-suite."""
    folder = Path(os.environ.get("GHEE_CACHE") or Path.home() / ".cache" / "ghee-suite")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place at the end: what is cut off leaves nothing that looks whole."""
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=target.parent, ignore_cleanup_errors=True) as name:
        folder = Path(name) / "made"
        folder.mkdir()
        yield folder
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():  # another session was first
                raise


def maven(name: str, *artifacts: str) -> Path:
    """The folder of the jars of `artifacts` ("group:artifact:version") and all that they need, fetched once."""
    target = cache() / name
    if target.exists():
        return target
    parts = [artifact.split(":") for artifact in artifacts]
    each = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"
    with building(target) as folder:
        (folder / "pom.xml").write_text(_POM.format("".join(each.format(*part) for part in parts)))
        run(["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={folder}"], folder)
    return target


def go_install(name: str, module: str) -> Path:
    """The folder of the program that `go install` makes of a module ("path@version"), built once."""
    target = cache() / name
    if not target.exists():
        with building(target) as folder:
            run(["go", "install", module], folder, {"GOBIN": str(folder), "CGO_ENABLED": "0"})
    return target


def run(command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None, seconds: float = 900) -> str:
    """Run a program to its end; returns what it printed. Raises RuntimeError with that where it fails."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=seconds, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} … failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(true: Callable[[], bool], seconds: float, otherwise: Callable[[], str]) -> None:
    """Ask until it is true. Raises RuntimeError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise())
        time.sleep(0.05)  # a server of another language tells nobody that it is ready


_LIBC = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """Tests that are killed leave no server behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>tests</groupId><artifactId>servers</artifactId><version>1</version><dependencies>{}</dependencies></project>"""
