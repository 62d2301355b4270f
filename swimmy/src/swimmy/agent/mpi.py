"""How MPI's launchers are asked to start nothing on other hosts themselves but to say what must run there. Pure, but for
finding the programs and the interface.

MPICH's mpiexec prints a line per host (``-launcher manual``). Open MPI's mpirun calls a program in the place of ssh, once
per host (``swimmy.agent.rsh``), with words that it means for a shell; no shell sees them here.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import socket
import string
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

# Ranks of one Pod share memory by files in /dev/shm: a container whose seccomp profile is the default one forbids
# process_vm_readv, and reading another process's descriptors through /proc.
SETTINGS = {"UCX_POSIX_USE_PROC_LINK": "n", "MPIR_CVAR_CH4_CMA_ENABLE": "0"}
# Open MPI 4's and 5's words for: shared memory without process_vm_readv.
OPENMPI_SETTINGS = {"OMPI_MCA_btl_vader_single_copy_mechanism": "none", "OMPI_MCA_smsc": "^cma"}
# What MPI starts on each host, and whose it is; orted is Open MPI 4's.
PROXIES = {"hydra_pmi_proxy": "mpich", "prted": "openmpi", "orted": "openmpi"}
# What Open MPI sets before its daemon, so that the daemon finds the libraries it came with.
_VARIABLES = frozenset({"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PRTE_PREFIX", "PMIX_PREFIX", "OPAL_PREFIX"})
_SIOCGIFADDR = 0x8915


def find_program(name: str) -> str | None:
    """mpiexec beside the interpreter (as a wheel brings it) before the one on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(name)


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # this interface has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def mpich_arguments(
    mpiexec: str, hosts: list[str], ranks_per_host: int, interface: str | None, program: list[str]
) -> list[str]:
    """``-launcher manual``: mpiexec prints one line per host, and the agents run those lines.

    ``-genvnone``: a rank's environment is its own Pod's, from that Pod's agent, and not that of the leading Pod.
    """
    chosen = ["-iface", interface] if interface else []
    count = str(len(hosts) * ranks_per_host)
    return [
        mpiexec,
        "-launcher",
        "manual",
        *chosen,
        "-genvnone",
        "-hosts",
        ",".join(hosts),
        "-n",
        count,
        "-ppn",
        str(ranks_per_host),
        *program,
    ]


def proxy_line(line: str) -> list[str] | None:
    """The command that mpiexec wants run on the next host, or None for any other line."""
    if not line.startswith("HYDRA_LAUNCH: "):
        return None
    return shlex.split(line.removeprefix("HYDRA_LAUNCH: "))


def is_proxy(argv: list[str]) -> bool:
    """Agents run no other program than MPI's own proxies when one of them asks another."""
    return bool(argv) and Path(argv[0]).name in PROXIES and Path(argv[0]).is_absolute()


def is_openmpi(mpirun: str) -> bool:
    """Whether that launcher is Open MPI's: both MPIs name theirs mpirun and mpiexec, only Open MPI brings ompi_info."""
    return Path(mpirun).resolve().with_name("ompi_info").exists() or Path(mpirun).with_name("ompi_info").exists()


def openmpi_hostfile(hosts: list[str], ranks_per_host: int) -> str:
    """IP addresses, which both generations take as they stand; the first is mpirun's own host."""
    return "".join(f"{host} slots={ranks_per_host}\n" for host in hosts)


def openmpi_arguments(mpirun: str, hostfile: Path, count: int, *, root: bool, program: list[str]) -> list[str]:
    """mpirun for ``count`` ranks. Its daemons stay in the foreground, where the agents can see and end them."""
    as_root = ["--allow-run-as-root"] if root else []
    return [
        mpirun, "-n", str(count), "--hostfile", str(hostfile), "--leave-session-attached", "--bind-to", "none",
        *as_root, *program,
    ]  # fmt: skip


def openmpi_environment(rsh: str, hosts: int, interface: str | None) -> dict[str, str]:
    """Settings of mpirun for both generations (each passes over the other's): who dials in the place of ssh, that only this
    host dials, and which network is used.
    """
    concurrent = str(max(128, hosts))  # with fewer than there are hosts PRRTE refuses to leave daemons attached
    settings = {
        **OPENMPI_SETTINGS,
        "PRTE_MCA_plm_ssh_agent": rsh, "OMPI_MCA_plm_rsh_agent": rsh,
        "PRTE_MCA_plm_ssh_no_tree_spawn": "1", "OMPI_MCA_plm_rsh_no_tree_spawn": "1",
        "PRTE_MCA_plm_ssh_num_concurrent": concurrent, "OMPI_MCA_plm_rsh_num_concurrent": concurrent,
    }  # fmt: skip
    if interface:
        for name in ("PRTE_MCA_prte_if_include", "OMPI_MCA_oob_tcp_if_include", "OMPI_MCA_btl_tcp_if_include"):
            settings[name] = interface
    return settings


@dataclass(frozen=True)
class Daemon:
    """What mpirun wants run on one host: a program and the variables set before it."""

    argv: list[str]
    variables: dict[str, str] = field(default_factory=dict)


def parse_daemon(text: str) -> Daemon:
    """The shell text that Open MPI hands to ssh, read without a shell: assignments, exports, and its daemon as the last.

    Raises ValueError where it holds anything else.
    """
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        # for login shells that read no .profile by themselves, which are of no concern to a program that needs no shell
        text = text[1:-1].partition(".profile;")[2]
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";")
    lexer.whitespace_split = True
    statements: list[list[str]] = [[]]
    for token in lexer:
        if token == ";":
            statements.append([])
        else:
            statements[-1].append(token)
    *before, argv = [each for each in statements if each] or [[]]
    variables: dict[str, str] = {}
    for statement in before:
        name, equals, value = statement[0].partition("=")
        exported = statement[0] == "export" and len(statement) == 2 and statement[1] in variables
        if not exported and not (equals and len(statement) == 1 and name in _VARIABLES):
            raise ValueError(f"mpirun sets {' '.join(statement)!r} before its daemon, which is not known here")
        if not exported:
            variables[name] = value
    if not is_proxy(argv):
        raise ValueError(f"mpirun wants {argv[:1]} run, which is no daemon of Open MPI")
    return Daemon(argv, variables)


def expand(variables: dict[str, str], environment: dict[str, str]) -> dict[str, str]:
    """The variables with ``$NAME`` filled from the environment of the host that they are for; empty where unset."""
    names = {name: environment.get(name, "") for name in _VARIABLES}
    return {name: string.Template(value).safe_substitute(names) for name, value in variables.items()}
