"""The first process of the cluster's namespaces: starts and signals the cluster's parts as the fixture asks.

It reads one JSON object from each connection to STATE/supervisor.sock and answers it with one line, one connection after
the other, so that more than one process can ask. Being process 1 of its process namespace, its end is the end of everything
in there, which is what makes the cleaning up sure.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys

MS_SHARED, MS_REC, MS_BIND = 1 << 20, 1 << 14, 1 << 12


def mount(source, target, kind, flags, data=""):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()):
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}")


def private_folders(state):
    """Own /run, /var/lib and /var/log: containerd, the kubelet and CNI keep their default paths and touch nothing else."""
    mount("none", "/", "none", MS_SHARED | MS_REC)
    mount("run", "/run", "tmpfs", 0, "mode=0755")
    for name in ("var/lib", "var/log"):
        own = os.path.join(state, name)
        os.makedirs(own, exist_ok=True)
        mount(own, f"/{name}", "none", MS_BIND)


def reap(children):
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for name, process in list(children.items()):
            if process.pid == pid:
                process.returncode = -1
                del children[name]


def main(state):
    private_folders(state)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # The node's address: a kubelet takes no loopback one, and nothing outside this namespace can reach it.
    subprocess.run(["ip", "address", "add", "10.77.0.1/32", "dev", "lo"], check=True)
    # The API server's address inside the cluster: with it here, Pods reach the API server without a kube-proxy.
    subprocess.run(["ip", "address", "add", "10.96.0.1/32", "dev", "lo"], check=True)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children, known = {}, {}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.join(state, "supervisor.sock"))
        listening.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            with connection, connection.makefile("rw") as stream:
                reap(children)
                stream.write(json.dumps(answer(json.loads(stream.readline()), children, known)) + "\n")


def answer(asked, children, known):
    """Does what was asked. `known`: the arguments that each part was started with."""
    name = asked["name"]
    if asked["do"] == "start":
        known[name] = asked["argv"] or known[name]
        with open(asked["log"], "ab") as log:
            children[name] = subprocess.Popen(
                known[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    elif name in children:
        process = children.pop(name)
        process.kill()
        process.wait()
    return {"known": sorted(known)}


if __name__ == "__main__":
    main(sys.argv[1])
