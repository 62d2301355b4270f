"""Float sums over decimals: the rewriting of the `decimal` mode. Pure; works on our own tokens.

The build id holds the query as it was written and the mode with its scale; what is run is kept in the manifest.
"""

import itertools
from collections import Counter
from collections.abc import Mapping

from cumin.analysis import Query
from cumin.determinism import calls
from cumin.errors import QueryError
from cumin.lexer import Token, tokens


def over_decimals(query: Query, sums: Mapping[int, str], scale: int) -> str:
    """The query with the float sums at these offsets run over DECIMAL(38, scale) and cast back to DOUBLE."""
    found = tokens(query.text, query.dialect)
    edits: list[tuple[int, int, str]] = []
    for call in calls(found):
        if call.offset not in sums:
            continue
        first = call.index + 2
        distinct = found[first].text.upper() == "DISTINCT"
        start = found[first].end if distinct else found[first].start
        argument = query.text[start : found[call.close].start]
        tail = _clauses_after(found, call.close)
        after = query.text[found[call.close].end : found[tail].end]
        word = "DISTINCT " if distinct else ""
        value = f"{word}CAST({argument} AS DECIMAL(38, {scale}))"
        if sums[call.offset] == "sum":
            new = f"CAST(sum({value}){after} AS DOUBLE)"
        else:
            # Both over the rounded values: of DISTINCT ones there are fewer.
            new = f"(CAST(sum({value}){after} AS DOUBLE) / nullif(count({value}){after}, 0))"
        edits.append((call.offset, found[tail].end, new))
    text = query.text
    edits.sort(reverse=True)
    for (start, _, _), (_, end, _) in itertools.pairwise(edits):
        if end > start:
            raise QueryError(f"{query.position(start)}: a float sum inside another; cast to DECIMAL by hand there.")
    for start, end, new in edits:
        text = text[:start] + new + text[end:]
    return text


def _clauses_after(found: list[Token], close: int) -> int:
    """The index of the last token of the FILTER and OVER clauses that follow a call."""
    last = close
    for word in ("FILTER", "OVER"):
        after = last + 1
        if after < len(found) and found[after].text.upper() == word:
            last = _matching(found, after + 1) if found[after + 1].text == "(" else after + 1
    return last


def _matching(found: list[Token], opening: int) -> int:
    depth: Counter[str] = Counter()
    for index in range(opening, len(found)):
        depth[found[index].text] += 1
        if depth["("] == depth[")"]:
            return index
    return len(found) - 1
