"""SQL as tokens of our own making, and the canonical form of a query that enters the build id.

Pure, and independent of any SQL library: a parser that changes its mind in its next release must not move an id.
The form errs to one side only: two texts that mean different things never share it; two texts that mean the same
may differ (that costs a rebuild, the other costs wrong data). So only comments, white space and a closing semicolon
are given up. The case of every word counts: even a reserved one can be the name of a field (``{left: 1}``), which is data.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from cumin.errors import QueryError

DIALECTS = ("duckdb", "spark")

_OPERATORS = sorted(
    [
        "<=>",
        "->>",
        "!~~*",
        "~~*",
        "!~*",
        "!~~",
        "||",
        "//",
        "**",
        "->",
        "::",
        ":=",
        "=>",
        "<=",
        ">=",
        "<>",
        "!=",
        "==",
        "<<",
        ">>",
        "~~",
        "~*",
        "!~",
        "@>",
        "<@",
        "&&",
        "^@",
        "|>",
    ],
    key=len,
    reverse=True,
)
_WORD = re.compile(r"[^\W\d]\w*(?:\$\w*)*")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F_]+|(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d+)?")
_DOLLAR = re.compile(r"\$([^\W\d]\w*)?\$")
_PARAMETER = re.compile(r":([^\W\d]\w*)")
_SPACE = re.compile(r"\s+")
_LINE_END = re.compile(r"[\r\n]")


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its kind (word, ident, string, number, op, param, hint), its text as written, its offset."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        """The offset behind the token."""
        return self.start + len(self.text)


def position(text: str, offset: int) -> str:
    """``line L, column C`` of an offset, both from 1."""
    line = text.count("\n", 0, offset) + 1
    return f"line {line}, column {offset - (text.rfind(chr(10), 0, offset) + 1) + 1}"


def tokens(text: str, dialect: str) -> list[Token]:
    """The tokens of `text`, without white space and comments (Spark's ``/*+ hints */`` stay).

    Raises QueryError, with the position, at a string, quoted name or comment that does not end, and at a character
    that starts no token.
    """
    return list(_tokens(text, dialect))


@lru_cache(maxsize=32)  # a plan asks three times
def _tokens(text: str, dialect: str) -> tuple[Token, ...]:
    return tuple(_scan(text, dialect))


def canonical(text: str, dialect: str) -> list[list[str]]:
    """The form of a query that enters its build id: ``[kind, text]`` of each token but a closing semicolon."""
    found = tokens(text, dialect)
    while found and found[-1].text == ";":
        found.pop()
    return [[token.kind, token.text] for token in found]


def without_end(text: str, dialect: str) -> str:
    """The query without what follows its last token, and without a closing semicolon: fit to stand in parentheses."""
    found = tokens(text, dialect)
    while found and found[-1].text == ";":
        found.pop()
    return text[: found[-1].end] if found else ""


def _scan(text: str, dialect: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        if space := _SPACE.match(text, at):
            at = space.end()
            continue
        if text.startswith("--", at):
            at = _line_end(text, at, dialect)
            continue
        if text.startswith("/*", at):
            end = _comment_end(text, at)
            if dialect == "spark" and text.startswith("/*+", at):
                yield Token("hint", text[at:end], at)
            at = end
            continue
        token = _token(text, at, dialect)
        yield token
        at = token.end


def _line_end(text: str, start: int, dialect: str) -> int:
    """Where a ``--`` comment ends: at a line feed or a carriage return, as both engines have it."""
    found = _LINE_END.search(text, start)
    if found is None:
        return len(text)
    if dialect == "spark" and text[found.start() - 1] == "\\" and found.group() == "\n":
        raise QueryError(
            f"The comment that starts at {position(text, start)} ends with a backslash, by which Spark takes the next line "
            "into it. Write -- before that line too, or take the backslash out."
        )
    return found.start()


def _comment_end(text: str, start: int) -> int:
    depth, at = 0, start
    while at < len(text):
        if text.startswith("/*", at):
            depth, at = depth + 1, at + 2
        elif text.startswith("*/", at):
            depth, at = depth - 1, at + 2
            if depth == 0:
                return at
        else:
            at += 1
    raise QueryError(f"The comment that starts at {position(text, start)} does not end; close it with */.")


def _token(text: str, at: int, dialect: str) -> Token:
    char = text[at]
    if quoted := _quoted(text, at, dialect):
        return quoted
    if (char.isdigit() or (char == "." and text[at + 1 : at + 2].isdigit())) and (number := _NUMBER.match(text, at)):
        return Token("number", number.group(), at)
    if word := _WORD.match(text, at):
        return Token("word", word.group(), at)
    if char == ":" and not text.startswith("::", at) and (parameter := _PARAMETER.match(text, at)):
        return Token("param", parameter.group(), at)
    for operator in _OPERATORS:
        if text.startswith(operator, at):
            return Token("op", operator, at)
    if char in "+-*/%^&|~!@#<>=()[]{},.;:?$":
        return Token("op", char, at)
    raise QueryError(f"{char!r} at {position(text, at)} starts no SQL token; quote it or take it out.")


def _quoted(text: str, at: int, dialect: str) -> Token | None:
    """A string or quoted name that starts here, by the dialect's rules."""
    char, following = text[at], text[at + 1 : at + 2]
    if dialect == "spark":
        if char in "rR" and following in ("'", '"'):
            return Token("string", text[at : _close(text, at + 1, escapes=False, doubled=False)], at)
        if char in "'\"":
            return Token("string", text[at : _close(text, at, escapes=True, doubled=True)], at)
        if char == "`":
            return Token("ident", text[at : _close(text, at, escapes=False, doubled=True)], at)
        return None
    if char in "eE" and following == "'":
        return Token("string", text[at : _close(text, at + 1, escapes=True, doubled=True)], at)
    if char == "'":
        return Token("string", text[at : _close(text, at, escapes=False, doubled=True)], at)
    if char == '"':
        return Token("ident", text[at : _close(text, at, escapes=False, doubled=True)], at)
    if char == "$" and (opening := _DOLLAR.match(text, at)):
        end = text.find(opening.group(), opening.end())
        if end < 0:
            raise QueryError(f"The string {opening.group()} at {position(text, at)} does not end.")
        return Token("string", text[at : end + len(opening.group())], at)
    return None


def _close(text: str, opening: int, *, escapes: bool, doubled: bool) -> int:
    """The offset after the quote that closes the one at `opening`."""
    quote, at = text[opening], opening + 1
    while at < len(text):
        if escapes and text[at] == "\\":
            at += 2
        elif text[at] != quote:
            at += 1
        elif doubled and text.startswith(quote, at + 1):
            at += 2
        else:
            return at + 1
    raise QueryError(f"The quote {quote} at {position(text, opening)} does not end; close it with {quote}.")
