"""CSV with a header (comma, or tab as "tsv"): a unit is a range of bytes between two records, quotes respected.

Null is an empty field without quotes, NULL, null or \\N. Quotes are doubled inside quotes (RFC 4180).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow.csv as pacsv

from ghee.errors import SourceCorruptError
from ghee.io.formats.base import FileInfo, ReadOptions, reading
from ghee.io.formats.text import BLOCK, PARSE_BLOCK, compressed, head, open_piece, units
from ghee.io.plan import FileRef, Piece, Unit

NULLS = ["", "NULL", "null", "\\N"]


class Csv:
    text = True

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter
        self.name = "tsv" if delimiter == "\t" else "csv"

    def inspect(self, filesystem: Any, file: FileRef, *, schema: Any, sample: int, unit_bytes: int) -> FileInfo:
        with reading(file.path):
            data, whole = head(filesystem, file.path, sample)
            start = header_end(data)
            if not data.strip():
                raise SourceCorruptError(f"{file.path} is empty; a CSV file begins with a line of column names.")
            if not whole:
                data = data[: last_record_end(data)] or data
            found = self._infer(data, schema)
            if compressed(file.path) or file.size is None:
                return FileInfo(found, (Unit(0, 1, None, 4 * (file.size or 0)),), None)
            cuts: list[int] = []
            if file.size > unit_bytes:
                with filesystem.open_input_file(file.path) as stream:
                    cuts = record_starts(stream, start, file.size, unit_bytes)
        return FileInfo(found, units(file, start, cuts, file.size), None)

    def _infer(self, data: bytes, schema: Any) -> Any:
        return pacsv.read_csv(
            io.BytesIO(data),
            pacsv.ReadOptions(use_threads=False, block_size=max(len(data), 1)),
            self._parse_options(2),
            self._convert_options(schema),
        ).schema

    def _parse_options(self, columns: int) -> Any:
        # With one column an empty line is a row (null); with several it is nothing.
        return pacsv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True, ignore_empty_lines=columns > 1)

    def _convert_options(self, schema: Any, include: list[str] | None = None) -> Any:
        return pacsv.ConvertOptions(
            column_types=schema,
            include_columns=include,
            null_values=NULLS,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )

    def read(self, filesystem: Any, piece: Piece, options: ReadOptions) -> Iterator[Any]:
        path = piece.file.path
        where = path if compressed(path) else f"{path}, bytes {piece.start} to {piece.stop},"
        with reading(where):
            data, _ = head(filesystem, path, BLOCK)
            names = self._infer(data[: header_end(data)], None).names
            wanted = [name for name in options.schema.names if name in names]
            # A compressed file is read from its header on; a range of bytes has none.
            settings = pacsv.ReadOptions(
                use_threads=False, block_size=PARSE_BLOCK, column_names=None if compressed(path) else names
            )
            convert = self._convert_options(options.schema, wanted or names[:1])
            with (
                open_piece(filesystem, piece) as stream,
                pacsv.open_csv(stream, settings, self._parse_options(len(names)), convert) as reader,
            ):
                for batch in reader:
                    yield batch if wanted else batch.select([])


def header_end(data: bytes) -> int:
    """Where the first record after the header begins; empty lines before the header belong to it."""
    at = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    while data[at : at + 1] in (b"\n", b"\r"):
        at += 1
    return _record_end(data, at, False)[0] or len(data)


def last_record_end(data: bytes) -> int:
    """Where the last whole record of the bytes (which begin with a record) ends."""
    odd = data.count(b'"') % 2 == 1
    at = len(data)
    while (found := data.rfind(b"\n", 0, at)) >= 0:
        odd ^= data.count(b'"', found, at) % 2 == 1
        if not odd:
            return found + 1
        at = found
    return 0


def record_starts(stream: Any, start: int, stop: int, every: int) -> list[int]:
    """Where records begin, about `every` bytes apart: line ends that an even number of quotes precedes.

    All bytes are read once (counting quotes runs at memory speed). Where the quotes do not pair up, a quote stands in
    the middle of a field, nothing is known about line ends, and the file is not cut.
    """
    stream.seek(start)
    starts: list[int] = []
    at, odd, due = start, False, start + every
    while block := stream.read(min(BLOCK, stop - at)):
        offset = 0
        while due < at + len(block):
            skip = max(due - at, offset)
            odd ^= block.count(b'"', offset, skip) % 2 == 1
            found, odd = _record_end(block, skip, odd)
            if not found:
                offset = len(block)
                break
            offset = found
            if at + found < stop:
                starts.append(at + found)
            due = at + found + every
        odd ^= block.count(b'"', offset) % 2 == 1
        at += len(block)
    return [] if odd else starts


def _record_end(data: bytes, at: int, odd: bool) -> tuple[int, bool]:
    """(the position after the next line end outside quotes, or 0; is the number of quotes before what is next odd?)"""
    while (found := data.find(b"\n", at)) >= 0:
        odd ^= data.count(b'"', at, found) % 2 == 1
        if not odd:
            return found + 1, False
        at = found + 1
    return 0, odd ^ (data.count(b'"', at) % 2 == 1)
