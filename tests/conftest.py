"""For the tests of every package."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import hanging

# How fast a busy machine is decides no test. A package's own profile, loaded after this one, says the same.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
# A shell that starts pytest in the background has it ignore Ctrl-C, and every program that the tests start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Every Python process that the tests start says where it is when it is asked: see `stacks/sitecustomize.py`."""
    folder = tempfile.mkdtemp(prefix="stacks-")
    os.environ[hanging.FOLDER] = folder
    paths = [str(Path(__file__).parent / "stacks"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """A test that hangs fails alone, with the stacks of all threads and all processes. In place of pytest-timeout's own."""

    def fail(*_: object) -> None:
        __tracebackhide__ = True
        item.stash[hanging.HUNG] = True
        pytest.fail(f"Timeout (>{settings.timeout} s)\n\n{hanging.all_stacks()}")

    signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    hanging.end_if_stuck(item.config, settings.timeout)
    return True


def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    """The test has ended."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    hanging.is_not_stuck()
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What a test that hangs has started is ended, and not what its fixtures have."""
    before = hanging.processes()
    try:
        return (yield)
    finally:
        if item.stash.get(hanging.HUNG, False):
            hanging.end(hanging.processes().keys() - before.keys())
