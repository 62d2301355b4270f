"""Arrow IPC files (Feather version 2): a unit is a record batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from ghee.errors import SourceCorruptError
from ghee.io.formats.base import FileInfo, ReadOptions, reading
from ghee.io.plan import FileRef, Piece, Unit

_MAGIC = b"ARROW1"


class ArrowIpc:
    name = "arrow"
    text = False

    def inspect(self, filesystem: Any, file: FileRef, *, schema: Any, sample: int, unit_bytes: int) -> FileInfo:
        del schema, sample, unit_bytes
        # No memory map, here and below: a file that is truncated under a map kills the rank with SIGBUS.
        with reading(file.path), filesystem.open_input_file(file.path) as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise SourceCorruptError(
                    f"{file.path} is no Arrow IPC file: it does not begin with {_MAGIC.decode()}. "
                    "The streaming form is not read; write it with pyarrow.ipc.new_file."
                )
            stream.seek(0)
            with ipc.open_file(stream) as reader:
                found = reader.schema
                counts = self._rows(stream, reader.num_record_batches, bool(found.names))
        each = (file.size or 0) // max(len(counts), 1)
        units = tuple(Unit(i, i + 1, rows, each) for i, rows in enumerate(counts))
        return FileInfo(found.remove_metadata(), units, sum(counts))

    def _rows(self, stream: Any, batches: int, has_columns: bool) -> list[int]:
        """Rows per record batch: one column is loaded, for pyarrow does not show a batch's header alone."""
        stream.seek(0)
        options = ipc.IpcReadOptions(included_fields=[0], use_threads=False) if has_columns else None
        with ipc.open_file(stream, options=options) as reader:
            return [reader.get_batch(i).num_rows for i in range(batches)]

    def read(self, filesystem: Any, piece: Piece, options: ReadOptions) -> Iterator[Any]:
        path = piece.file.path
        with reading(path), filesystem.open_input_file(path) as stream:
            with ipc.open_file(stream) as whole:
                wanted = [i for i, name in enumerate(whole.schema.names) if name in options.schema.names]
            stream.seek(0)
            chosen = ipc.IpcReadOptions(included_fields=wanted or [0], use_threads=False)
            with ipc.open_file(stream, options=chosen) as reader:
                for i in range(piece.start, piece.stop):
                    with reading(f"{path}, record batch {i},"):
                        batch = reader.get_batch(i)
                        batch.validate(full=True)  # IPC has no checksums; offsets that point outside crash later
                    yield batch if wanted else _without_columns(batch)


def _without_columns(batch: Any) -> Any:
    return pa.RecordBatch.from_arrays([pa.nulls(batch.num_rows)], names=[""]).select([])
