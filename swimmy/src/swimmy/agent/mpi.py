"""How mpiexec is asked to start nothing itself but to say what must run on which host. Pure, but for finding the
interface.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import socket
import struct
import sys
from pathlib import Path

# Ranks of one Pod share memory by files in /dev/shm: a container whose seccomp profile is the default one forbids
# process_vm_readv, and reading another process's descriptors through /proc.
SETTINGS = {"UCX_POSIX_USE_PROC_LINK": "n", "MPIR_CVAR_CH4_CMA_ENABLE": "0"}
PROXIES = frozenset({"hydra_pmi_proxy"})
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
    """``-launcher manual``: mpiexec prints one line per host, and the agents run those lines."""
    chosen = ["-iface", interface] if interface else []
    count = str(len(hosts) * ranks_per_host)
    return [
        mpiexec,
        "-launcher",
        "manual",
        *chosen,
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
