"""Seconds from submit to an MPI program's first line on Pods: swimmy beside mpiexec over ssh, one image, by turns.

    PYTHONPATH=tests python benchmarks/swimmy_ssh.py [--runs 3] [--shapes 3x2 8x8]

Needs sshd on this machine (apt-get install openssh-server) beside what the test cluster needs (Go, root): it is put into
the image. The ssh way is what a launcher with sshd does: an indexed Job whose Pods run sshd with keys from a Secret, a
watch until all run, a connection to each sshd, then `mpiexec -launcher ssh` on the first Pod, over the Pods' addresses (real
launchers wait for DNS as well). Both sides stop the clock at rank 0's line after MPI_Init and an allreduce, have the same
limits and the same interpreter; cleaning up is outside both figures.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from swimmy_startup import LEFT_OUT

import swimmy
from servers.kube import Cluster, images
from swimmy import manifests
from swimmy.agent.mpi import SETTINGS
from swimmy.manifests import RUN_LABEL, Owner
from swimmy.watch import ListWatch

IMAGE = "localhost/swimmy/python:ssh"
PORT = 2222
PROGRAM = (
    "from mpi4py import MPI; total = MPI.COMM_WORLD.allreduce(1); "
    "MPI.COMM_WORLD.Get_rank() == 0 and print('begun', total, flush=True)"
)


def hello() -> None:
    from mpi4py import MPI

    total = MPI.COMM_WORLD.allreduce(1)
    if MPI.COMM_WORLD.Get_rank() == 0:
        print("begun", total, flush=True)


def by_swimmy(kube: Cluster, cluster: swimmy.Cluster, pods: int, ranks: int) -> float:
    """Through the agents."""
    asked = swimmy.Pods(
        image=IMAGE, replicas=pods, cpus="20m", memory="256Mi", python=sys.executable, image_pull_policy="Never", grace=1
    )
    began = time.monotonic()
    with swimmy.submit(hello, pods=asked, mpi=swimmy.mpi(ranks), cluster=cluster, reach="direct") as handle:
        line = next(handle.logs())
        seconds = time.monotonic() - began
        assert line.text == f"begun {pods * ranks}", line
        handle.result(60)
        run = handle.id
    wait_gone(kube, run)
    return seconds


def wait_gone(kube: Cluster, run: str) -> None:
    for path in ("/apis/batch/v1/namespaces/default/jobs", "/api/v1/namespaces/default/pods"):
        kube.wait_gone(f"{path}?labelSelector={RUN_LABEL}={run}")


def keys(folder: Path) -> dict[str, str]:
    """A pair for the user, one for the hosts, and the client's settings."""
    for name in ("user", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    settings = (
        f"Host *\n  Port {PORT}\n  IdentityFile /keys/user\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        "  LogLevel ERROR\n"
    )
    return {
        "user": (folder / "user").read_text(), "host": (folder / "host").read_text(),
        "authorized": (folder / "user.pub").read_text(), "config": settings,
    }  # fmt: skip


def ssh_job(run: str, pods: int) -> dict[str, Any]:
    """swimmy's own Job, with sshd where the agent is."""
    asked = swimmy.Pods(
        image=IMAGE, replicas=pods, cpus="20m", memory="256Mi", python=sys.executable, image_pull_policy="Never", grace=1
    )
    job = manifests.job(run, asked, swimmy.mpi(1))
    spec = job["spec"]["template"]["spec"]
    container = spec["containers"][0]
    options = ("HostKey=/keys/host", "AuthorizedKeysFile=/keys/authorized", "StrictModes=no", "UsePAM=no", "PidFile=none",
               f"Port={PORT}", "MaxStartups=200")  # fmt: skip
    container["command"] = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *(f"-o{option}" for option in options)]
    for each in spec["volumes"]:
        if each["name"] == "swimmy-keys":
            each["secret"]["defaultMode"] = 0o440
    for each in container["volumeMounts"]:
        if each["name"] == "swimmy-keys":
            each["mountPath"] = "/keys"
    return dict(job)


def by_ssh(kube: Cluster, cluster: swimmy.Cluster, pods: int, ranks: int, secret: dict[str, str], key: Path) -> float:
    """Through sshd in every Pod."""
    run = f"ssh-{os.urandom(3).hex()}"
    began = time.monotonic()
    job = cluster.create(ssh_job(run, pods))
    made = manifests.secret(run, secret, Owner("batch/v1", "Job", run, job["metadata"]["uid"]))
    cluster.create(made)
    hosts = running(cluster, run, pods)
    for host in hosts:
        listening(host)
    settings = [word for name, value in SETTINGS.items() for word in ("-genv", name, value)]  # what Pods need of MPICH
    mpiexec = [
        f"{sys.prefix}/bin/mpiexec", "-launcher", "ssh", "-launcher-exec", "/usr/bin/ssh-keyed", "-iface", "eth0", *settings,
        "-hosts", ",".join(hosts), "-n", str(pods * ranks), "-ppn", str(ranks), sys.executable, "-c", f'"{PROGRAM}"',
    ]  # fmt: skip
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    client = ["ssh", "-p", str(PORT), "-i", str(key), *(f"-o{option}" for option in options)]
    with subprocess.Popen([*client, f"user@{hosts[0]}", " ".join(mpiexec)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.monotonic() - began
        assert line == f"begun {pods * ranks}\n", line
    cluster.delete_job(run)
    wait_gone(kube, run)
    return seconds


def running(cluster: swimmy.Cluster, run: str, count: int) -> list[str]:
    """The Pods' addresses once all run, by one watch."""
    changes: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    over = threading.Event()
    source = cluster.pods_of(run)
    watch = ListWatch(source, lambda kind, pod: changes.put((kind, pod)), lambda trouble: None, over.wait)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    found: dict[str, str] = {}
    while len(found) < count:
        _, pod = changes.get(timeout=120)
        if pod["status"].get("phase") == "Running":
            found[pod["metadata"]["name"]] = pod["status"]["podIP"]
    over.set()
    source.stop()
    thread.join()
    return [found[name] for name in sorted(found)]


def listening(host: str) -> None:
    """Returns when the Pod's sshd takes connections."""
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((host, PORT), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)  # sshd tells nobody that it listens


def make_image(kube: Cluster, folder: Path) -> Path:
    """The image of this environment, with ssh and sshd and what they are linked against."""
    missing = [name for name in ("/usr/sbin/sshd", "/usr/bin/ssh") if not Path(name).exists()]
    if missing:
        sys.exit(f"{' and '.join(missing)} are missing: apt-get install openssh-server openssh-client")
    programs = [Path("/usr/sbin/sshd"), Path("/usr/bin/ssh"), *Path("/usr/lib/openssh").glob("sshd*")]
    base = images.python_image(
        kube.state / "python.tar", "localhost/swimmy/python:bench", leave_out=LEFT_OUT, needed_by=programs
    )
    settings, keyed = folder / "config", folder / "ssh-keyed"
    keyed.write_text('#!/bin/sh\nexec /usr/bin/ssh -F /keys/config "$@"\n')
    keyed.chmod(0o755)
    extra = {str(each): each for each in programs} | {"/usr/bin/ssh-keyed": keyed, "/etc/ssh/ssh_config": settings}
    settings.write_text("")
    return images.layered_image(kube.state / "ssh.tar", IMAGE, extra, base)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=["3x2", "8x8"], help="Pods x ranks on each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Cluster() as kube:
        folder = Path(name)
        secret = keys(folder)
        kube.import_image(make_image(kube, folder))
        cluster = swimmy.Cluster(str(kube.kubeconfig), namespace="default")
        for shape in options.shapes:
            pods, ranks = map(int, shape.split("x"))
            taken: dict[str, list[float]] = {"swimmy": [], "ssh": []}
            for _ in range(options.runs):
                taken["swimmy"].append(by_swimmy(kube, cluster, pods, ranks))
                taken["ssh"].append(by_ssh(kube, cluster, pods, ranks, secret, folder / "user"))
            figures = {way: statistics.median(times) for way, times in taken.items()}
            each = {way: [round(time, 2) for time in times] for way, times in taken.items()}
            print(
                f"{pods} Pods x {ranks} ranks: swimmy {figures['swimmy']:.2f} s, mpiexec over ssh {figures['ssh']:.2f} s "
                f"(median of {options.runs}, {json.dumps(each)}; "
                f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)",
                flush=True,
            )
        cluster.close()


if __name__ == "__main__":
    main()
