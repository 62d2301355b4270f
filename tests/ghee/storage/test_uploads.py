"""A sink rank that is killed in the middle of an upload to S3 leaves nothing there when the run has ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from stores import Store
from test_going_on import ids

ROWS = 4000
SCRIPT = """
import sys

import ghee
from ghee.io import opening

killed, read, write = sys.argv[1:]

def make():
    from ghee.io.sinks import files

    class Sink(files.FileSink):
        def writer(self, rank):
            import os, pathlib, signal
            from ghee.io.sinks import stream

            class Dies(stream.HashingStream):
                def _send(self):
                    if pathlib.Path(killed).exists():
                        return super()._send()
                    pathlib.Path(killed).touch()
                    with self._filesystem.open_output_stream(self._path) as sent:
                        for _ in range(3):
                            sent.write(bytes(12 << 20))
                        sent.flush()
                        os.kill(os.getpid(), signal.SIGKILL)

            from ghee.io.sinks import writer
            writer.HashingStream = Dies
            return super().writer(rank)

    return Sink

opening.FileSink = make()
ghee.run(ghee.read(read, batch_size=100).write(write), progress=False)
"""


def table(first: int, rows: int) -> Any:
    payload = np.random.default_rng(first).bytes(4096 * rows)
    return pa.table({"n": range(first, first + rows), "x": [payload[4096 * i : 4096 * (i + 1)] for i in range(rows)]})


def local(folder: Path) -> str:
    import pyarrow.parquet as pq

    folder.mkdir()
    for first in range(0, ROWS, 1000):
        pq.write_table(table(first, 1000), folder / f"{first:05}.parquet", row_group_size=200)
    return str(folder)


@pytest.mark.server
@pytest.mark.slow
def test_a_rank_that_dies_while_it_sends_leaves_no_upload(s3: Store, tmp_path: Path) -> None:
    boto3 = pytest.importorskip("boto3")
    (tmp_path / "job.py").write_text(SCRIPT)
    killed = tmp_path / "killed"
    command = [sys.executable, tmp_path / "job.py", killed, local(tmp_path / "in"), s3.url("out")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert killed.exists()
    uploads = boto3.client("s3", endpoint_url=s3.server.address).list_multipart_uploads(Bucket="bucket")
    assert uploads.get("Uploads", []) == []
    assert ids(s3.url("out")) == list(range(ROWS))
    assert not [path for path in s3.names("out") if "_staging" in path]
