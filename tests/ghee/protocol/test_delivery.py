"""The receiving end: what arrives in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ghee.protocol.delivery import Deliver, Delivery, End, StreamEnded


@given(ordered=st.booleans(), first=st.integers(0, 3), data=st.data())
def test_what_arrives_in_any_order_is_delivered_as_the_settings_say(ordered: bool, first: int, data: st.DataObject) -> None:
    delivery: Delivery[tuple[int, int]] = Delivery(False, ordered, first)
    epochs = range(first, first + 2)
    arrivals = data.draw(st.permutations([(epoch, place) for epoch in epochs for place in range(8)]))
    for epoch, place in arrivals:
        assert delivery.arrived(epoch, place, (epoch, place))
        assert not delivery.arrived(epoch, place, (epoch, place)), "the same batch a second time"
    for epoch in epochs:
        delivery.ended(epoch, 8, 8)
    delivery.stream_ended(first + 2)
    seen = []
    while not isinstance(step := delivery.next(), StreamEnded):
        assert step is not None
        if isinstance(step, Deliver):
            seen.append(step.item)
        else:
            assert isinstance(step, End)
            assert step.left == []
    assert sorted(seen) == sorted(arrivals)
    if ordered:
        assert seen == sorted(arrivals)
    else:
        assert seen == sorted(arrivals, key=lambda arrival: arrival[0]), "in the order of their arrival"


def test_an_ordered_delivery_waits_for_the_one_that_is_missing() -> None:
    delivery: Delivery[str] = Delivery(False, True)
    delivery.arrived(0, 1, "second")
    assert delivery.next() is None
    delivery.arrived(0, 0, "first")
    assert delivery.next() == Deliver("first")
    assert delivery.next() == Deliver("second")
    assert delivery.next() is None


def test_what_is_left_is_handed_over_at_the_end() -> None:
    delivery: Delivery[str] = Delivery(True, True)
    for place in (2, 0, 1):
        delivery.arrived(0, place, f"batch {place}")
    delivery.ended(0, 2, 3, "committed")
    assert [delivery.next(), delivery.next()] == [Deliver("batch 0"), Deliver("batch 1")]
    assert delivery.next() == End(0, ["batch 2"], "committed")
