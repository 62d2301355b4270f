"""Parameters and templates: typed literals that the engine reads back, and every problem told at once."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cumin.errors import ParameterError, QueryError
from cumin.query import literal, render

# DuckDB reads what we write; NUL cannot stand in SQL.
texts = st.text(alphabet=st.characters(blacklist_characters="\x00", blacklist_categories=("Cs",)))
values = (
    st.integers(-(2**63) + 1, 2**63 - 1) | st.booleans() | texts | st.dates(date(1, 1, 1)) | st.datetimes(datetime(1, 1, 1))
    | st.decimals(-(10**18), 10**18, places=6) | st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip


@given(values)
def test_a_literal_is_read_back_as_the_value(value: Any) -> None:
    with duckdb.connect() as connection:
        assert connection.execute(f"SELECT {literal(value, dialect='duckdb')}").fetchall()[0][0] == value


def test_an_instant_is_written_in_utc() -> None:
    moment = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert literal(moment, dialect="duckdb") == "TIMESTAMPTZ '2026-01-31 12:00:00+00:00'"
    assert literal(moment, dialect="spark") == "TIMESTAMP '2026-01-31 12:00:00+00:00'"
    assert literal("a'b\\c", dialect="spark") == r"'a\'b\\c'"


def test_names_values_and_lists_are_put_in() -> None:
    sql = "SELECT {{ columns }} FROM {{ table }} WHERE a = :a AND b IN :ids AND x::int > 0 AND c = ':a' -- :never"
    params = {"columns": ["a", "b"], "table": "lake.t", "a": Decimal("1.50"), "ids": [1, -2]}
    text = render(sql, params, dialect="duckdb").text
    assert text == (
        "SELECT a, b FROM lake.t WHERE a = CAST('1.50' AS DECIMAL(3, 2)) AND b IN (1, (-2)) AND x::int > 0 AND c = ':a' "
        "-- :never"
    )


def test_all_parameter_problems_are_told_at_once() -> None:
    with pytest.raises(ParameterError) as caught:
        render("SELECT :a, :b, :c", {"a": {1}, "unused": 1}, dialect="duckdb")
    assert len(caught.value.problems) == 4
    message = str(caught.value)
    assert "'unused' is declared and not used" in message
    assert ":b at line 1, column 12 is not a parameter. Declared: a, unused" in message
    assert "got a set, which has no literal. Allowed: bool, int" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Decimal("NaN"), [], "a\x00b", None, b"x", Decimal("1e40")])
def test_what_has_no_literal_is_refused(value: Any) -> None:
    with pytest.raises(ParameterError):
        render("SELECT :a", {"a": value}, dialect="duckdb")


@pytest.mark.parametrize(
    ("template", "params", "message"),
    [
        ("SELECT {{ a }}", {"a": "x; DROP TABLE t"}, "identifiers and whole numbers only"),
        ("SELECT {{ a }}", {"a": "1 OR 1=1"}, "identifiers and whole numbers only"),
        ("SELECT {{ a }}", {}, "'a', which is not a parameter"),
        ("SELECT {{ a.__class__.__mro__ }}", {"a": "x"}, "cannot be expanded"),
        ("SELECT {{ range(3) }}", {}, "'range', which is not a parameter"),
        ("SELECT {% for x in y %}", {"y": [1]}, "malformed"),
        ("SELECT {{ a | random }}", {"a": ["x"]}, "malformed|cannot be expanded"),
    ],
)
def test_templates_are_kept_in_their_sandbox(template: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises((ParameterError, QueryError), match=message):
        render(template, params, dialect="duckdb")


def test_loops_over_declared_lists_are_expanded() -> None:
    sql = "SELECT {% for c in columns %}sum({{ c }}) AS s_{{ c }}{{ '' if loop.last else 'x' }}{% endfor %} FROM t"
    with pytest.raises(ParameterError):  # '' is no identifier: separators stand in the template itself
        render(sql, {"columns": ["a"]}, dialect="duckdb")
    sql = "SELECT {% for c in columns %}sum({{ c }}) AS s_{{ c }}{% if not loop.last %}, {% endif %}{% endfor %} FROM t"
    assert render(sql, {"columns": ["a", "b"]}, dialect="duckdb").text == "SELECT sum(a) AS s_a, sum(b) AS s_b FROM t"
