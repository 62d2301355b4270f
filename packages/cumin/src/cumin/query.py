"""A query with its parameters put in: Jinja for names and lists, ``:name`` for values as typed literals.

Pure. What is hashed, stored and shown is the rendered text; a parameter that is declared must be used, one that is
used must be declared, and the clock and the environment cannot be reached.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from cumin.errors import ParameterError, QueryError
from cumin.lexer import DIALECTS, canonical, position, tokens

_NAMES = re.compile(r"\s*[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\s*,\s*[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)*\s*")
LITERALS = "bool, int, float, Decimal, str, date, datetime, or a list of these"


@dataclass(frozen=True)
class Rendered:
    """A query ready to run: its template, its parameters, and the text that the engine gets."""

    template: str
    params: Mapping[str, Any]
    dialect: str
    text: str

    @property
    def form(self) -> list[list[str]]:
        """The canonical tokens, which enter the build id."""
        return canonical(self.text, self.dialect)


def render(template: str, params: Mapping[str, Any], *, dialect: str) -> Rendered:
    """`template` with `params` put in.

    ``:name`` becomes a typed literal; ``{{ name }}`` an identifier, a number, or a comma-separated list of these.
    Raises ParameterError naming every parameter that is missing, unused, or of a type without a literal, and
    QueryError where the template or a token is malformed.
    """
    if dialect not in DIALECTS:
        raise QueryError(f"The dialect {dialect!r} is not known. Known: {', '.join(DIALECTS)}.")
    expanded, in_template = _expand(template, params)
    found = tokens(expanded, dialect)
    in_values = {token.text[1:] for token in found if token.kind == "param"}
    problems = _complaints(params, in_template | in_values, expanded, dialect)
    pieces: list[str] = []
    at = 0
    for token in found:
        if token.kind != "param" or token.text[1:] not in params:
            continue
        try:
            written = literal(params[token.text[1:]], dialect=dialect)
        except ParameterError as error:
            problems.append(f"The parameter {token.text[1:]!r}: {error}")
            continue
        pieces += (expanded[at : token.start], written)
        at = token.end
    if problems:
        raise ParameterError(dict.fromkeys(problems))
    return Rendered(template, dict(params), dialect, "".join(pieces) + expanded[at:])


def literal(value: Any, *, dialect: str) -> str:
    """`value` as a literal of its own type in `dialect`. Raises ParameterError for a type or value without one."""
    if isinstance(value, (list, tuple)):
        if not value:
            raise ParameterError("an empty list has no literal: SQL has no IN (). Give one value at least.")
        return f"({', '.join(literal(item, dialect=dialect) for item in value)})"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(value) if value >= 0 else f"({value})"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ParameterError(f"{value} has no literal; give a finite number.")
        return f"CAST('{value!r}' AS DOUBLE)"
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, str):
        return _string(value, dialect)
    if isinstance(value, datetime):
        return _timestamp(value, dialect)
    if isinstance(value, date):
        return f"DATE '{value.isoformat()}'"
    raise ParameterError(f"got a {type(value).__qualname__}, which has no literal. Allowed: {LITERALS}.")


def _string(value: str, dialect: str) -> str:
    if "\x00" in value:
        raise ParameterError("a string with a NUL character has no literal.")
    if dialect == "spark":
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "'" + value.replace("'", "''") + "'"


def _decimal(value: Decimal) -> str:
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ParameterError(f"{value} has no literal; give a finite number.")
    scale = max(0, -exponent)
    precision = max(len(digits) + max(0, exponent), scale, 1)
    if precision > 38:
        raise ParameterError(f"{value} needs {precision} digits; DECIMAL holds 38.")
    return f"CAST('{value:f}' AS DECIMAL({precision}, {scale}))"


def _timestamp(value: datetime, dialect: str) -> str:
    if value.tzinfo is None:
        kind = "TIMESTAMP_NTZ" if dialect == "spark" else "TIMESTAMP"
        return f"{kind} '{value.isoformat(sep=' ')}'"
    kind = "TIMESTAMP" if dialect == "spark" else "TIMESTAMPTZ"
    return f"{kind} '{value.astimezone(UTC).isoformat(sep=' ')}'"


def _expand(template: str, params: Mapping[str, Any]) -> tuple[str, set[str]]:
    """The template after Jinja, and the names it used."""
    if "{{" not in template and "{%" not in template and "{#" not in template:
        return template, set()
    import jinja2.meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, finalize=_name_or_number, autoescape=False, keep_trailing_newline=True
    )
    environment.globals.clear()
    environment.filters.pop("random")
    try:
        used = jinja2.meta.find_undeclared_variables(environment.parse(template))
        missing = sorted(used - params.keys())
        if missing:
            raise ParameterError(
                f"The template uses {name!r}, which is not a parameter. Declared: {_listed(params)}." for name in missing
            )
        return environment.from_string(template).render(params), used
    except jinja2.TemplateSyntaxError as error:
        raise QueryError(f"The template is malformed at line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, TypeError) as error:
        raise QueryError(f"The template cannot be expanded: {error}") from error


def _name_or_number(value: Any) -> str:
    """What `{{ }}` may put into the text: identifiers and whole numbers. Values go through ``:name``."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_name_or_number(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and _NAMES.fullmatch(value):
        return value
    raise ParameterError(
        f"{{{{ }}}} puts in identifiers and whole numbers only, got {value!r}. Write a value as :name, which becomes a "
        "typed literal."
    )


def _complaints(params: Mapping[str, Any], used: set[str], text: str, dialect: str) -> list[str]:
    problems = [
        f"The parameter {name!r} is declared and not used in the query; take it out."
        for name in sorted(params.keys() - used)
    ]
    for token in tokens(text, dialect):
        if token.kind == "param" and token.text[1:] not in params:
            problems.append(
                f"{token.text} at {position(text, token.start)} is not a parameter. Declared: {_listed(params)}. "
                "(A slice or struct is written with a blank after the colon.)"
            )
    return problems


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
