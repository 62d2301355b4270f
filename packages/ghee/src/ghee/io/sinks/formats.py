"""How a table is appended to an open file, per format. A new format is a new class and a line in WRITERS."""

from __future__ import annotations

import json
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.types as pt

from ghee.errors import BatchError


class TableWriter(Protocol):
    """Appends tables of one schema to a stream; `close` ends the file (the stream stays open)."""

    def __init__(self, stream: Any, schema: Any) -> None: ...
    def write(self, table: Any) -> None: ...
    def close(self) -> None: ...


class ParquetTables:
    suffix = ".parquet"

    def __init__(self, stream: Any, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(stream, schema, compression="zstd", write_page_checksum=True)

    def write(self, table: Any) -> None:
        self._writer.write_table(table, row_group_size=table.num_rows)

    def close(self) -> None:
        self._writer.close()


class ArrowTables:
    suffix = ".arrow"

    def __init__(self, stream: Any, schema: Any) -> None:
        # A dictionary may differ from batch to batch, which the file format allows in one form only.
        options = pa.ipc.IpcWriteOptions(unify_dictionaries=True)
        self._writer = pa.ipc.new_file(stream, schema, options=options)

    def write(self, table: Any) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


class CsvTables:
    suffix = ".csv"

    def __init__(self, stream: Any, schema: Any) -> None:
        import pyarrow.csv as pacsv

        nested = [f"{f.name} ({f.type})" for f in schema if pt.is_nested(f.type) or pt.is_binary(f.type)]
        if nested:
            raise BatchError(f'CSV has no form for {", ".join(nested)}; write format="parquet" or "jsonl".')
        self._writer = pacsv.CSVWriter(stream, schema)

    def write(self, table: Any) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


class JsonTables:
    suffix = ".jsonl"

    def __init__(self, stream: Any, schema: Any) -> None:
        binary = [f"{f.name} ({f.type})" for f in schema if pt.is_binary(f.type) or pt.is_large_binary(f.type)]
        if binary:
            raise BatchError(f'JSON has no form for bytes: {", ".join(binary)}; write format="parquet".')
        self._stream = stream

    def write(self, table: Any) -> None:
        lines = (json.dumps(row, default=_plain, ensure_ascii=False) for row in table.to_pylist())
        self._stream.write("".join(line + "\n" for line in lines).encode())

    def close(self) -> None:
        """Nothing ends a file of JSON lines."""


def _plain(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat(" ") if hasattr(value, "hour") and hasattr(value, "year") else value.isoformat()
    if hasattr(value, "total_seconds"):
        return value.total_seconds()
    return str(value)  # Decimal


WRITERS: dict[str, type[Any]] = {
    "parquet": ParquetTables,
    "csv": CsvTables,
    "jsonl": JsonTables,
    "arrow": ArrowTables,
}
