"""Hosts on this machine: network namespaces on one bridge, each with an address of its own. Needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess


def missing_tools() -> list[str]:
    """What a machine lacks for it, with how to get it; empty when nothing is missing."""
    missing = []
    if os.geteuid() != 0:
        missing.append("root, to make network namespaces")
    if shutil.which("ip") is None:
        missing.append("iproute2: apt-get install iproute2")
    if shutil.which("unshare") is None:
        missing.append("util-linux: apt-get install util-linux")
    return missing


class Hosts:
    """``count`` namespaces on a bridge that this process reaches too. ``close`` removes them."""

    def __init__(self, count: int) -> None:
        number = os.getpid() % 250 + 1
        self.bridge = f"hosts{number}"
        self.names = [f"hosts{number}-{index}" for index in range(count)]
        self.links = [f"v{number}-{index}" for index in range(count)]
        self.outside = f"10.97.{number}.1"
        self.addresses = [f"10.97.{number}.{index + 10}" for index in range(count)]
        self._ip(f"link add {self.bridge} type bridge")
        try:
            self._ip(f"addr add {self.outside}/24 dev {self.bridge}")
            self._ip(f"link set {self.bridge} up")
            for name, address, link in zip(self.names, self.addresses, self.links, strict=True):
                self._ip(f"netns add {name}")
                self._ip(f"link add {link} type veth peer name eth0 netns {name}")
                self._ip(f"link set {link} master {self.bridge} up")
                self._ip(f"-n {name} addr add {address}/24 dev eth0")
                self._ip(f"-n {name} link set eth0 up")
                self._ip(f"-n {name} link set lo up")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _ip(arguments: str, *, check: bool = True) -> None:
        subprocess.run(["ip", *arguments.split()], check=check, capture_output=not check)

    def inside(self, index: int) -> list[str]:
        """What to put before a command that is to run on that host.

        As Pods do, hosts have a name and a /dev/shm of their own: Open MPI names a rank's shared memory by its host's name
        and its number on that host, and the rank of another host would take it for its own.
        """
        name = self.names[index]
        script = f'hostname {name} && mount -t tmpfs shm /dev/shm && exec "$@"'
        return ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-c", script, "sh"]

    def close(self) -> None:
        for name in self.names:
            self._ip(f"netns del {name}", check=False)
        # A namespace lives on while a process is in it, and its end of the pair with it: the next would find the name taken.
        for link in self.links:
            self._ip(f"link del {link}", check=False)
        self._ip(f"link del {self.bridge}", check=False)
