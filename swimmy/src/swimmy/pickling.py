"""cloudpickle, with the file name of every function kept.

Since 3.1.3 cloudpickle writes `<dynamic-code>` where the name of a function's file stood, and has no setting against it
(cloudpipe/cloudpickle#560: equal bytes from different notebooks). A traceback from a Pod would then name no line of the
user's. What is written here is read by `pickle.loads`, as what cloudpickle writes is.
"""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from types import CodeType
from typing import Any, ClassVar

import cloudpickle

_FILE_NAME = 10
"""Its place among the arguments of `types.CodeType`, since Python 3.8."""

_reduce = cloudpickle.Pickler.dispatch_table[CodeType]


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    make, arguments = _reduce(code)
    name = "".join(code.co_filename)  # a string of its own: a shared one would make the bytes differ (as in cloudpickle)
    return make, (*arguments[:_FILE_NAME], name, *arguments[_FILE_NAME + 1 :])


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    dispatch_table: ClassVar[Any] = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)


def dumps(value: object) -> bytes:
    """Pickle a value. Raises whatever pickling it raises."""
    with io.BytesIO() as out:
        _Pickler(out, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        return out.getvalue()
