"""Tokens and the canonical form of a query: formatting does not count, everything else does."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cumin.encoding import digest
from cumin.errors import QueryError
from cumin.lexer import canonical, tokens, without_end

SAME = [
    ("SELECT a FROM t", "SELECT\n  a -- the a\nFROM t /* table */ ;"),
    ("SELECT a FROM t", "SELECT a/* /* nested */ */FROM t"),
    ("SELECT a<>1 FROM t", "SELECT a <> 1 FROM t"),
    ("SELECT x::int FROM t", "SELECT x :: int FROM t"),
    ("SELECT a FROM t", "SELECT a -- the a\rFROM t"),
    ("SELECT a FROM t", "SELECT a -- the a\r\nFROM t; -- the end"),
]
DIFFERENT = [
    ("SELECT a FROM t", "SELECT A FROM t"),
    ("SELECT a AS Foo FROM t", "SELECT a AS foo FROM t"),
    ("SELECT a AS Select FROM t", "SELECT a AS select FROM t"),
    ("SELECT struct_pack(left := a) FROM t", "SELECT struct_pack(LEFT := a) FROM t"),
    ("SELECT {is: a} FROM t", "SELECT {IS: a} FROM t"),
    ("SELECT a, -- twice\r 2 * b FROM t", "SELECT a, -- twice\r 3 * b FROM t"),
    ("SELECT 'a' FROM t", "SELECT 'A' FROM t"),
    ("SELECT 'a  b' FROM t", "SELECT 'a b' FROM t"),
    ('SELECT "a" FROM t', "SELECT a FROM t"),
    ("SELECT a FROM t", "SELECT a FROM u"),
    ("SELECT 1 FROM t", "SELECT 1.0 FROM t"),
    ("SELECT a b FROM t", "SELECT ab FROM t"),
    ("SELECT '--' FROM t", "SELECT '' FROM t"),
    ("SELECT $$a$$ FROM t", "SELECT $$b$$ FROM t"),
    ("SELECT e'a\\'b' FROM t", "SELECT e'a' FROM t"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_formatting_does_not_count(one: str, other: str) -> None:
    assert canonical(one, "duckdb") == canonical(other, "duckdb")


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_may_mean_something_else_counts(one: str, other: str) -> None:
    assert canonical(one, "duckdb") != canonical(other, "duckdb")


def test_the_form_is_pinned() -> None:
    text = """WITH c AS (SELECT user_id, sum(x::decimal(18,2)) FILTER (WHERE y <> 'it''s') AS "Sum X", :p, .5e-3, 0x1F
              FROM lake.events e WHERE dt BETWEEN DATE '2026-01-01' AND $1 -- end
              ) SELECT * FROM c ORDER BY 1 LIMIT 10"""
    assert digest("test", canonical(text, "duckdb")) == "d5cc5d583168dcb8b5ad1a3f8b559820453d2671099b24da1f9a92e035071386"


def test_dialects_read_quotes_their_own_way() -> None:
    assert [t.kind for t in tokens('SELECT "a"', "duckdb")] == ["word", "ident"]
    assert [t.kind for t in tokens('SELECT "a\\"b"', "spark")] == ["word", "string"]
    assert [t.text for t in tokens("SELECT /*+ BROADCAST(t) */ a", "spark")][1] == "/*+ BROADCAST(t) */"
    assert [t.text for t in tokens("SELECT /*+ hint */ a", "duckdb")] == ["SELECT", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT 'abc", r"The quote ' at line 1, column 8 does not end"),
        ("SELECT\n /* x", r"The comment that starts at line 2, column 2 does not end"),
        ("SELECT \x01", "starts no SQL token"),
        ("SELECT $a$ b", "does not end"),
    ],
)
def test_what_does_not_end_is_an_error_with_its_place(text: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        tokens(text, "duckdb")


pieces = st.sampled_from(
    ["a", "B", "select", "1", "2.5", "'x y'", '"Q"', "(", ")", ",", ".", "=", "<=", "::", "||", "-", "x1"]
)
gaps = st.sampled_from([" ", "\n", "\t ", " /* c */ ", " -- c\n"])


@given(st.lists(st.tuples(pieces, gaps, gaps), min_size=1))
def test_any_white_space_and_comments_give_one_form(items: list[tuple[str, str, str]]) -> None:
    one = "".join(piece + gap for piece, gap, _ in items)
    other = "".join(piece + gap for piece, _, gap in items)
    assert canonical(one, "duckdb") == canonical(other, "duckdb")


@given(st.text(max_size=60))
def test_any_text_is_tokens_that_cover_it_or_an_error(text: str) -> None:
    try:
        found = tokens(text, "duckdb")
    except QueryError:
        return
    for token in found:
        assert text[token.start : token.end] == token.text
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))


@pytest.mark.parametrize("tail", [";", ";\n", " ; ;", "; -- the end", " -- the end", " -- the end\r", "\n/* the end */;"])
def test_what_closes_a_query_is_cut_off(tail: str) -> None:
    assert without_end("SELECT 1 AS a" + tail, "duckdb") == "SELECT 1 AS a"


def test_a_comment_that_spark_continues_on_the_next_line_is_refused() -> None:
    text = "SELECT a FROM t -- all \\\nWHERE b = 1"
    assert tokens(text, "duckdb")[-1].text == "1"
    with pytest.raises(QueryError, match="line 1, column 17 ends with a backslash"):
        tokens(text, "spark")
