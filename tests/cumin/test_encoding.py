"""The canonical form: golden values, and no two values with one form."""

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cumin.encoding import digest, encode

GOLDEN = [
    (None, b"n0:"),
    (True, b"b1:1"),
    (False, b"b1:0"),
    (0, b"i1:0"),
    (-12, b"i3:-12"),
    (2**70, b"i22:1180591620717411303424"),
    (1.5, b"f8:\x3f\xf8\x00\x00\x00\x00\x00\x00"),
    (Decimal("1.50"), b"d7:0150e-2"),
    (Decimal("-3"), b"d4:13e0"),
    ("", b"s0:"),
    ("é", b"s2:\xc3\xa9"),
    (b"\x00", b"y1:\x00"),
    (date(2026, 1, 31), b"D10:2026-01-31"),
    (datetime(2026, 1, 31, 12), b"T19:2026-01-31T12:00:00"),
    (datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=9))), b"Z19:2026-01-31T03:00:00"),
    ([], b"l0:"),
    ([1, "a"], b"l8:i1:1s1:a"),
    ({"b": 1, "a": None}, b"m15:s1:an0:s1:bi1:1"),
    (["ab", "c"], b"l9:s2:abs1:c"),
    (["a", "bc"], b"l9:s1:as2:bc"),
]


@pytest.mark.parametrize(("value", "form"), GOLDEN, ids=[repr(value) for value, _ in GOLDEN])
def test_the_form_is_the_one_that_ids_were_made_from(value: Any, form: bytes) -> None:
    assert encode(value) == form


def test_the_digest_is_pinned_and_keeps_domains_apart() -> None:
    assert digest("cumin/build", {"a": [1, 2]}) == "4420a851ea70d9e35db5f93d4c1d43ec97573384a7efec21dcf628fc659228ac"
    assert digest("cumin/build", 1) != digest("cumin/partition", 1)


scalars = (
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.dates() | st.floats(allow_nan=False)
    | st.decimals(allow_nan=False, allow_infinity=False) | st.datetimes(timezones=st.just(UTC)) | st.datetimes()
)  # fmt: skip
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


def identity(value: Any) -> Any:
    """A value with its types, so that 1, True and 1.0 are three."""
    if isinstance(value, dict):
        return ("dict", tuple(sorted((key, identity(item)) for key, item in value.items())))
    if isinstance(value, list):
        return ("list", tuple(identity(item) for item in value))
    if isinstance(value, Decimal):
        return ("Decimal", value.as_tuple())
    if isinstance(value, float):
        return ("float", value, math.copysign(1, value))
    return (type(value).__name__, value)


@given(values, values)
def test_two_values_share_a_form_only_if_they_are_equal(one: Any, other: Any) -> None:
    assert (encode(one) == encode(other)) == (repr(identity(one)) == repr(identity(other)))


@given(st.dictionaries(st.text(), st.integers()))
def test_the_order_of_a_dict_does_not_count(mapping: dict[str, int]) -> None:
    assert encode(mapping) == encode(dict(reversed(list(mapping.items()))))


def test_what_has_no_form_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"value\['a'\]\[1\] is a set, which has no canonical form"):
        encode({"a": [1, {2}]})
    with pytest.raises(TypeError, match="str keys only"):
        encode({1: 2})
