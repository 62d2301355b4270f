"""What a format must do, and the errors that all of them raise in the same way."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from ghee.errors import GheeError, SourceCorruptError, SourceError
from ghee.io.plan import FileRef, Piece, Unit
from ghee.io.stores.patience import first_line, is_passing


@dataclass(frozen=True)
class ReadOptions:
    """How a rank reads a piece. `schema` is what the batches get; only its columns are read where a format can.

    `strict`: a key of JSON lines that the schema does not have is an error (the user did not choose columns).
    `many`: several pieces are read side by side, so none may hold a row group's bytes in memory.
    """

    schema: Any
    batch_size: int
    strict: bool = False
    many: bool = False


@dataclass(frozen=True)
class FileInfo:
    """A file's schema and what can be read of it alone; `rows` where the format says it without reading."""

    schema: Any
    units: tuple[Unit, ...]
    rows: int | None


class Format(Protocol):
    """A file format. It pickles, and it is the same for every file of a source."""

    name: str
    text: bool  # types are inferred, so integers may become floats, and a schema may be given

    def inspect(self, filesystem: Any, file: FileRef, *, schema: Any, sample: int, unit_bytes: int) -> FileInfo:
        """In the driver. `sample` bytes of text decide types where `schema` does not; cuts are `unit_bytes` apart."""

    def read(self, filesystem: Any, piece: Piece, options: ReadOptions) -> Iterator[Any]:
        """In a rank: batches of any size with at least the columns of the schema that the file has, in file order."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns what pyarrow raises for a file that is not what it should be into SourceCorruptError naming `where`."""
    try:
        yield
    except GheeError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{where} is gone: it was there when the source was listed.") from error
    except PermissionError as error:
        raise SourceError(f"{where} may not be read: {error}") from error
    except (pa.ArrowException, OSError) as error:
        if is_passing(error):
            raise SourceError(f"{where} cannot be reached: {first_line(error)}") from error
        raise SourceCorruptError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    # struct.error and EOFError come from Python's decompressors, UnicodeDecodeError (a ValueError) from names.
    except (EOFError, ValueError, struct.error) as error:
        raise SourceCorruptError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
