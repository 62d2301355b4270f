"""Leases and journals, with a clock that the test owns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swimmy.agent.journal import Journal
from swimmy.lease import Lease


def test_a_lease_is_lost_when_nobody_renews_it() -> None:
    lease = Lease(10, now=100)
    assert not lease.lost(109.9)
    lease.renew(109.9)
    assert not lease.lost(119.8)
    assert lease.lost(119.9)


def test_a_clock_that_jumps_back_shortens_no_lease() -> None:
    lease = Lease(10, now=100)
    lease.renew(105)
    lease.renew(90)
    assert not lease.lost(114)


def test_a_detached_run_has_no_lease() -> None:
    assert not Lease(None, now=0).lost(1e9)


@given(st.lists(st.integers(1, 5)), st.integers(1, 400))
def test_a_reader_that_is_cut_off_anywhere_misses_nothing(steps: list[int], limit: int) -> None:
    journal = Journal()
    for number in range(50):
        journal.append({"kind": "log", "text": str(number)})
    seen: list[str] = []
    after = 0
    for step in [*steps, *[50] * 50]:
        entries = journal.read(after, limit)[:step]  # the rest of the answer is lost on the way
        seen += [entry["text"] for entry in entries]
        after = entries[-1]["seq"] if entries else after
    assert seen == [str(number) for number in range(50)]


def test_old_log_lines_make_room_and_other_entries_stay() -> None:
    journal = Journal(log_bytes=10_000)
    journal.append({"kind": "join", "rank": 0})
    for number in range(1_000):
        journal.append({"kind": "log", "text": f"{number:0100}"})
    entries = journal.read(0, limit=10**9)
    assert entries[0] == {"kind": "join", "rank": 0, "seq": 1}
    texts = [int(entry["text"]) for entry in entries[1:]]
    assert texts == list(range(texts[0], 1_000))  # a gap at the front only
    assert sum(len(str(entry)) for entry in entries) < 15_000
    assert entries[1]["seq"] == texts[0] + 2  # the numbers tell how many lines are gone
