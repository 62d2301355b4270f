"""Requests to an API server that is away, busy, or answers into the void: made again, for so long, and once in effect."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import swimmy
from swimmy import kubernetes
from swimmy.errors import ClusterUnreachable, PermissionMissing, SpecError
from swimmy.lease import Lease
from swimmy.patience import LONGEST, Patience, pause
from swimmy.watch import Gone, ListWatch

_spec = importlib.util.spec_from_file_location("fake_api", Path(__file__).with_name("fake_api.py"))
assert _spec is not None
assert _spec.loader is not None
fake_api = importlib.util.module_from_spec(_spec)
sys.modules["fake_api"] = fake_api
_spec.loader.exec_module(fake_api)
FakeApi, Request, pods = fake_api.FakeApi, fake_api.Request, fake_api.pods

JOB = {"kind": "Job", "metadata": {"name": "run-1", "uid": "u1"}}


@given(st.integers(1, 10_000), st.none() | st.floats(0, 1e6))
def test_a_pause_is_short_at_first_and_never_long_by_itself(failures: int, asked: float | None) -> None:
    found = pause(failures, asked)
    assert 0.05 <= found <= max(LONGEST, 60.0)
    if asked is None:
        assert found <= LONGEST
    else:
        assert found >= min(asked, 60.0)


@given(st.floats(0, 400))
def test_nobody_is_asked_after_the_time_is_over(seconds: float) -> None:
    patience, passed, tries = Patience(seconds), 0.0, 0
    while (wait := patience.next_pause(passed, tries + 1)) is not None:
        passed += wait
        tries += 1
        assert passed <= seconds
    assert tries <= 10 + seconds / (LONGEST / 2)  # few requests, however long it is away
    assert Patience(seconds, lambda: True).next_pause(0, 1) is None


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is made."""
    made: list[float] = []

    def wait(seconds: float, is_over: Callable[[], bool]) -> bool:
        made.append(seconds)
        return not is_over()

    monkeypatch.setattr(kubernetes, "_waited", wait)
    return made


FAULTS: dict[str, Callable[[Any], None]] = {
    "cut": lambda request: request.cut(),
    "429": lambda request: request.reply(429, {"message": "Too many requests"}, Retry_After="3"),
    "500": lambda request: request.reply(500, {"message": "etcdserver: leader changed"}),
    "503": lambda request: request.reply(503, {"message": "starting"}),
}


class Server:
    """Answers each request by the next fault, then as an API server does that keeps what it has created."""

    def __init__(self, *faults: Callable[[Any], None], lost: int = 0) -> None:
        """``lost``: of so many creations the answer is lost, and not the object."""
        self.faults, self.lost = list(faults), lost
        self.objects: dict[str, Any] = {}
        self.seen: list[str] = []

    def __call__(self, request: Any) -> None:
        self.seen.append(f"{request.command} {request.path.rpartition('/')[2]}")
        if self.faults:
            self.faults.pop(0)(request)
        elif request.command == "POST":
            self._create(request)
        elif request.command == "GET":
            request.reply(200, self.objects[request.path.rpartition("/")[2]])
        else:
            request.reply(200, {})

    def _create(self, request: Any) -> None:
        item = json.loads(request.body)
        name = item["metadata"]["name"]
        if name in self.objects:
            request.reply(409, {"message": f'jobs.batch "{name}" already exists'})
            return
        self.objects[name] = item
        if self.lost:
            self.lost -= 1
            request.cut()
        else:
            request.reply(201, item)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_is_made_again_until_it_is_answered(tmp_path: Path, no_pauses: list[float], fault: str) -> None:
    with FakeApi(Server(*[FAULTS[fault]] * 4), tmp_path) as server:
        cluster = swimmy.Cluster(str(server.kubeconfig))
        cluster.set_deadline("run-1", None)
        cluster.close()
    assert cluster.requests["patch Job"] == 5
    assert len(no_pauses) == 4
    assert all(each >= 3 for each in no_pauses) == (fault == "429")


@pytest.mark.parametrize("kind", ["Job", "Secret"])
@pytest.mark.parametrize("lost", [1, 2])
def test_what_was_created_though_the_answer_was_lost_is_there_once(
    tmp_path: Path, no_pauses: list[float], kind: str, lost: int
) -> None:
    script = Server(FAULTS["503"], lost=lost)
    with FakeApi(script, tmp_path) as server:
        cluster = swimmy.Cluster(str(server.kubeconfig))
        made = cluster.create({**JOB, "kind": kind})
        cluster.close()
    assert made["metadata"]["uid"] == "u1"
    assert list(script.objects) == ["run-1"]


def test_an_object_of_somebody_else_is_not_taken_for_ones_own(tmp_path: Path, no_pauses: list[float]) -> None:
    script = Server(FAULTS["503"])
    script.objects["run-1"] = {**JOB, "metadata": {"name": "run-1", "uid": "another"}}
    with FakeApi(script, tmp_path) as server:
        cluster = swimmy.Cluster(str(server.kubeconfig))
        with pytest.raises(SpecError, match="already exists"):
            cluster.create(JOB)
        with pytest.raises(SpecError, match="already exists"):  # and at the first try
            cluster.create(JOB)
        cluster.close()
    assert script.objects["run-1"]["metadata"]["uid"] == "another"


def test_a_server_that_stays_away_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=4.0)  # each look at the clock is four seconds later
    monkeypatch.setattr(kubernetes, "_waited", lambda seconds, is_over: True)
    monkeypatch.setattr(kubernetes, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    with FakeApi(lambda request: request.cut(), tmp_path) as server:
        cluster = swimmy.Cluster(str(server.kubeconfig))
        with pytest.raises(ClusterUnreachable, match="does not answer"):
            cluster.get_job("run-1")
        never_met = cluster.requests["get Job"]
        server.script = FAULTS["503"]
        with pytest.raises(ClusterUnreachable, match="503: starting"):
            cluster.get_job("run-1")
        cluster.close()
    assert 2 <= never_met <= 4  # ten seconds
    assert cluster.requests["get Job"] - never_met > 60  # five minutes


def test_a_thread_that_is_no_longer_wanted_gives_up_at_once(tmp_path: Path) -> None:
    over = threading.Event()

    def refuse(request: Any) -> None:
        over.set()
        request.reply(503, {"message": "starting"}, Retry_After="50")

    with FakeApi(refuse, tmp_path) as server:
        cluster = swimmy.Cluster(str(server.kubeconfig))
        with cluster.patience(None, over.is_set), pytest.raises(ClusterUnreachable):
            cluster.get_job("run-1")
        with cluster.patience(0), pytest.raises(ClusterUnreachable):
            cluster.get_job("run-1")
        cluster.close()
    assert cluster.requests["get Job"] == 2


def test_a_token_that_was_renewed_on_disk_is_read_again(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")

    def check(request: Any) -> None:
        known = request.headers["Authorization"] == "Bearer new"
        request.reply(*((200, JOB) if known else (401, {"message": "Unauthorized"})))

    with FakeApi(check, tmp_path) as server:
        config = json.loads(server.kubeconfig.read_text())
        config["users"][0]["user"] = {"tokenFile": str(token)}
        server.kubeconfig.write_text(json.dumps(config))
        cluster = swimmy.Cluster(str(server.kubeconfig))
        with pytest.raises(PermissionMissing, match="renew the token"):
            cluster.get_job("run-1")
        token.write_text("new")
        assert cluster.get_job("run-1") == JOB
        cluster.close()
    assert cluster.requests["get Job"] == 3


class Nothing:
    """A source whose watches end at once, or whose place is always gone."""

    def __init__(self, gone: bool) -> None:
        self.gone, self.asked = gone, 0

    def list(self) -> tuple[list[Any], str]:
        self.asked += 1
        return [], "5"

    def watch(self, version: str) -> Any:
        self.asked += 1
        if self.gone:
            raise Gone
        return memoryview(b"")


@pytest.mark.parametrize("gone", [False, True])
def test_a_watch_that_ends_at_once_again_and_again_is_not_a_storm_of_requests(gone: bool) -> None:
    import contextlib

    source = Nothing(gone)
    if not gone:
        source.watch = lambda version: contextlib.nullcontext([])  # type: ignore[method-assign]
    now = 0.0

    def wait(seconds: float) -> bool:
        nonlocal now
        now += seconds or 0.001
        return now > 60

    ListWatch(source, lambda *_: None, lambda _: None, wait).run()
    assert source.asked < 2 * 40  # of a minute; a server that answers in a millisecond got 60,000


def test_a_lease_is_extended_to_a_time_and_never_shortened() -> None:
    lease = Lease(60, now=0)
    lease.extend(5, now=60)
    assert lease.left(60) == 5
    lease.renew(62)
    lease.extend(5, now=62)
    assert lease.left(62) == 60
    Lease(None, now=0).extend(5, now=0)
