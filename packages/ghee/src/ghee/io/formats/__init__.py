"""File formats: how each is inspected in the driver and read in a rank. A new format is a new file and a line here.

Only files are known here: no folders, partitions, splits over files or shuffling.
"""

from __future__ import annotations

from ghee.errors import PipelineError
from ghee.io.formats.base import FileInfo, Format, ReadOptions
from ghee.io.formats.csv import Csv
from ghee.io.formats.ipc import ArrowIpc
from ghee.io.formats.jsonl import JsonLines
from ghee.io.formats.parquet import Parquet

FORMATS: dict[str, Format] = {
    "parquet": Parquet(),
    "csv": Csv(","),
    "tsv": Csv("\t"),
    "jsonl": JsonLines(),
    "arrow": ArrowIpc(),
}
SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}

__all__ = ["COMPRESSIONS", "FORMATS", "FileInfo", "Format", "ReadOptions", "SUFFIXES", "format_of", "named"]


def named(name: str) -> Format:
    """Raises PipelineError for a name that is no format."""
    if name not in FORMATS:
        raise PipelineError(f"format={name!r} is none of {', '.join(map(repr, FORMATS))}.")
    return FORMATS[name]


def format_of(path: str) -> str | None:
    """The format's name by the file name's suffix (a compression's suffix left out), or None."""
    name = path.rsplit("/", 1)[-1].lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)
