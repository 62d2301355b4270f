"""The leader's decisions, in random orders of what happens."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swimmy.agent.world import Asked, Failure, Record, Tell, World, first_cause

FACTS = {"Python": "3.11"}


def world(replicas: int = 3, ranks: int = 2, mpi: str = "mpich", per_pod: bool = False) -> World:
    return World(Asked(replicas, ranks, mpi, per_pod, FACTS), {index: f"10.0.0.{index}" for index in range(replicas)})


def join(rank: int, size: int) -> dict[str, Any]:
    return {"kind": "join", "rank": rank, "size": size, "host": "h", "pid": 1}


def tells(actions: list[Any], operation: str) -> list[int]:
    return [each.index for each in actions if isinstance(each, Tell) and each.message["op"] == operation]


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["none", "mpich"]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_order_of_a_good_run_ends_in_done(
    replicas: int, ranks: int, mpi: str, per_pod: bool, chance: random.Random
) -> None:
    run = world(replicas, ranks, mpi, per_pod)
    actions: list[Any] = []
    for index in chance.sample(range(replicas), replicas):
        actions += run.ready(index, FACTS)
    launched = tells(actions, "launch")
    assert sorted(launched) == (list(range(replicas)) if per_pod or mpi == "none" else [0])
    members = [(index, rank if per_pod else index * ranks + rank) for index in range(replicas) for rank in range(ranks)]
    goes: list[int] = []
    for index, rank in chance.sample(members, len(members)):
        assert per_pod or goes == []  # nobody starts before everybody has joined
        goes += tells(run.entry(index, join(rank, run.asked.size)), "go")
    assert sorted(goes) == list(range(replicas))
    assert run.state == "running"
    done: list[int] = []
    for index, rank in chance.sample(members, len(members)):
        found = run.entry(index, {"kind": "done", "rank": rank, "bytes": 3})
        done += [each.entry["rank"] for each in found if isinstance(each, Record) and each.entry["kind"] == "done"]
        assert run.entry(index, {"kind": "exit", "rank": rank, "code": 0}) == []
    assert sorted(done) == list(range(replicas * ranks))
    assert run.state == "done"


def started(**asked: Any) -> World:
    run = world(**asked)
    for index in range(run.asked.replicas):
        run.ready(index, FACTS)
    return run


def test_a_smaller_world_is_a_failure() -> None:
    [failure] = started().entry(0, join(0, 1))
    assert isinstance(failure, Failure)
    assert failure.cause == "world"
    assert failure.detail["text"] == "rank 0 came up in a world of 1, 6 were asked for"


def test_ranks_on_the_wrong_pods_are_a_failure() -> None:
    run = started()
    actions: list[Any] = []
    for rank in range(6):
        actions += run.entry(0, join(rank, 6))
    assert [each.cause for each in actions] == ["world"]
    assert "6 on Pod 0, 0 on Pod 1, 0 on Pod 2" in actions[0].detail["text"]
    assert tells(actions, "go") == []


def test_exit_code_zero_without_results_is_a_failure() -> None:
    run = started()
    for rank in range(6):
        run.entry(rank // 2, join(rank, 6))
    [failure] = run.entry(0, {"kind": "launcher", "code": 0, "text": ""})
    assert failure.cause == "world"
    assert "0 of 6 ranks finished" in failure.detail["text"]


def test_proxies_go_to_the_hosts_in_the_order_that_mpiexec_prints_them() -> None:
    run = started()
    actions = [action for k in range(3) for action in run.entry(0, {"kind": "proxy", "argv": ["/p", str(k)]})]
    assert [(each.index, each.message["argv"][1]) for each in actions] == [(0, "0"), (1, "1"), (2, "2")]
    [failure] = run.entry(0, {"kind": "proxy", "argv": ["/p", "3"]})
    assert failure.cause == "world"


def test_another_version_is_a_failure_that_names_both() -> None:
    [failure] = world().ready(1, {"Python": "3.13"})
    assert failure.cause == "version"
    assert failure.index == 1
    assert failure.detail["text"] == "Python 3.11 here, 3.13 there"


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        (
            {"kind": "failed", "module": None, "type": "KeyError", "text": "", "traceback": "", "pickled": ""},
            "exception",
        ),
        (
            {"kind": "failed", "module": "pandas", "type": "ImportError", "text": "", "traceback": "", "pickled": ""},
            "import",
        ),
        ({"kind": "exit", "code": -9, "memory": {"peak": 1, "limit": 2}}, "memory"),
        ({"kind": "exit", "code": -9}, "killed"),
        ({"kind": "exit", "code": -11}, "signal"),
        ({"kind": "exit", "code": 3}, "exit"),
    ],
)
def test_how_a_rank_ends(entry: dict[str, Any], cause: str) -> None:
    run = started(per_pod=True)
    [failure] = run.entry(2, {"rank": 1, **entry})
    assert (failure.cause, failure.group, failure.index, failure.rank) == (cause, 2, 2, 5)


@given(st.permutations(["killed", "launch", "exception", "exit", "killed"]))
def test_the_cause_is_found_among_its_consequences(order: list[str]) -> None:
    failures = [Failure(0, 0, None, cause, {}) for cause in order]
    assert first_cause(failures).cause == "exception"


def test_a_replaced_pod_begins_again_and_the_others_go_on() -> None:
    run = started(per_pod=True, ranks=1, mpi="none")
    for index in range(3):
        run.entry(index, join(0, 1))
    run.entry(1, {"kind": "exit", "rank": 0, "code": -9})
    run.entry(0, {"kind": "done", "rank": 0, "bytes": 1})
    run.replace(1, "10.0.0.9")
    assert run.state == "waiting"
    assert tells(run.ready(1, FACTS), "launch") == [1]
    assert tells(run.entry(1, join(0, 1)), "go") == [1]
    run.entry(1, {"kind": "done", "rank": 0, "bytes": 1})
    run.entry(2, {"kind": "done", "rank": 0, "bytes": 1})
    assert run.state == "done"


def test_an_unknown_entry_is_no_silent_success() -> None:
    with pytest.raises(ValueError, match="no entries of kind 'news'"):
        started().entry(0, {"kind": "news"})
