"""The state of an input, by partition: what enters a build id, and what is compared before publishing.

Pure: no file system, no clock. A file is one line, ``<length of name>:<name>,<size>,<state>``; a partition's token is
BLAKE3-256 over its sorted lines; the strength says what the state of each file is, and is part of the token, so two
strengths are never equal.

========  ==================================================================================================
strength  state of a file, or of the table
========  ==================================================================================================
content   a cumin dataset: the content id of the partition's rows
snapshot  Delta, Iceberg: files that are written once, in a version of the table
bytes     BLAKE3-256 of every byte
etag      an object store's ETag (and version id): changes with every write
footer    BLAKE3 of a Parquet file's footer: schema, counts, statistics, offsets; values may change beneath it
stat      local: mtime, ctime (ns) and inode; elsewhere: modification time
========  ==================================================================================================
"""

from collections.abc import Iterable
from dataclasses import dataclass

from blake3 import blake3

STRENGTHS = ("content", "snapshot", "bytes", "etag", "footer", "stat")


@dataclass(frozen=True, slots=True)
class Part:
    """One partition of an input as it is now: the lines of its files, their bytes in all, and the token."""

    lines: list[str]
    bytes: int
    token: str

    @property
    def names(self) -> list[str]:
        """The files' names, in order."""
        return [line_name(line) for line in self.lines]


def line(name: str, size: int, state: str) -> str:
    """A file as one line; the length in front keeps a name with a comma from being read as two fields."""
    return f"{len(name)}:{name},{size},{state}"


def line_name(text: str) -> str:
    """The name in a line."""
    length, _, rest = text.partition(":")
    return rest[: int(length)]


def line_size(text: str) -> int:
    """The size in a line."""
    length, _, rest = text.partition(":")
    return int(rest[int(length) + 1 :].partition(",")[0])


def token(strength: str, lines: Iterable[str]) -> str:
    """The token of a partition, from its lines in any order."""
    body = "\n".join(sorted(lines)).encode("utf-8", "surrogateescape")
    return f"{strength}:{blake3(f'cumin/part/1/{strength}/'.encode() + body).hexdigest()}"


def moved(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """The names of files that changed or went away. New ones do not count: the engine got the exact list before."""
    now = set(after)
    return sorted(line_name(text) for text in before if text not in now)
