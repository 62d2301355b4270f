"""Arrow schemas as text, in Arrow's own form. Enters no id. pyarrow is imported when it is needed: it takes a while."""

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def write_schema(schema: "pa.Schema") -> str:
    """A schema as text."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()


def read_schema(text: str) -> "pa.Schema":
    """The inverse of `write_schema`."""
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
