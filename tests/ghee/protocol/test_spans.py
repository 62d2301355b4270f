"""Numbers kept as spans: the same as a set of them, whatever the order in which they come."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ghee.protocol.spans import Spans

rows_of = st.dictionaries(st.integers(0, 40), st.integers(0, 9))


@given(rows_of.flatmap(lambda rows: st.permutations(list(rows.items()))))
def test_spans_are_the_set_of_their_numbers(items: list[tuple[int, int]]) -> None:
    spans = Spans()
    for number, rows in items:
        spans.add(number, rows)
        spans.add(number, rows + 1)  # changes nothing
    rows = dict(items)
    assert spans == set(rows)
    assert len(spans) == len(rows)
    assert list(spans) == sorted(rows)
    assert all((number in spans) == (number in rows) for number in range(-1, 42))
    assert spans.rows == sum(rows.values())
    assert spans.spans == sorted(spans.spans)
    ends = [(first, last) for first, last, _ in spans.spans]
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(ends)), "neighbours are one span"
    assert all(of == sum(rows[n] for n in range(first, last + 1)) for first, last, of in spans.spans)
    assert Spans.of(spans.spans) == spans == Spans(rows) == Spans(spans)


@given(rows_of, st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_what_two_have_in_common_is_in_both_with_its_rows(rows: dict[int, int], some: set[int], others: set[int]) -> None:
    one, other = ({number: rows.get(number, 0) for number in numbers} for numbers in (some, others))
    common = Spans(one).common(Spans(other))
    assert common == other_way(one, other)
    assert set(common) <= some & others
    assert common.rows == sum(one[number] for number in common)
    if some <= others:
        assert set(common) == some


def other_way(one: dict[int, int], other: dict[int, int]) -> Spans:
    return Spans(other).common(Spans(one))
