"""Open MPI without sshd: what its mpirun says is read without a shell, and its daemons run on other hosts' agents."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import hosts
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_agents import Agents, cause

import swimmy
from swimmy.agent import mpi

# As Open MPI 5.0.11 wrote it, shortened.
FIVE = (
    "PRTE_PREFIX=/venv;export PRTE_PREFIX;LD_LIBRARY_PATH=/venv/lib:$LD_LIBRARY_PATH;export LD_LIBRARY_PATH;"
    '/venv/bin/prted --leave-session-attached --prtemca ess "env" --prtemca prte_hnp_uri "prterun-a@0.0;tcp://10.1.0.1:4000:24"'
)
FOUR = (
    "( test ! -r ./.profile || . ./.profile; PATH=/usr/bin:$PATH ; export PATH ; "
    "LD_LIBRARY_PATH=/usr/lib:$LD_LIBRARY_PATH ; export LD_LIBRARY_PATH ; DYLD_LIBRARY_PATH= ; "
    "export DYLD_LIBRARY_PATH ; /usr/bin/orted -mca ess env )"
)


def test_the_daemon_of_open_mpi_5_is_read() -> None:
    daemon = mpi.parse_daemon(FIVE)
    assert daemon.argv[0] == "/venv/bin/prted"
    assert daemon.argv[4:7] == ["env", "--prtemca", "prte_hnp_uri"]
    assert daemon.argv[7] == "prterun-a@0.0;tcp://10.1.0.1:4000:24"
    assert daemon.variables == {"PRTE_PREFIX": "/venv", "LD_LIBRARY_PATH": "/venv/lib:$LD_LIBRARY_PATH"}


def test_the_daemon_of_open_mpi_4_behind_a_profile_is_read() -> None:
    daemon = mpi.parse_daemon(FOUR)
    assert daemon.argv == ["/usr/bin/orted", "-mca", "ess", "env"]
    assert daemon.variables == {
        "PATH": "/usr/bin:$PATH", "LD_LIBRARY_PATH": "/usr/lib:$LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("touch /tmp/owned;/venv/bin/prted", "sets 'touch /tmp/owned'"),
        ("LD_PRELOAD=/tmp/x.so;export LD_PRELOAD;/venv/bin/prted", "LD_PRELOAD"),
        ("PATH=/x /bin/sh;/venv/bin/prted", "sets 'PATH=/x /bin/sh'"),
        ("/bin/sh -c true", "no daemon of Open MPI"),
        ("prted --daemonize", "no daemon of Open MPI"),
        ("PATH=/x;export PATH", "no daemon of Open MPI"),
        ("", "no daemon of Open MPI"),
        ('/venv/bin/prted "unclosed', "No closing quotation"),
    ],
)
def test_what_is_no_daemon_of_open_mpi_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        mpi.parse_daemon(text)


@given(st.text(max_size=80))
def test_no_text_gets_another_program_through(text: str) -> None:
    try:
        daemon = mpi.parse_daemon(text)
    except ValueError:
        return
    assert mpi.is_proxy(daemon.argv)


def test_variables_are_filled_on_the_host_they_are_for() -> None:
    filled = mpi.expand({"LD_LIBRARY_PATH": "/venv/lib:$LD_LIBRARY_PATH:$HOME"}, {"LD_LIBRARY_PATH": "/x", "HOME": "/h"})
    assert filled == {"LD_LIBRARY_PATH": "/venv/lib:/x:$HOME"}  # nothing but what mpirun itself sets is looked up
    assert mpi.expand({"PATH": "/a:$PATH"}, {}) == {"PATH": "/a:"}


# -- real agents on real hosts ----------------------------------------------------------------------------------------


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Callable[..., Agents]]:
    program = mpi.find_program("mpirun")
    if program is None or not mpi.is_openmpi(program):
        refuse(["Open MPI: run this by tox -e openmpi, or install './swimmy[openmpi]' without mpich"])
    yield from agents_on_hosts(tmp_path)


@pytest.fixture
def agents_with_mpich(tmp_path: Path) -> Iterator[Callable[..., Agents]]:
    program = mpi.find_program("mpiexec")
    if program is None or mpi.is_openmpi(program):
        refuse(["MPICH: python -m pip install './swimmy[mpi]'"])
    yield from agents_on_hosts(tmp_path)


def refuse(missing: list[str]) -> None:
    text = "this cannot be tried here:\n  " + "\n  ".join(missing)
    pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)


def agents_on_hosts(folder: Path) -> Iterator[Callable[..., Agents]]:
    if missing := hosts.missing_tools():
        refuse(missing)
    made: list[Any] = []

    def make(count: int) -> Agents:
        made.append(hosts.Hosts(count))
        made.append(Agents(folder, made[0].addresses, 30, made[0].inside))
        return made[-1]  # type: ignore[no-any-return]

    yield make
    for each in reversed(made):
        each.close()


def check_world(run: Agents, kind: str) -> None:
    """Six ranks on three hosts, each in its own Pod's environment."""

    def work() -> tuple[int, int, int, str]:
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        return world.rank, world.size, world.allreduce(world.rank), os.environ["JOB_COMPLETION_INDEX"]

    run.start(work, ranks=2, mpi=kind)
    entries: list[Any] = []
    while {entry["rank"] for entry in entries if entry["kind"] == "done"} != set(range(6)):
        entries += run.follow(lambda entry: entry["kind"] in ("done", "cause"))
        assert not any(cause(entry) for entry in entries), entries
    got = [cloudpickle.loads(run.call({"op": "fetch", "rank": rank, "offset": 0})[1]) for rank in range(6)]
    assert got == [(rank, 6, 15, str(rank // 2)) for rank in range(6)]
    run.call({"op": "stop", "code": 0, "reason": "done"})
    assert [process.wait(30) for process in run.processes] == [0, 0, 0]


@pytest.mark.openmpi
def test_one_world_of_open_mpi_over_three_hosts(agents: Any) -> None:
    check_world(agents(3), "openmpi")


def test_one_world_of_mpich_over_three_hosts(agents_with_mpich: Any) -> None:
    check_world(agents_with_mpich(3), "mpich")


@pytest.mark.openmpi
def test_a_rank_that_is_killed_on_another_host_is_named(agents: Any) -> None:
    def work() -> None:
        import swimmy

        if swimmy.rank() == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        signal.pause()

    run = agents(2)
    run.start(work, ranks=1, mpi="openmpi")
    found = next(entry for entry in run.follow(cause) if cause(entry))
    assert (found["cause"], found["rank"], found["code"]) == ("signal", 1, -signal.SIGSEGV)


@pytest.mark.openmpi
def test_an_exception_on_another_host_is_the_cause(agents: Any) -> None:
    def work() -> None:
        import swimmy

        if swimmy.rank() == 1:
            raise ValueError("seven")
        signal.pause()

    run = agents(2)
    run.start(work, ranks=1, mpi="openmpi")
    found = next(entry for entry in run.follow(cause) if cause(entry))
    assert (found["cause"], found["rank"], found["text"]) == ("exception", 1, "seven")


@pytest.mark.openmpi
def test_mpich_asked_for_in_an_image_of_open_mpi_says_so(agents: Any) -> None:
    run = agents(1)
    run.start(lambda: 1, mpi="mpich")
    found = next(entry for entry in run.follow(cause) if cause(entry))
    assert "kind='openmpi'" in found["text"]


@pytest.mark.openmpi
@pytest.mark.usefixtures("nothing_left")
def test_one_world_over_three_pods_of_a_restricted_namespace(place: Any) -> None:
    def work() -> tuple[int, int, int, str]:
        import socket

        from mpi4py import MPI

        world = MPI.COMM_WORLD
        return world.rank, world.size, world.allreduce(world.rank), socket.gethostname()

    pods, how = place.pods(replicas=3), swimmy.mpi(2, kind="openmpi")
    with swimmy.submit(work, pods=pods, mpi=how, cluster=place.cluster, reach="direct") as handle:
        assert handle.result(120) == [(rank, 6, 15, f"{handle.id}-{rank // 2}") for rank in range(6)]
