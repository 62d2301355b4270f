"""Datasets over file systems that are written in Python (fsspec: HDFS, S3), as DuckDB may read them.

DuckDB asks a dataset for a scanner with its columns and filter, and that for a reader. pyarrow's `Scanner.to_reader` starts
the scan while it holds Python's lock; the threads of Arrow that open the files need that lock, and one of them may hold a
lock of Arrow's that the start waits for: then all stand still, now and then, for ever. `to_batches` starts it without.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import fs as pafs

if TYPE_CHECKING:
    import pyarrow.dataset as pads


class _Scanner:
    """What DuckDB takes of a scanner."""

    def __init__(self, scanner: "pads.Scanner") -> None:
        self._scanner = scanner
        self.dataset_schema, self.projected_schema = scanner.dataset_schema, scanner.projected_schema

    def to_reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self.projected_schema, self._scanner.to_batches())


@cache
def _kind() -> Any:
    import pyarrow.dataset as pads

    class Released(pads.FileSystemDataset):  # type: ignore[misc]
        """A dataset whose scans start without Python's lock."""

        def scanner(self, *arguments: Any, **named: Any) -> _Scanner:
            return _Scanner(super().scanner(*arguments, **named))

    return Released


def released(dataset: Any) -> Any:
    """The same rows, columns and filters; what a file system of Arrow's own reads stays as it is."""
    if not isinstance(dataset.filesystem, pafs.PyFileSystem):
        return dataset
    return _kind()(list(dataset.get_fragments()), dataset.schema, dataset.format, dataset.filesystem)
