"""The file that a part is written to: hashed on its way, and in its store when `finish` returns.

On a local disk it is written where it lies. For every other store it is gathered in a temporary file that has no name and
goes with the process, and sent when it is whole: sending can be repeated when the store goes away in the middle, and a
process that is killed before has left nothing there.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from contextlib import suppress
from typing import Any

from ghee.io.location import is_local
from ghee.io.stores.patience import PATIENCE, patiently

CHUNK = 8 << 20
"""Bytes that are sent at once."""


class HashingStream(io.RawIOBase):
    """A new file. `patience`: seconds for which its store may be away when it is sent."""

    def __init__(self, filesystem: Any, path: str, patience: float = PATIENCE) -> None:
        super().__init__()
        self._filesystem, self._path, self._patience = filesystem, path, patience
        self._local = is_local(filesystem)
        # "x": two writers never share a name, and if they did, none may overwrite the other's rows.
        self._file: Any = open(path, "xb", buffering=1 << 20) if self._local else tempfile.TemporaryFile()  # noqa: SIM115
        self._hash = hashlib.sha256()
        self._size = 0
        self._abandoned = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if not self._abandoned:
            try:
                self._file.write(view)
            except OSError as error:
                where = "" if self._local else f" (it is gathered in {tempfile.gettempdir()}, which TMPDIR says)"
                raise OSError(error.errno, f"{error.strerror}{where}") from error
            self._hash.update(view)
        self._size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._size

    def finish(self) -> tuple[int, str]:
        """Bytes and digest of the file, which is on the disk or in the store whole."""
        self._file.flush()
        if self._local:
            os.fsync(self._file.fileno())
        else:
            patiently(self._send, self._patience, self._path)
        self._file.close()
        return self._size, f"sha256:{self._hash.hexdigest()}"

    def _send(self) -> None:
        self._file.seek(0)
        with self._filesystem.open_output_stream(self._path) as stream:
            shutil.copyfileobj(self._file, stream, CHUNK)

    def abandon(self) -> None:
        """Closes the file; what a format's writer still writes at its own end goes nowhere."""
        self._abandoned = True
        with suppress(OSError):
            self._file.close()
