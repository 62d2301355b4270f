"""The versions of the libraries that say what a query is, and of this package's own code: without importing any."""

import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from blake3 import blake3


def version(name: str) -> str:
    """The version of the library as it is loaded; of the installed one where it is not loaded yet."""
    loaded = getattr(sys.modules.get(name), "__version__", None)
    return loaded if isinstance(loaded, str) else _installed(name)


@cache
def _installed(name: str) -> str:
    return metadata.version(name)


def _own_code() -> str | None:
    hasher, found = blake3(), False
    try:
        for path in sorted(Path(__file__).parent.rglob("*.py")):
            data = path.read_bytes()
            hasher.update(f"{path.name}:{len(data)}:".encode())
            hasher.update(data)
            found = True
    except OSError:
        return None
    return hasher.hexdigest() if found else None  # compiled files alone, or a zip


_AT_IMPORT = _own_code()


def own_code(*, again: bool = False) -> str | None:
    """BLAKE3 of this package's own source as it was when the process began, or, `again`, as it is now: what a cache must
    not outlive. None where there is no source to read."""
    return _own_code() if again else _AT_IMPORT
