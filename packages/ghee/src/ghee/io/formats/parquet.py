"""Parquet: a unit is a row group; a row group may be cut into ranges of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from ghee.io.formats.base import FileInfo, ReadOptions, reading
from ghee.io.location import is_local
from ghee.io.plan import FileRef, Piece, Unit

# Bytes of a column that are read at once where many row groups are read side by side.
STREAMED_LOCAL = 64 << 10
STREAMED_REMOTE = 1 << 20


class Parquet:
    name = "parquet"
    text = False

    def inspect(self, filesystem: Any, file: FileRef, *, schema: Any, sample: int, unit_bytes: int) -> FileInfo:
        del schema, sample, unit_bytes  # the footer says it all
        with reading(file.path), filesystem.open_input_file(file.path) as stream, pq.ParquetFile(stream) as parquet:
            metadata = parquet.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            units = tuple(
                Unit(i, i + 1, group.num_rows, group.total_byte_size, cuttable=True) for i, group in enumerate(groups)
            )
            return FileInfo(parquet.schema_arrow.remove_metadata(), units, metadata.num_rows)

    def read(self, filesystem: Any, piece: Piece, options: ReadOptions) -> Iterator[Any]:
        path, local = piece.file.path, is_local(filesystem)
        window = (STREAMED_LOCAL if local else STREAMED_REMOTE) if options.many else 0  # 0: a whole column of a row group
        with (
            reading(path),
            filesystem.open_input_file(path) as stream,
            # Page checksums find bits that flipped in storage; they are there where the writer made them (ours does).
            pq.ParquetFile(
                stream, pre_buffer=not local and not window, buffer_size=window, page_checksum_verification=True
            ) as parquet,
        ):
            columns = [name for name in options.schema.names if name in parquet.schema_arrow.names]
            for group in range(piece.start, piece.stop):
                with reading(f"{path}, row group {group},"):
                    yield from parquet.iter_batches(options.batch_size, [group], columns, use_threads=False)


def pruned(filesystem: Any, files: Sequence[tuple[FileRef, Any, FileInfo]], schema: Any, filter: Any) -> list[list[int]]:
    """Per file (with its partition expression): the row groups whose statistics do not exclude the filter."""
    import pyarrow.dataset as ds  # slow to import; only filters need it

    kept: list[list[int]] = []
    parquet = ds.ParquetFileFormat()
    for file, partition, info in files:
        if not info.units:
            kept.append([])
            continue
        fragment = parquet.make_fragment(file.path, filesystem, partition_expression=partition)
        with reading(file.path):
            parts = fragment.split_by_row_group(filter, schema=schema)
            kept.append([group.id for part in parts for group in part.row_groups])
    return kept


def read_filtered(
    filesystem: Any, piece: Piece, partition: Any, scan: tuple[Any, Any, Any], batch_size: int
) -> Iterator[Any]:
    """Batches with the filter applied while decoding; `scan` is (full schema, names to return, filter)."""
    import pyarrow.dataset as ds

    schema, names, filter = scan
    parquet = ds.ParquetFileFormat(
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    )
    for group in range(piece.start, piece.stop):
        with reading(f"{piece.file.path}, row group {group},"):
            fragment = parquet.make_fragment(piece.file.path, filesystem, partition_expression=partition, row_groups=[group])
            scanner = fragment.scanner(
                schema=schema,
                columns=names,
                filter=filter,
                batch_size=batch_size,
                use_threads=False,
                batch_readahead=1,
            )
            yield from scanner.to_batches()
