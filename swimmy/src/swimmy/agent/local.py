"""What an agent does on its own Pod: keeps the payload, starts ranks and proxies, writes the journal of what happens to
them.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from swimmy.agent import mpi
from swimmy.agent.journal import Journal
from swimmy.agent.memory import read_memory
from swimmy.agent.processes import Processes
from swimmy.agent.ranks import Ranks, Report
from swimmy.channel import Loop
from swimmy.inside import SOCKET

Header = dict[str, Any]
RANK_PROGRAM = [sys.executable, "-m", "swimmy.inside"]


class Refused(Exception):
    """A request that this agent does not carry out; the text says why."""


class Local:
    """The ranks of one Pod. ``folder`` is private to the agent and its ranks; ``address`` is the Pod's."""

    def __init__(self, loop: Loop, folder: Path, address: str) -> None:
        self.journal = Journal()
        self.folder, self.address = folder, address
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.processes = Processes(loop)
        self.ranks = Ranks(loop, folder / "socket", self._on_report, self._on_log, self._on_daemon)
        self.payload: str | None = None
        self._launched = False
        self._numbers: set[int] = set()
        self._kills = read_memory().kills

    # -- the payload ----------------------------------------------------------------------------------------------

    def put(self, digest: str, offset: int, total: int, body: bytes) -> int:
        """Takes a piece of the payload and says how many bytes are here; a piece that is here already is passed over."""
        path = self.folder / "payload.part"
        if self.payload == digest:
            return total
        have = path.stat().st_size if path.exists() else 0
        if offset == 0 and have:
            path.unlink()
            have = 0
        if offset != have:
            return have
        with open(path, "ab") as file:
            file.write(body)
        have += len(body)
        if have >= total:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                path.unlink()
                raise Refused(f"the payload that arrived has digest {found}, not {digest}")
            path.rename(self.folder / "payload")
            self.payload = digest
        return have

    # -- starting -------------------------------------------------------------------------------------------------

    def _environment(self, **more: str) -> dict[str, str]:
        return {**mpi.SETTINGS, **os.environ, SOCKET: str(self.folder / "socket"), **more}

    def launch(self, request: Header) -> None:
        """Starts this Pod's ranks, or mpiexec for the world; asked a second time it does nothing."""
        if self._launched:
            return
        self._launched = True
        kind = request["mpi"]
        if kind == "none":
            for rank in range(request["first"], request["first"] + request["ranks_per_host"]):
                self._start_rank(rank, request["size"])
        elif kind == "mpich":
            self._start_mpich(request)
        elif kind == "openmpi":
            self._start_openmpi(request)
        else:
            raise Refused(f"this agent cannot launch {kind!r}; it can: none, mpich, openmpi")

    def _start_rank(self, rank: int, size: int) -> None:
        environment = self._environment(SWIMMY_MPI="none", SWIMMY_RANK=str(rank), SWIMMY_SIZE=str(size))

        def ended(status: int) -> None:
            code = os.waitstatus_to_exitcode(status)
            if rank not in self._numbers:  # it ended before it could report by itself
                self._exited(rank, code)

        self.processes.start(RANK_PROGRAM, environment, lambda line: self._on_log(rank, line), ended)

    def _launcher_failed(self, text: str) -> None:
        self.journal.append({"kind": "launcher", "code": 127, "text": text})

    def _start_mpich(self, request: Header) -> None:
        program = mpi.find_program("mpiexec")
        if program is None:
            self._launcher_failed("the image has no mpiexec: install mpich in it")
            return
        if mpi.is_openmpi(program):
            self._launcher_failed("the image has Open MPI: ask for swimmy.mpi(kind='openmpi'), or install mpich in it")
            return
        argv = mpi.mpich_arguments(
            program, request["hosts"], request["ranks_per_host"], mpi.interface_of(self.address), RANK_PROGRAM
        )
        self._start_launcher(argv, self._environment(SWIMMY_MPI="mpich"))

    def _start_openmpi(self, request: Header) -> None:
        program, rsh = mpi.find_program("mpirun"), mpi.find_program("swimmy-rsh")
        if program is None or not mpi.is_openmpi(program):
            self._launcher_failed("the image has no Open MPI (mpirun with ompi_info beside it): install openmpi in it")
            return
        if rsh is None:
            self._launcher_failed("the image has no swimmy-rsh beside its Python: install swimmy in it with pip")
            return
        hosts, per_host = request["hosts"], request["ranks_per_host"]
        hostfile = self.folder / "hostfile"
        hostfile.write_text(mpi.openmpi_hostfile(hosts, per_host))
        root = os.geteuid() == 0
        argv = mpi.openmpi_arguments(program, hostfile, len(hosts) * per_host, root=root, program=RANK_PROGRAM)
        settings = mpi.openmpi_environment(rsh, len(hosts), mpi.interface_of(self.address))
        self._start_launcher(argv, self._environment(SWIMMY_MPI="openmpi", **settings))

    def _start_launcher(self, argv: list[str], environment: dict[str, str]) -> None:
        tail: list[str] = []

        def line(text: str) -> None:
            command = mpi.proxy_line(text)
            if command is not None:
                self.journal.append({"kind": "proxy", "argv": command})
            elif text.strip() and text != "HYDRA_LAUNCH_END":
                tail.append(text)
                del tail[:-20]
                self.journal.append({"kind": "output", "text": text})

        def ended(status: int) -> None:
            code = os.waitstatus_to_exitcode(status)
            self.journal.append({"kind": "launcher", "code": code, "text": "\n".join(tail)})

        self.processes.start(argv, environment, line, ended)

    def _on_daemon(self, host: str, text: str) -> None:
        """mpirun of Open MPI wants its daemon on another host: the leader tells that host's agent."""
        try:
            daemon = mpi.parse_daemon(text)
        except ValueError as error:
            self._launcher_failed(str(error))
            return
        self.journal.append({"kind": "proxy", "host": host, "argv": daemon.argv, "variables": daemon.variables})

    def proxy(self, argv: list[str], variables: dict[str, str]) -> None:
        """Runs MPI's own proxy, as the launcher on the leading Pod asked."""
        if not mpi.is_proxy(argv):
            raise Refused(f"an agent runs {', '.join(sorted(mpi.PROXIES))} for MPI and nothing else, not {argv[:1]}")

        def line(text: str) -> None:
            self.journal.append({"kind": "output", "text": text})

        def ended(status: int) -> None:
            code = os.waitstatus_to_exitcode(status)
            name = Path(argv[0]).name
            if code < 0:  # it was killed: the launcher may wait for it for ever
                self.journal.append({"kind": "launcher", "code": code, "text": f"{name} was killed"})
            elif code:
                self.journal.append({"kind": "output", "text": f"{name} ended with {code}"})

        kind = mpi.PROXIES[Path(argv[0]).name]
        settings = mpi.OPENMPI_SETTINGS if kind == "openmpi" else {}
        environment = self._environment(SWIMMY_MPI=kind, **settings)
        self.processes.start(argv, {**environment, **mpi.expand(variables, environment)}, line, ended)

    def go(self) -> None:
        """Tells this Pod's ranks to load the payload and call the function."""
        for rank in sorted(self._numbers):
            word = {"payload": str(self.folder / "payload"), "result": str(self.result_path(rank))}
            self.ranks.tell(rank, word)

    # -- what ranks say -------------------------------------------------------------------------------------------

    def _on_report(self, rank: int, report: Report) -> None:
        kind = report.pop("report")
        if kind == "join":
            self._numbers.add(rank)
        if kind == "exit":
            self._exited(rank, report["code"])
        else:
            self.journal.append({"kind": kind, "rank": rank, **report})

    def _exited(self, rank: int, code: int) -> None:
        entry: dict[str, Any] = {"kind": "exit", "rank": rank, "code": code}
        memory = read_memory()
        if code == -signal.SIGKILL and memory.kills > self._kills:
            self._kills += 1
            entry["memory"] = {"peak": memory.peak, "limit": memory.limit}
        self.journal.append(entry)

    def _on_log(self, rank: int, text: str) -> None:
        # The container's own output too, so that `kubectl logs` shows it and a log collector finds it.
        sys.stdout.write(f"[rank {rank}] {text}\n")
        self.journal.append({"kind": "log", "rank": rank, "text": text})

    # -- results and end ------------------------------------------------------------------------------------------

    def result_path(self, rank: int) -> Path:
        return self.folder / f"result-{rank}"

    def fetch(self, rank: int, offset: int, count: int) -> bytes:
        """A piece of a rank's pickled result."""
        with open(self.result_path(rank), "rb") as file:
            file.seek(offset)
            return file.read(count)

    def close(self) -> None:
        self.ranks.close()
