"""numpy arrays as Arrow arrays without copying them, and without `pyarrow.array`.

`pyarrow.array` imports pandas, where it is installed, at its first call with an array: seconds in every
rank, for nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa


def from_numpy(values: Any) -> Any:
    """A one-dimensional array as an Arrow array; numbers share the array's memory."""
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:
        return pa.array(values)
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])
