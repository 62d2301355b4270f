"""What the tests of reading and writing share."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "ghee",
    deadline=None,  # timings never decide a test
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ghee")


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """After each test: no file left open below the temporary folders, no thread of Python left."""
    threads, files = set(threading.enumerate()), set(_open_files())
    yield
    gc.collect()
    assert not [target for target in set(_open_files()) - files if target.startswith(tempfile.gettempdir())]
    assert set(threading.enumerate()) <= threads


def _open_files() -> list[str]:
    targets = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            targets.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            continue  # the listing's own
    return targets


@pytest.fixture(params=["plain", "with space", "ünïcødé 日本", "per%20cent", "a[1]"])
def folder(tmp_path: Path, request: Any) -> Path:
    """Folders with names that break what parses paths."""
    made: Path = tmp_path / str(request.param)
    made.mkdir()
    return made
