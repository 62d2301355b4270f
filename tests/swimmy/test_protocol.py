"""Messages: what is no message is refused, whatever it is."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swimmy.protocol import HEADER_LIMIT, ProtocolError, decode, differences, encode, facts

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=8), values, max_size=4), st.binary(max_size=64))
def test_a_message_comes_back_as_it_was(header: dict[str, object], body: bytes) -> None:
    assert decode(encode(header, body)) == (header, body)


@given(st.lists(st.binary(), max_size=4))
def test_arbitrary_frames_are_decoded_or_refused(frames: list[bytes]) -> None:
    try:
        header, _ = decode(frames)
    except ProtocolError:
        return
    assert isinstance(header, dict)


@pytest.mark.parametrize(
    "header", [b"[1]", b"{", b'"text"', b"\xff", b"[" * 20_000, json.dumps("x" * HEADER_LIMIT).encode()]
)
def test_no_header(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode([header, b""])


def test_versions_that_differ_are_both_named() -> None:
    mine = {"Python": "3.11", "swimmy": "0.1.0", "cloudpickle": "3.1.2", "protocol": "1"}
    assert differences(mine, dict(mine)) == []
    assert differences(mine, {**mine, "cloudpickle": "3.1.9", "swimmy": "0.1.7"}) == []
    assert differences(mine, {**mine, "Python": "3.12"}) == ["Python 3.11 here, 3.12 there"]
    assert differences(mine, {**mine, "cloudpickle": "2.2.1"}) == ["cloudpickle 3.1.2 here, 2.2.1 there"]
    assert differences(mine, {"Python": "3.11"}) == [
        "cloudpickle 3.1.2 here, none there",
        "protocol 1 here, none there",
        "swimmy 0.1.0 here, none there",
    ]
    assert set(facts()) == set(mine)


def test_without_an_installed_swimmy_the_difference_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sources are on the path of the one that asks."""

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    there = facts()
    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert differences(facts(), there) == [f"swimmy of unknown version here, {there['swimmy']} there"]
