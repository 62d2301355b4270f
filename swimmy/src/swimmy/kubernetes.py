"""The cluster: the only file that imports the Kubernetes client.

Of that client it takes what is hard to do well (kubeconfig, exec plugins, tokens, TLS, proxies) and sends the few requests
it needs by path: the generated classes cost seconds to import. Every request is counted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import urllib3.exceptions
from kubernetes import client
from kubernetes import config as kube_config
from kubernetes.config.config_exception import ConfigException
from kubernetes.stream import ws_client
from yaml import YAMLError

from swimmy.errors import ClusterUnreachable, PermissionMissing, QuotaExceeded, SpecError, SwimmyError, shortly
from swimmy.forward import Forward
from swimmy.manifests import RUN_LABEL, Manifest
from swimmy.patience import AWAY, BUSY, UNMET, Patience
from swimmy.watch import Gone, Unavailable

# The server sends a bookmark about once a minute: a stream that is silent for longer is dead.
_SILENT = 90.0
_TIMEOUT = (5, 30)
_SLICE = 0.25  # seconds after which a thread that waits for the next try looks whether it is still wanted
_CREATION = "swimmy.dev/creation"
"""Names the request that made an object: when its answer is lost, the object tells whose it is."""
_PLURAL = {
    "Job": ("/apis/batch/v1", "jobs"),
    "Secret": ("/api/v1", "secrets"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Pod": ("/api/v1", "pods"),
}


class NotFound(SwimmyError):
    """The object is not there."""


class AlreadyExists(SpecError):
    """There is an object of that name. ``repeated``: an earlier try of the same request may have made it."""

    repeated = False


class Cluster:
    """A namespace of a cluster, reached as kubectl would reach it.

    ``kubeconfig`` is a path (default: ``$KUBECONFIG``, ``~/.kube/config``, or the Pod's own service account inside a
    cluster), ``context`` and ``namespace`` default to what it says. ``requests`` counts what was sent, by verb and kind.

    A request that the API server does not answer, or answers with "too many requests", is made again for five minutes (ten
    seconds where that server has never answered); then it raises ClusterUnreachable. ``with cluster.patience(...)`` says
    otherwise for the calling thread.
    """

    def __init__(self, kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None) -> None:
        self._configure = functools.partial(self._configuration, kubeconfig, context)
        settings, found, self.inside = self._configure()
        settings.retries = False  # which of them may be repeated, and for how long, is said here
        self.namespace = namespace or found
        self.server = settings.host
        self.requests: Counter[str] = Counter()
        self._met = False
        self._mine = threading.local()
        self._settings = settings
        new_client: Any = client.ApiClient
        self._client = new_client(settings)

    def _configuration(self, kubeconfig: str | None, context: str | None) -> tuple[Any, str, bool]:
        """The client's settings, the namespace that they name, and whether this is a Pod of the cluster."""
        config: Any = kube_config  # it ships no types, and its generated classes are not all typed
        new_settings: Any = client.Configuration
        settings = new_settings()
        inside = False
        try:
            if kubeconfig is None and context is None and not os.environ.get("KUBECONFIG") and _in_cluster():
                config.load_incluster_config(client_configuration=settings)
                inside = True
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
                f"{where} is no kubeconfig ({shortly(error)}); `kubectl config view` says what it holds"
            ) from None
        return settings, found, inside

    def _renew_token(self) -> bool:
        """Whether the kubeconfig holds another token by now: a token file is renewed on disk."""
        try:
            settings, _, _ = self._configure()
        except SwimmyError:
            return False
        # The client's own hook would put back the token that it was made with.
        self._settings.refresh_api_key_hook = settings.refresh_api_key_hook
        renewed = settings.api_key != self._settings.api_key
        self._settings.api_key = settings.api_key
        return bool(renewed)

    @contextlib.contextmanager
    def patience(self, seconds: float | None, is_over: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """In this thread a request is made again for so long (0: once; None: as ever), and only until ``is_over()``."""
        before = getattr(self._mine, "patience", (None, lambda: False))
        self._mine.patience = seconds, is_over
        try:
            yield
        finally:
            self._mine.patience = before

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
        """The raw response; raises SwimmyError's children, in words, for everything that is not a success.

        Asks again while the server is away or busy. AlreadyExists after such a failure may be this request's own work.
        """
        seconds, is_over = getattr(self._mine, "patience", (None, lambda: False))
        failures, since, renewed = 0, 0.0, False
        while True:
            response = None
            self.requests[what] += 1
            try:
                response = self._client.call_api(
                    *self._serialized(method, path, query, body, kind), _request_timeout=timeout
                )
            except (urllib3.exceptions.HTTPError, OSError) as error:
                refusal: SwimmyError = ClusterUnreachable(
                    f"the API server {self.server} does not answer ({shortly(error)}); is the cluster up, and the "
                    "context the right one?"
                )
            else:
                self._met = True
                if response.status < 400:
                    return response
                refusal = self._refusal(what, response)
                if response.status == 401 and not renewed and self._renew_token():
                    renewed = True
                    continue
                if response.status not in BUSY:
                    if isinstance(refusal, AlreadyExists):
                        refusal.repeated = failures > 0
                    raise refusal
            now = time.monotonic()
            since = since if failures else now
            failures += 1
            patience = Patience(seconds if seconds is not None else AWAY if self._met else UNMET, is_over)
            wait = patience.next_pause(now - since, failures, _retry_after(response))
            if wait is None or not _waited(wait, is_over):
                raise refusal

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
        if response.status == 409 and "already exists" in message:
            return AlreadyExists(f"{what} {where}: {message}", reason="409")
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
        if response.status in BUSY:
            busy = ClusterUnreachable(
                f"{what}: the API server answers {response.status}: {message}", reason=str(response.status)
            )
            busy.retry_after = _retry_after(response)
            return busy
        return SpecError(f"{what} {where}: the API server refuses it: {message}", reason=str(response.status))

    def _json(self, *arguments: Any, **named: Any) -> Any:
        return json.loads(self._send(*arguments, **named).read())

    def _path(self, kind: str, name: str = "") -> str:
        prefix, plural = _PLURAL[kind]
        return f"{prefix}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    # -- objects --------------------------------------------------------------------------------------------------

    def create(self, manifest: Manifest) -> Manifest:
        """The object as it was created, exactly once: also where the answer to the first try is lost."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        own = uuid.uuid4().hex
        body = {**manifest, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), _CREATION: own}}}
        try:
            answer: Manifest = self._json(f"create {kind}", "POST", self._path(kind), body=body)
        except AlreadyExists as error:
            if not error.repeated:
                raise
            if kind != "Job":  # a client may not read Secrets; they are named by their Job, which there is one of
                return body
            answer = self.get_job(metadata["name"])
            if answer["metadata"].get("annotations", {}).get(_CREATION) != own:
                raise
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
        """The last lines of a container that was there; empty where nobody gives them (any more)."""
        try:
            with self.patience(0):
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

    def is_reachable(self) -> bool:
        """Whether the API server answers at this moment."""
        try:
            with self.patience(0):
                self.version()
        except SwimmyError:
            return False
        return True

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
        with _as_unavailable(), self._cluster.patience(0):  # who watches has pauses of its own
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
            with self._cluster.patience(0):
                path = self._cluster._path("Pod")
                response = self._cluster._send("watch Pods", "GET", path, query, timeout=(5, _SILENT)).response
            self._response = response
            if self._stopped.is_set():
                response.close()
                raise Unavailable("it was stopped")
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
        raise Unavailable(error.message, error.retry_after) from None
    except SwimmyError as error:
        if error.reason == "Gone":
            raise Gone from None
        raise
    except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
        # The last two are what urllib3 and ssl raise for a stream that another thread has shut.
        raise Unavailable(f"the watch broke ({shortly(error)})") from None


def _retry_after(response: Any) -> float | None:
    """Seconds that the server asks to wait, where it does."""
    asked = None if response is None else response.headers.get("Retry-After")
    return float(asked) if asked is not None and asked.isdecimal() else None


def _waited(seconds: float, is_over: Callable[[], bool]) -> bool:
    """Whether the time has passed before it was over."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if is_over():
            return False
        time.sleep(min(_SLICE, left))  # `is_over` has nobody who would wake us
    return not is_over()


def _in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token")


def _service_account_namespace() -> str:
    with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
        return file.read().strip()
