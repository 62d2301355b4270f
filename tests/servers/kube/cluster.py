"""Starts and stops the cluster, its parts and its nodes."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

from servers.kube import cgroups, images
from servers.kube.build import cluster_program, pause_program
from servers.kube.certificates import NODE_ADDRESS, Authority

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
TOOLS = {
    "go": "install Go 1.25 or newer",
    "etcd": "apt-get install etcd-server",
    "containerd": "apt-get install containerd",
    "runc": "apt-get install runc",
    "gcc": "apt-get install gcc libc6-dev",
    "ip": "apt-get install iproute2",
    "openssl": "apt-get install openssl",
    "/usr/lib/cni/bridge": "apt-get install containernetworking-plugins",
}


class Missing(Exception):
    """This machine cannot run the cluster; the text says what to install."""


def missing_tools() -> list[str]:
    found = [f"{tool}: {remedy}" for tool, remedy in TOOLS.items() if shutil.which(tool) is None]
    if os.geteuid() != 0:
        found.append("root: run the tests as root")
    return found


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Cluster:
    """A context manager; while it is open the calling thread (and threads and processes it starts) see the cluster's
    network. Those processes may ``join`` it by its ``state``, the folder that holds all of it.

    ``kubeconfig`` names an administrator's file. ``node`` is the first node's name, ``reserved`` the taint of the second.
    """

    node = "node-1"
    reserved: ClassVar[dict[str, str]] = {"key": "tests", "value": "reserved", "effect": "NoSchedule"}
    _supervisor: subprocess.Popen[str] | None = None

    @classmethod
    def join(cls, state: Path) -> Cluster:
        """The cluster that a parent of this process holds open; not to be closed by this one."""
        joined = cls.__new__(cls)
        joined._at(state)
        return joined

    def _at(self, state: Path) -> None:
        self.state, self.group = state, state.name
        self.kubeconfig = state / "pki" / "admin.kubeconfig"
        self._program = cluster_program()

    def __init__(self) -> None:
        if missing := missing_tools():
            raise Missing("a test cluster cannot run here:\n  " + "\n  ".join(missing))
        self._at(Path(tempfile.mkdtemp(prefix="cluster-")))
        self.state.chmod(0o755)
        self._own_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    # -- the namespaces -------------------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            print(self.log_tails(), file=sys.stderr)
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **message: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.state / "supervisor.sock"))
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(message) + "\n")
                stream.flush()
                line = stream.readline()
        if not line:
            raise RuntimeError("the cluster's supervisor has ended:\n" + self.log_tails())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _enter_namespaces(self) -> None:
        argv = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
        argv += [sys.executable, str(Path(__file__).parent / "supervisor.py"), str(self.state)]
        with open(self.state / "supervisor.log", "wb") as log:
            self._supervisor = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=_die_with_parent,  # noqa: PLW1509 - no thread of ours runs yet
            )  # fmt: skip
        assert self._supervisor.stdout is not None
        if not self._supervisor.stdout.readline():
            raise RuntimeError("the namespaces could not be made:\n" + self.log_tails())
        pid = self._supervisor.pid
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        (self.state / "pid").write_text(child)
        with open(f"/proc/{child}/ns/net") as namespace:
            self._set_network(namespace.fileno())

    @staticmethod
    def _set_network(descriptor: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    def close(self) -> None:
        """Kills everything that was started, containers too, and removes the folder and the cgroup. May be called twice."""
        self._set_network(self._own_network)
        if self._supervisor is not None:
            self._supervisor.kill()
            self._supervisor.communicate()
            self._supervisor = None
        deadline = time.monotonic() + 20
        for group in (self.group, f"{self.group}-2"):
            while True:
                try:
                    cgroups.remove(group)
                    break
                except OSError:  # the last processes are still being ended by the kernel
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
        shutil.rmtree(self.state, ignore_errors=False)

    # -- the parts ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        pki = self.state / "pki"
        authority = Authority(pki)
        authority.issue("apiserver", "/CN=kube-apiserver", "IP:127.0.0.1", f"IP:{NODE_ADDRESS}", "IP:10.96.0.1",
                        "DNS:kubernetes.default.svc")  # fmt: skip
        authority.issue("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
        authority.kubeconfig("admin", "/O=system:masters/CN=admin")
        scheduler = authority.kubeconfig("scheduler", "/CN=system:kube-scheduler")
        manager = authority.kubeconfig("manager", "/CN=system:kube-controller-manager")
        self._enter_namespaces()
        etcd = "http://127.0.0.1:2379"
        self.start("etcd", ["etcd", "--data-dir", f"{self.state}/etcd", "--listen-client-urls", etcd,
                            "--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:2380",
                            "--unsafe-no-fsync"])  # fmt: skip
        kube = str(self._program)
        self.start("kube-apiserver", [
            kube, "kube-apiserver", f"--etcd-servers={etcd}", "--secure-port=443", f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
            f"--kubelet-client-certificate={pki}/kubelet-client.crt", f"--kubelet-client-key={pki}/kubelet-client.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/service-account.pub",
            f"--service-account-signing-key-file={pki}/service-account.key",
            "--service-cluster-ip-range=10.96.0.0/24", "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP", "--etcd-compaction-interval=0",
            f"--advertise-address={NODE_ADDRESS}",
        ])  # fmt: skip
        self._note_image(images.pause_image(self.state / "pause.tar", pause_program()))
        self._start_container_runtime(1)
        self.wait_for_api()
        self.start("kube-controller-manager", [
            kube, "kube-controller-manager", f"--kubeconfig={manager}", "--use-service-account-credentials",
            f"--service-account-private-key-file={pki}/service-account.key", f"--root-ca-file={pki}/ca.crt",
            "--leader-elect=false", "--node-monitor-grace-period=8s", "--node-monitor-period=2s",
        ])  # fmt: skip
        self.start("kube-scheduler", [kube, "kube-scheduler", f"--kubeconfig={scheduler}", "--leader-elect=false"])
        self._start_kubelet(1)
        self.wait_for_node(self.node)

    @property
    def authority(self) -> Authority:
        """Signs further clients' certificates."""
        return Authority(self.state / "pki")

    def start(self, name: str, argv: list[str] | None = None) -> None:
        """Starts a part, or starts it again with the arguments it had."""
        self._ask(do="start", name=name, argv=argv, log=str(self.state / f"{name}.log"))

    def kill(self, name: str) -> None:
        """Kills one part with SIGKILL and returns when it has ended; ``start(name)`` brings it back."""
        self._ask(do="kill", name=name)

    def run_inside(self, *argv: str) -> str:
        """Runs a command in the cluster's mount and process namespaces; raises RuntimeError with its output if it fails."""
        enter = ["nsenter", f"--target={(self.state / 'pid').read_text()}", "--mount", "--pid", "--", *argv]
        done = subprocess.run(enter, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)} gave {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def _start_container_runtime(self, number: int) -> None:
        suffix = "" if number == 1 else str(number)
        network = self.state / "cni"
        network.mkdir(exist_ok=True)
        (network / "10-test.conflist").write_text(json.dumps({
            "cniVersion": "0.4.0", "name": "test", "plugins": [{
                "type": "bridge", "bridge": "pods0", "isGateway": True, "ipMasq": False, "hairpinMode": True,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/22"}]],
                         "routes": [{"dst": "0.0.0.0/0"}]}}]}))  # fmt: skip
        settings = self.state / f"containerd{suffix}.toml"
        # restrict_oom_score_adj: where SYS_RESOURCE is missing (as in a sandboxed CI machine) no sandbox starts without it.
        settings.write_text(
            f'version = 2\nroot = "/var/lib/containerd{suffix}"\nstate = "/run/containerd{suffix}"\n'
            f'[grpc]\n  address = "/run/containerd{suffix}/containerd.sock"\n'
            '[plugins."io.containerd.grpc.v1.cri"]\n  restrict_oom_score_adj = true\n'
            f'  sandbox_image = "{images.PAUSE}"\n'
            '  [plugins."io.containerd.grpc.v1.cri".cni]\n'
            f'    bin_dir = "/usr/lib/cni"\n    conf_dir = "{network}"\n'
        )
        self.start(f"containerd{suffix}", ["containerd", "--config", str(settings)])
        for path in (self.state / "images").read_text().splitlines():
            self._import(number, Path(path))

    def _import(self, number: int, path: Path) -> None:
        suffix = "" if number == 1 else str(number)
        command = [
            "ctr",
            "-a",
            f"/run/containerd{suffix}/containerd.sock",
            "-n",
            "k8s.io",
            "images",
            "import",
            str(path),
        ]
        deadline = time.monotonic() + 30
        while True:
            try:
                self.run_inside(*command)
                return
            except RuntimeError:  # containerd does not answer yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def import_image(self, path: Path) -> None:
        """Brings a docker archive into every node, for ``imagePullPolicy: Never`` or ``IfNotPresent``."""
        self._note_image(path)
        self._import(1, path)
        if self._has_second_node():
            self._import(2, path)

    def _note_image(self, path: Path) -> None:
        with open(self.state / "images", "a") as noted:
            noted.write(f"{path}\n")

    def _has_second_node(self) -> bool:
        return (self.state / "kubelet2.yaml").exists()

    def _start_kubelet(self, number: int) -> None:
        node, suffix, pki = f"node-{number}", "" if number == 1 else str(number), self.state / "pki"
        group = self.group if number == 1 else f"{self.group}-{number}"
        cgroups.make(group)
        kubeconfig = self.authority.kubeconfig(node, f"/O=system:nodes/CN=system:node:{node}")
        self.authority.issue(f"{node}-server", f"/CN={node}", f"IP:{NODE_ADDRESS}", f"DNS:{node}")
        (self.state / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        settings = self.state / f"kubelet{suffix}.yaml"
        settings.write_text(json.dumps({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix:///run/containerd{suffix}/containerd.sock",
            "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{group}", "failCgroupV1": False, "failSwapOn": False,
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False},
                               "x509": {"clientCAFile": f"{pki}/ca.crt"}},
            "authorization": {"mode": "AlwaysAllow"},
            "tlsCertFile": f"{pki}/{node}-server.crt", "tlsPrivateKeyFile": f"{pki}/{node}-server.key",
            "port": 10250 + 10 * (number - 1), "healthzPort": 10248 + 10 * (number - 1),
            "resolvConf": f"{self.state}/resolv.conf",
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%",
                             "nodefs.inodesFree": "1%"},
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "containerLogMaxSize": "1Mi", "nodeStatusUpdateFrequency": "2s",
            "volumeStatsAggPeriod": "5s",  # how soon it is seen that a volume is too full
            "registerWithTaints": [] if number == 1 else [self.reserved],
        }))  # fmt: skip
        self.start(f"kubelet{suffix}", [
            str(self._program), "kubelet", "--config", str(settings), "--kubeconfig", str(kubeconfig),
            "--hostname-override", node, "--node-ip", NODE_ADDRESS,
            "--root-dir", f"/var/lib/kubelet{suffix}", "--cert-dir", f"/var/lib/kubelet{suffix}/pki",
        ])  # fmt: skip

    def add_node(self) -> str:
        """A second node on this machine, with a container runtime and a kubelet of its own; returns its name.

        Only Pods that tolerate ``reserved`` come to it. One that is there is given out again: callers take turns.
        """
        if not self._has_second_node():
            self._start_container_runtime(2)
            self._start_kubelet(2)
        self.wait_for_node("node-2")
        return "node-2"

    # -- what it says ---------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        """One request as administrator, by hand: the fixture must not stand on the code it tests."""
        pki = self.state / "pki"
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"https://127.0.0.1{path}", data, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(asked, context=context, timeout=10) as answer:
            text = answer.readline() if "watch=1" in path else answer.read()
            return json.loads(text) if text and answer.headers.get_content_type() == "application/json" else text.decode()

    def wait_gone(self, path: str, seconds: float = 60) -> None:
        """Waits until the list at that path (its query may select) is empty; raises TimeoutError with what is left."""
        deadline = time.monotonic() + seconds
        joint = "&" if "?" in path else "?"
        while items := (answer := self.request("GET", path))["items"]:
            left = deadline - time.monotonic()
            if left <= 0:
                names = ", ".join(
                    f"{each['metadata']['name']} ({each.get('status', {}).get('phase', '')})" for each in items
                )
                raise TimeoutError(f"still there after {seconds} s: {names}")
            version = answer["metadata"]["resourceVersion"]
            self.request("GET", f"{path}{joint}watch=1&timeoutSeconds=2&resourceVersion={version}")

    def wait_for_api(self) -> None:
        self.wait_until("the API server", lambda: self.request("GET", "/readyz") == "ok")

    def wait_for_node(self, name: str) -> None:
        def ready() -> bool:
            conditions = self.request("GET", f"/api/v1/nodes/{name}")["status"].get("conditions", [])
            return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

        self.wait_until(f"node {name}", ready)

    def wait_until(self, what: str, ready: Any) -> None:
        """Waits until `ready` says so; a server that does not answer meanwhile is asked again."""
        deadline = time.monotonic() + 60
        while True:
            try:
                if ready():
                    return
            except (OSError, urllib.error.URLError):
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} was not ready in 60 s:\n" + self.log_tails())
            time.sleep(0.1)

    def log_tails(self) -> str:
        parts = []
        for log in sorted(self.state.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-8:]
            parts.append(f"--- {log.name}\n" + "\n".join(line[:300] for line in lines))
        return "\n".join(parts)
