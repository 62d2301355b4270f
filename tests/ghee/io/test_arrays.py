from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ghee.io.arrays import from_numpy


@pytest.mark.parametrize("kind", ["i1", "u8", "f2", "f4", "f8", ">i4", "?", "U3", "S2", "M8[us]", "O"])
def test_values_are_those_of_pyarrow(kind: str) -> None:
    values = np.array([0, 1, 0, 1, 1]).astype(kind)[::2]
    found = from_numpy(values)
    found.validate(full=True)
    assert found.equals(pa.array(values if values.dtype.isnative else values.astype("i4")))


def test_numbers_share_memory() -> None:
    values = np.arange(5)
    assert from_numpy(values).buffers()[1].address == values.ctypes.data


_READ_AND_WRITE = """
import sys
import numpy as np
from ghee.io.opening import open_sink, open_source
sink = open_sink(sys.argv[1])
sink.prepare()
writer = sink.writer(0)
writer.write({"x": np.arange(100), "y": np.zeros((100, 2), dtype=np.float32)})
sink.publish(writer.close())
source = open_source(sys.argv[1], shuffle=1)
assert sum(batch.num_rows for split in source.splits() for batch in source.read(split, epoch=0)) == 100
print(*(name for name in ("pandas", "pyarrow.dataset", "pyarrow.acero", "fsspec", "torch") if name in sys.modules))
"""


def test_a_rank_imports_nothing_slow(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _READ_AND_WRITE, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
