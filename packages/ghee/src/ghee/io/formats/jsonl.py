"""JSON lines: a unit is a range of bytes between two line ends (JSON has none inside a value)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from ghee.io.formats.base import FileInfo, ReadOptions, reading
from ghee.io.formats.text import BLOCK, PARSE_BLOCK, compressed, cut_points, head, open_piece, units
from ghee.io.plan import FileRef, Piece, Unit


class JsonLines:
    name = "jsonl"
    text = True

    def inspect(self, filesystem: Any, file: FileRef, *, schema: Any, sample: int, unit_bytes: int) -> FileInfo:
        with reading(file.path):
            data, whole = head(filesystem, file.path, sample)
            if not whole:
                data = data[: data.rfind(b"\n") + 1] or data
            found = _infer(data, schema) if data.strip() else (schema or pa.schema([]))
            size = file.size
            if compressed(file.path) or size is None:  # one piece: its size in memory is a guess
                return FileInfo(found, (Unit(0, 1, None, 4 * (size or 0)),), None)
            with filesystem.open_input_file(file.path) as stream:
                cuts = cut_points(stream, 0, size, unit_bytes, _next_line)
        return FileInfo(found, units(file, 0, cuts, size), None)

    def read(self, filesystem: Any, piece: Piece, options: ReadOptions) -> Iterator[Any]:
        path = piece.file.path
        where = path if compressed(path) else f"{path}, bytes {piece.start} to {piece.stop},"
        parse = pajson.ParseOptions(
            explicit_schema=options.schema,
            newlines_in_values=False,
            unexpected_field_behavior="error" if options.strict else "ignore",
        )
        settings = pajson.ReadOptions(use_threads=False, block_size=PARSE_BLOCK)
        with reading(where), open_piece(filesystem, piece) as stream:
            try:
                reader = pajson.open_json(stream, settings, parse)
            except pa.ArrowInvalid as error:
                if "Empty JSON stream" in str(error):
                    return  # blank lines only
                raise
            with reader:
                yield from reader


def _infer(data: bytes, schema: Any) -> Any:
    options = pajson.ReadOptions(use_threads=False, block_size=max(len(data), 1))
    return pajson.read_json(io.BytesIO(data), options, pajson.ParseOptions(explicit_schema=schema)).schema


def _next_line(stream: Any, at: int, stop: int) -> int | None:
    stream.seek(at - 1)  # a line end just before the position makes the position itself a beginning
    position = at - 1
    while position < stop:
        block = stream.read(min(BLOCK, stop - position))
        if not block:
            return None
        found: int = block.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(block)
    return None
