"""The cluster: the only file that imports the Kubernetes client.

Of that client it takes what is hard to do well (kubeconfig, exec plugins, tokens, TLS, proxies) and sends the few requests
it needs by path: the generated classes cost seconds to import. Every request is counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import urllib3.exceptions
from kubernetes import client
from kubernetes import config as kube_config
from kubernetes.config.config_exception import ConfigException
from kubernetes.stream import ws_client
from websocket import WebSocketException
from yaml import YAMLError

from swimmy.errors import ClusterUnreachable, PermissionMissing, QuotaExceeded, SpecError, SwimmyError
from swimmy.manifests import RUN_LABEL, Manifest
from swimmy.watch import Gone, Unavailable

# The server sends a bookmark about once a minute: a stream that is silent for longer is dead.
_SILENT = 90.0
_TIMEOUT = (5, 30)
_FORWARD_PAUSE = 0.3
_PLURAL = {
    "Job": ("/apis/batch/v1", "jobs"),
    "Secret": ("/api/v1", "secrets"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Pod": ("/api/v1", "pods"),
}


class NotFound(SwimmyError):
    """The object is not there."""


class Cluster:
    """A namespace of a cluster, reached as kubectl would reach it.

    ``kubeconfig`` is a path (default: ``$KUBECONFIG``, ``~/.kube/config``, or the Pod's own service account inside a
    cluster), ``context`` and ``namespace`` default to what it says. ``requests`` counts what was sent, by verb and kind.
    """

    def __init__(self, kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None) -> None:
        config: Any = kube_config  # it ships no types
        settings = client.Configuration()
        self.inside = False
        try:
            if kubeconfig is None and context is None and not os.environ.get("KUBECONFIG") and _in_cluster():
                config.load_incluster_config(client_configuration=settings)
                self.inside = True
                found = _service_account_namespace()
            else:
                paths = [] if kubeconfig is None else kubeconfig.split(os.pathsep)
                if paths and not any(os.path.exists(os.path.expanduser(path)) for path in paths):
                    raise ClusterUnreachable(f"there is no kubeconfig at {kubeconfig!r}; kubectl's is ~/.kube/config")
                chosen = None if context is None else self._context(kubeconfig, context)
                config.load_kube_config(kubeconfig, context, client_configuration=settings)
                if chosen is None:
                    _, chosen = config.list_kube_config_contexts(kubeconfig)
                found = chosen["context"].get("namespace", "default")
        except (ConfigException, OSError) as error:
            raise ClusterUnreachable(
                f"no cluster is known here: {str(error).rstrip('.')}. Set KUBECONFIG to a kubeconfig "
                "file, or pass kubeconfig= and context="
            ) from None
        except (YAMLError, TypeError, AttributeError, KeyError) as error:  # the client takes any file for a kubeconfig
            where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
            raise ClusterUnreachable(
                f"{where} is no kubeconfig ({_shortly(error)}); `kubectl config view` says what it holds"
            ) from None
        settings.retries = False
        self.namespace = namespace or found
        self.server = settings.host
        self.requests: Counter[str] = Counter()
        self._settings = settings
        self._client: Any = client.ApiClient(settings)

    @staticmethod
    def _context(kubeconfig: str | None, name: str) -> dict[str, Any]:
        config: Any = kube_config
        contexts, _ = config.list_kube_config_contexts(kubeconfig)
        for each in contexts:
            if each["name"] == name:
                return dict(each)
        raise SpecError(f"context {name!r} is not in the kubeconfig; known: {', '.join(each['name'] for each in contexts)}")

    def close(self) -> None:
        self._client.close()
        self._client.rest_client.pool_manager.clear()  # which the client leaves to the garbage collector

    # -- requests -------------------------------------------------------------------------------------------------

    def _serialized(self, method: str, path: str, query: dict[str, Any] | None, body: Any, kind: str) -> Any:
        headers = {"Accept": "application/json", "Content-Type": kind}
        pairs = list((query or {}).items())
        return self._client.param_serialize(
            method, path, query_params=pairs, header_params=headers, body=body, auth_settings=["BearerToken"]
        )

    def _send(
        self,
        what: str,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        kind: str = "application/json",
        timeout: tuple[float, float] = _TIMEOUT,
    ) -> Any:
        """The raw response; raises SwimmyError's children, in words, for everything that is not a success."""
        self.requests[what] += 1
        arguments = self._serialized(method, path, query, body, kind)
        try:
            response = self._client.call_api(*arguments, _request_timeout=timeout)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterUnreachable(
                f"the API server {self.server} does not answer ({_shortly(error)}); is the cluster up, and the "
                "context the right one?"
            ) from None
        if response.status >= 400:
            raise self._refusal(what, response)
        return response

    def _refusal(self, what: str, response: Any) -> SwimmyError:
        text = response.read().decode(errors="replace")
        try:
            message = json.loads(text).get("message", text)
        except ValueError:
            message = text
        where = f"in namespace {self.namespace!r}"
        if response.status == 404 and message.startswith("namespaces "):
            return SpecError(
                f"{what}: the cluster {self.server} has no namespace {self.namespace!r}; name one by namespace=, or have "
                f"it made: kubectl create namespace {self.namespace}",
                reason="NoNamespace",
            )
        if response.status == 404:
            return NotFound(f"{what}: {message}")
        if response.status == 410:
            return SwimmyError(message, reason="Gone")
        if response.status == 401:
            return PermissionMissing(
                f"the API server does not know who asks ({message}); log in again, or renew the token", reason=what
            )
        if response.status == 403 and "exceeded quota" in message:
            return QuotaExceeded(f"{what} {where}: {message}. Ask for less, or have the quota raised", reason="quota")
        if response.status == 403 and "violates PodSecurity" in message:
            return PermissionMissing(
                f"{what} {where} is refused by Pod security: {message}. Leave out what it names (hostPath, patch=)",
                reason="PodSecurity",
            )
        if response.status == 403:
            return PermissionMissing(
                f"{what} {where} is not allowed: {message}. `swimmy rbac` prints the Role that allows it", reason=what
            )
        if response.status in (429, 500, 502, 503, 504):
            return ClusterUnreachable(
                f"{what}: the API server answers {response.status}: {message}", reason=str(response.status)
            )
        return SpecError(f"{what} {where}: the API server refuses it: {message}", reason=str(response.status))

    def _json(self, *arguments: Any, **named: Any) -> Any:
        return json.loads(self._send(*arguments, **named).read())

    def _path(self, kind: str, name: str = "") -> str:
        prefix, plural = _PLURAL[kind]
        return f"{prefix}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    # -- objects --------------------------------------------------------------------------------------------------

    def create(self, manifest: Manifest) -> Manifest:
        kind = manifest["kind"]
        answer: Manifest = self._json(f"create {kind}", "POST", self._path(kind), body=manifest)
        return answer

    def get_job(self, name: str) -> Manifest:
        answer: Manifest = self._json("get Job", "GET", self._path("Job", name))
        return answer

    def list_jobs(self) -> list[Manifest]:
        """The Jobs of all runs in the namespace."""
        answer = self._json("list Jobs", "GET", self._path("Job"), {"labelSelector": RUN_LABEL})
        return list(answer["items"])

    def set_deadline(self, name: str, seconds: int | None) -> None:
        body = {"spec": {"activeDeadlineSeconds": seconds}}
        self._json("patch Job", "PATCH", self._path("Job", name), body=body, kind="application/merge-patch+json")

    def delete_job(self, name: str) -> bool:
        """Deletes the Job, its Pods and its Secret; False where there was none."""
        try:
            # Without a policy the API server leaves a Job's Pods behind.
            self._json("delete Job", "DELETE", self._path("Job", name), {"propagationPolicy": "Background"})
        except NotFound:
            return False
        return True

    def list_pods(self, run: str) -> tuple[list[Manifest], str]:
        answer = self._json("list Pods", "GET", self._path("Pod"), {"labelSelector": f"{RUN_LABEL}={run}"})
        return list(answer["items"]), answer["metadata"]["resourceVersion"]

    def list_events(self, run: str) -> list[Manifest]:
        """What the cluster said about the run's Job and Pods, the oldest first."""
        path = f"/api/v1/namespaces/{self.namespace}/events"
        answer = self._json("list Events", "GET", path)
        found = [each for each in answer["items"] if each["involvedObject"].get("name", "").startswith(run)]
        return sorted(found, key=lambda each: each.get("lastTimestamp") or each.get("eventTime") or "")

    def pod_log(self, name: str, lines: int = 50) -> list[str]:
        """The last lines of a container that was there; empty where the node no longer has them."""
        try:
            response = self._send("read log", "GET", f"{self._path('Pod', name)}/log", {"tailLines": lines})
        except SwimmyError:
            return []
        return str(response.read().decode(errors="replace")).splitlines()

    def allowed(self, verb: str, group: str, resource: str) -> bool:
        """Whether this client may do that, by the API server's own word."""
        kind, _, sub = resource.partition("/")
        attributes = {"namespace": self.namespace, "verb": verb, "group": group, "resource": kind, "subresource": sub}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = self._json("review access", "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
        return bool(answer["status"]["allowed"])

    def nodes(self) -> list[Manifest] | None:
        """The machines, or None where this client may not list them (a namespace's user usually may not)."""
        try:
            return list(self._json("list Nodes", "GET", "/api/v1/nodes")["items"])
        except PermissionMissing:
            return None

    def version(self) -> str:
        return str(self._json("get version", "GET", "/version")["gitVersion"])

    # -- streams --------------------------------------------------------------------------------------------------

    def pods_of(self, run: str) -> PodSource:
        return PodSource(self, run)

    def forward(self, pod: str, port: int) -> Forward:
        """A local port that leads to the Pod's, through the API server."""
        return Forward(self, pod, port)

    def open_forward(self, pod: str, port: int) -> Any:
        """A WebSocket whose first channel is the Pod's port."""
        self.requests["forward port"] += 1
        path = f"{self._path('Pod', pod)}/portforward"
        _, url, headers, *_ = self._serialized("GET", path, {"ports": str(port)}, None, "application/json")
        headers = {name.lower(): value for name, value in headers.items()}
        headers["sec-websocket-protocol"] = "v4.channel.k8s.io"
        create: Any = ws_client.create_websocket
        return create(self._settings, url.replace("http", "ws", 1), headers)


class PodSource:
    """A run's Pods for ``ListWatch``. ``stop()``, from any thread, ends a watch that is waiting."""

    def __init__(self, cluster: Cluster, run: str) -> None:
        self._cluster, self._run = cluster, run
        self._response: Any = None
        self._stopped = threading.Event()

    def list(self) -> tuple[list[Manifest], str]:
        with _as_unavailable():
            return self._cluster.list_pods(self._run)

    @contextlib.contextmanager
    def watch(self, version: str) -> Iterator[Iterable[bytes]]:
        query = {
            "labelSelector": f"{RUN_LABEL}={self._run}",
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": "3600",
        }
        with _as_unavailable():
            path = self._cluster._path("Pod")
            response = self._cluster._send("watch Pods", "GET", path, query, timeout=(5, _SILENT)).response
            self._response = response
            if self._stopped.is_set():
                response.close()
                return
            try:
                yield _lines(response)
            finally:
                self._response = None
                response.close()

    def stop(self) -> None:
        self._stopped.set()
        response = self._response
        if response is not None:
            with contextlib.suppress(Exception):  # it may be closing at this very moment
                response.shutdown()


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for data in response.stream(64 * 1024, decode_content=True):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except ClusterUnreachable as error:
        raise Unavailable(error.message) from None
    except SwimmyError as error:
        if error.reason == "Gone":
            raise Gone from None
        raise
    except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
        # The last two are what urllib3 and ssl raise for a stream that another thread has shut.
        raise Unavailable(f"the watch broke ({_shortly(error)})") from None


class Forward:
    """Listens on a port of the loopback interface and carries each connection to the Pod through the API server.

    Anybody on this machine can connect to it, and gets no further than anybody in the cluster would: the agent asks for a
    key.
    """

    def __init__(self, cluster: Cluster, pod: str, port: int) -> None:
        self._cluster, self._pod, self._port = cluster, pod, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.trouble: str | None = None
        self._closed = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._accept, name=f"forward to {pod}", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                with connection:
                    carried = not self._closed and self._carry(connection)
            except (WebSocketException, OSError) as error:
                self.trouble, carried = _shortly(error), False
            # The agent may not listen yet; each try is a request, so the next one waits (and ends the wait when closed).
            if not carried and self._ended.wait(_FORWARD_PAUSE):
                return

    def _carry(self, connection: socket.socket) -> bool:
        """Carries bytes until either end closes; whether any came from the Pod."""
        far = self._cluster.open_forward(self._pod, self._port)
        carried = False
        greeted: set[int] = set()  # each channel begins with the port's number
        try:
            while not self._closed:
                if not far.sock.pending() and not select.select([connection, far.sock], [], [], 0.5)[0]:
                    continue
                if far.sock.pending() or select.select([far.sock], [], [], 0)[0]:
                    data = far.recv()
                    if not data:
                        return carried
                    channel, data = data[0], data[1:]
                    if channel not in greeted:
                        greeted.add(channel)
                    elif channel == 1:
                        self.trouble = data.decode(errors="replace").strip()
                        return carried
                    else:
                        connection.sendall(data)
                        carried = True
                if select.select([connection], [], [], 0)[0]:
                    data = connection.recv(256 * 1024)
                    if not data:
                        return carried
                    far.send_binary(b"\0" + data)
            return carried
        finally:
            far.close(timeout=1)
            far.shutdown()  # close() does nothing after the other end's close, and leaves the socket open

    def close(self) -> None:
        self._closed = True
        self._ended.set()
        with contextlib.suppress(OSError), socket.create_connection(self._listener.getsockname(), timeout=1):
            pass  # wakes the thread that waits for a connection
        self._listener.close()
        self._thread.join()


def _shortly(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).splitlines()[0][:300] if str(reason) else type(error).__name__


def _in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token")


def _service_account_namespace() -> str:
    with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
        return file.read().strip()
