"""One batch from rank to rank between two hosts, which are network namespaces of this machine: ghee beside bare pyzmq.

    sudo python benchmarks/between_hosts.py
    sudo python benchmarks/between_hosts.py --sizes 1M --repeats 3

The hosts are joined by a bridge and have an address each; the bytes go over TCP. pyzmq sends the same arrays by PUSH/PULL
with copy=False, once as they are and once encrypted by CURVE, which ghee always does and which costs most of the time.
Needs root and iproute2.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import zmq
from hop import receive, send
from transport import SIZES, count

import ghee
from ghee.launch.contract import World
from ghee.launch.local import LocalLauncher

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "swimmy" / "local"))

from hosts import Hosts, missing_tools  # noqa: E402

IN_FLIGHT = 8
Figures = dict[str, float]


class HostsLauncher(LocalLauncher):
    """The driver is here; the first stage is on the first host and the last stage on the second."""

    def __init__(self, logs: Path, hosts: Hosts) -> None:
        super().__init__(logs, carrier="tcp")
        self._hosts = hosts

    def _bind(self, name: str) -> str:
        return f"tcp://{self._hosts.outside}:*"

    def _command(self, world: World, bootstrap: Path) -> list[str]:
        host = 1 if world.name == "take" else 0
        return [*self._hosts.inside(host), *super()._command(world, bootstrap), self._hosts.addresses[host]]


def make(number: int, size: int):
    """All batches, by one rank."""
    yield from send(size, number)


def take(batches, size: int, number: int) -> Figures:
    """What the receiving rank measures."""
    return receive(batches, size, number, os.getpid())


def ghee_hop(hosts: Hosts, size: int, number: int) -> Figures:
    """Through a map stage on one host and a loop on the other."""
    sent = ghee.read([number]).map(functools.partial(make, size=size), name="make")
    pipeline = sent.loop(functools.partial(take, size=size, number=number), name="take")
    with tempfile.TemporaryDirectory() as logs:
        return ghee.run(pipeline, on=HostsLauncher(Path(logs), hosts), progress=False).result


def zmq_hop(hosts: Hosts, size: int, number: int, curve: bool) -> Figures:
    """Two processes of this file, one on each host."""
    keys = [key.decode() for key in zmq.curve_keypair()] if curve else []
    address = f"tcp://{hosts.addresses[1]}:5599"
    ends = [
        subprocess.Popen(
            [*hosts.inside(host), sys.executable, __file__, f"--{role}", address, str(size), str(number), *keys],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for host, role in ((1, "pull"), (0, "push"))
    ]  # fmt: skip
    printed, _ = ends[0].communicate()
    ends[1].communicate("received\n")
    if ends[0].returncode or ends[1].returncode:
        raise RuntimeError(f"pyzmq ended with {ends[0].returncode} and {ends[1].returncode}")
    seconds, cpu, size_of_all, batches = map(float, printed.split())
    return {"seconds": seconds, "cpu_s": cpu, "bytes": size_of_all, "batches": batches}


def be_end(role: str, address: str, size: int, number: int, keys: list[str]) -> None:
    """One of pyzmq's two processes."""
    with zmq.Context() as context, context.socket(zmq.PULL if role == "--pull" else zmq.PUSH) as socket:
        socket.sndhwm = socket.rcvhwm = IN_FLIGHT
        if keys:
            socket.curve_publickey, socket.curve_secretkey = keys[0].encode(), keys[1].encode()
        if role == "--pull":
            socket.curve_server = bool(keys)
            socket.bind(address)
            frames = (socket.recv(copy=False) for _ in range(number))
            arrays = (np.frombuffer(frame.buffer, np.uint8) for frame in frames)
            print(*receive(arrays, size, number, os.getpid()).values())
            return
        if keys:
            socket.curve_serverkey = keys[0].encode()
        socket.connect(address)
        for array in send(size, number):
            socket.send(array, copy=False)
        sys.stdin.readline()  # a socket that closes earlier may lose what the receiver has not read yet


def main() -> None:
    """See the module's docstring."""
    if len(sys.argv) > 1 and sys.argv[1] in ("--pull", "--push"):
        be_end(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["64k", "1M", "64M"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if missing := missing_tools():
        sys.exit("this needs " + "; ".join(missing))
    systems = {
        "ghee": ghee_hop,
        "pyzmq, CURVE": functools.partial(zmq_hop, curve=True),
        "pyzmq, plain": functools.partial(zmq_hop, curve=False),
    }
    hosts = Hosts(2)
    try:
        print("size  system          GB/s  ghee's / its")
        for word in options.sizes:
            size = SIZES[word]
            number = max(16, count("dask", size))
            rates: dict[str, list[float]] = {name: [] for name in systems}
            for _ in range(options.repeats):
                for name, hop in systems.items():
                    figures = hop(hosts, size, number)
                    rates[name].append(figures["bytes"] / figures["seconds"] / 1e9)
            middle = {name: statistics.median(values) for name, values in rates.items()}
            for name, rate in middle.items():
                print(f"{word:>4}  {name:<14} {rate:5.2f}  {middle['ghee'] / rate:5.2f}")
    finally:
        hosts.close()


if __name__ == "__main__":
    main()
