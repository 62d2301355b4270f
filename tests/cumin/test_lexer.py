"""Tokens and the canonical form of a query: formatting does not count, everything else does."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cumin.encoding import digest
from cumin.errors import QueryError
from cumin.lexer import RESERVED, canonical, tokens

SAME = [
    ("SELECT a FROM t", "select\n  a -- the a\nfrom t /* table */ ;"),
    ("SELECT a FROM t", "SELECT a/* /* nested */ */FROM t"),
    ("SELECT a<>1 FROM t", "SELECT a <> 1 FROM t"),
    ("SELECT x::int FROM t", "select x :: int from t"),
]
DIFFERENT = [
    ("SELECT a FROM t", "SELECT A FROM t"),
    ("SELECT a AS Foo FROM t", "SELECT a AS foo FROM t"),
    ("SELECT a AS Select FROM t", "SELECT a AS select FROM t"),
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


def test_reserved_words_are_no_column_names_of_duckdb() -> None:
    import duckdb

    connection = duckdb.connect()
    try:
        free = connection.execute(
            "SELECT upper(keyword_name) FROM duckdb_keywords() WHERE keyword_category IN ('unreserved', 'column_name')"
        ).fetchall()
    finally:
        connection.close()
    assert not RESERVED & {name for (name,) in free}
