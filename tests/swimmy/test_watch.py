"""The list-watch against a server that hangs, says 410, cuts lines, repeats, refuses and comes back."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import swimmy
import swimmy.kubernetes
from swimmy.watch import ListWatch

_spec = importlib.util.spec_from_file_location("fake_api", Path(__file__).with_name("fake_api.py"))
assert _spec is not None
assert _spec.loader is not None
fake_api = importlib.util.module_from_spec(_spec)
sys.modules["fake_api"] = fake_api
_spec.loader.exec_module(fake_api)
FakeApi, Request, line, pod, pods = fake_api.FakeApi, fake_api.Request, fake_api.line, fake_api.pod, fake_api.pods


class Script:
    """Answers lists from ``lists`` and watches from ``watches``, one after the other; the last watch hangs."""

    def __init__(self, lists: list[Any], watches: list[Callable[[Any], None]]) -> None:
        self.lists, self.watches = list(lists), list(watches)

    def __call__(self, request: Any) -> None:
        if request.query.get("watch"):
            (self.watches.pop(0) if self.watches else Request.hang)(request)
            return
        answer = self.lists.pop(0)
        answer(request) if callable(answer) else request.reply(200, answer)


def followed(
    script: Script, folder: Path, until: Callable[[list[tuple[str, str, str]]], bool]
) -> tuple[list[Any], list[Any], list[Any]]:
    """What the list-watch told until that was enough: changes, troubles, and the queries it sent."""
    changes: list[tuple[str, str, str]] = []
    troubles: list[str | None] = []
    enough = threading.Event()
    with FakeApi(script, folder) as server:
        cluster = swimmy.Cluster(str(server.kubeconfig))
        source = cluster.pods_of("run-1")

        def change(kind: str, item: Any) -> None:
            changes.append((kind, item["metadata"]["name"], item["metadata"]["resourceVersion"]))
            if until(changes):
                enough.set()

        watch = ListWatch(source, change, troubles.append, lambda seconds: enough.wait(min(seconds, 0.01)))
        thread = threading.Thread(target=watch.run)
        thread.start()
        arrived = enough.wait(20)
        enough.set()
        source.stop()
        server.released.set()
        thread.join(20)
        assert not thread.is_alive()
        cluster.close()
        assert arrived, changes
    return changes, troubles, server.asked


def test_changes_arrive_and_the_watch_goes_on_where_the_list_ended(tmp_path: Path) -> None:
    script = Script(
        [pods(5, pod("a", 3))],
        [lambda request: request.stream(line("ADDED", pod("b", 6)), line("DELETED", pod("a", 7)))],
    )
    changes, _, asked = followed(script, tmp_path, lambda found: len(found) == 3)
    assert changes == [("set", "a", "3"), ("set", "b", "6"), ("deleted", "a", "7")]
    assert asked[1]["resourceVersion"] == "5"
    assert all(query["labelSelector"] == "swimmy.dev/run=run-1" for query in asked)


def test_a_watch_that_ends_goes_on_after_the_last_event_or_bookmark(tmp_path: Path) -> None:
    script = Script(
        [pods(5)],
        [
            lambda request: request.stream(line("ADDED", pod("a", 6)), line("BOOKMARK", pod("", 9))),
            lambda request: request.stream(line("MODIFIED", pod("a", 10))),
        ],
    )
    _, _, asked = followed(script, tmp_path, lambda found: len(found) == 2)
    assert [query.get("resourceVersion") for query in asked[:3]] == [None, "5", "9"]


def test_a_line_that_is_cut_off_is_told_again(tmp_path: Path) -> None:
    whole = line("MODIFIED", pod("a", 7))
    script = Script(
        [pods(5)],
        [
            lambda request: request.stream(line("ADDED", pod("a", 6)), whole[:20], whole=False),
            lambda request: request.stream(whole[:11], whole[11:]),
        ],
    )
    changes, _, asked = followed(script, tmp_path, lambda found: len(found) == 2)
    assert changes == [("set", "a", "6"), ("set", "a", "7")]
    assert asked[2]["resourceVersion"] == "6"


@pytest.mark.parametrize("how", ["event", "status"])
def test_after_410_it_lists_again_and_tells_the_difference(tmp_path: Path, how: str) -> None:
    gone = {"kind": "Status", "code": 410, "message": "too old resource version"}

    def expire(request: Any) -> None:
        if how == "event":
            request.stream(line("ERROR", gone))
        else:
            request.reply(410, gone)

    script = Script([pods(5, pod("a", 3), pod("b", 4)), pods(90, pod("b", 4), pod("c", 80))], [expire])
    changes, _, asked = followed(script, tmp_path, lambda found: len(found) == 4)
    assert changes == [("set", "a", "3"), ("set", "b", "4"), ("deleted", "a", "3"), ("set", "c", "80")]
    assert asked[1]["resourceVersion"] == "5"
    assert "watch" not in asked[2]


def test_what_is_repeated_is_told_once(tmp_path: Path) -> None:
    event = line("MODIFIED", pod("a", 6))
    events = [event, event, line("DELETED", pod("a", 7)), line("DELETED", pod("a", 7)), line("ADDED", pod("z", 8))]
    script = Script([pods(5, pod("a", 5))], [lambda request: request.stream(*events)])
    changes, _, _ = followed(script, tmp_path, lambda found: found[-1][1] == "z")
    assert changes == [("set", "a", "5"), ("set", "a", "6"), ("deleted", "a", "7"), ("set", "z", "8")]


def test_a_frozen_watch_is_given_up_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swimmy.kubernetes, "_SILENT", 0.3)
    script = Script([pods(5)], [Request.hang, lambda request: request.stream(line("ADDED", pod("a", 6)))])
    changes, troubles, asked = followed(script, tmp_path, lambda found: len(found) == 1)
    assert changes == [("set", "a", "6")]
    assert any("timed out" in str(each).lower() for each in troubles)
    assert [query.get("resourceVersion") for query in asked[1:3]] == ["5", "5"]


def test_a_server_that_is_busy_or_away_is_asked_again(tmp_path: Path) -> None:
    def busy(request: Any) -> None:
        request.reply(503, {"message": "starting"})

    def cut(request: Any) -> None:
        request.close_connection = True
        request.connection.close()

    script = Script([busy, cut, pods(5, pod("a", 3))], [])
    changes, troubles, _ = followed(script, tmp_path, lambda found: len(found) == 1)
    assert changes == [("set", "a", "3")]
    assert None in troubles  # it said that the trouble was over
    assert "503" in str(troubles[0])
    assert "does not answer" in str(troubles[1])


class Scripted:
    """A source in memory that gives the history in pieces, repeats some of it and forgets now and then."""

    def __init__(self, history: list[tuple[str, str]], cuts: list[int]) -> None:
        self.history, self.cuts = history, cuts

    def list(self) -> tuple[list[Any], str]:
        present: dict[str, Any] = {}
        for version, (kind, name) in enumerate(self.history[: self.now], 1):
            if kind == "DELETED":
                present.pop(name, None)
            else:
                present[name] = pod(name, version)
        return list(present.values()), str(self.now)

    now = 0


@given(
    st.lists(st.tuples(st.sampled_from(["ADDED", "MODIFIED", "DELETED"]), st.sampled_from("abc")), max_size=30),
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), max_size=20),
)
def test_whatever_is_cut_repeated_or_forgotten_the_end_is_what_is_there(
    history: list[tuple[str, str]], faults: list[tuple[int, bool, int]]
) -> None:
    import contextlib
    from collections.abc import Iterator

    from swimmy.watch import Gone, Unavailable

    source = Scripted(history, [])
    turns = iter(faults)

    class Faulty:
        def list(self) -> Any:
            return source.list()

        @contextlib.contextmanager
        def watch(self, version: str) -> Iterator[Any]:
            count, forgotten, repeated = next(turns, (len(history), False, 0))
            if forgotten and int(version) < source.now:
                raise Gone
            source.now = min(len(history), source.now + count)
            first = max(0, int(version) - repeated)
            events = (
                [line(kind, pod(name, at + 1)) for at, (kind, name) in enumerate(history[first : source.now], first)]
                if repeated == 0
                else [
                    line(kind, pod(name, at + 1))
                    for at, (kind, name) in enumerate(history[int(version) : source.now], int(version))
                    for _ in range(repeated)
                ]
            )
            yield events
            if count == 0:
                raise Unavailable("cut")

    known: dict[str, str] = {}

    def change(kind: str, item: Any) -> None:
        name = item["metadata"]["name"]
        if kind == "deleted":
            known.pop(name, None)
        else:
            known[name] = item["metadata"]["resourceVersion"]

    rounds = iter(range(len(faults) + 40))
    ListWatch(Faulty(), change, lambda _: None, lambda seconds: next(rounds, None) is None).run()
    if source.now == len(history):
        assert known == {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in source.list()[0]}
