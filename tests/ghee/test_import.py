"""The package that is tested is the installed one; its names come when they are used, and a rank imports what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ghee


def test_the_installed_package_is_imported() -> None:
    assert ghee.__file__ is not None


def test_every_public_name_is_there() -> None:
    assert [name for name in ghee.__all__ if getattr(ghee, name) is None] == []
    assert set(ghee.__all__) <= set(dir(ghee))
    for name in ("run", "resume", "read", "rank", "size", "stage", "checkpoint", "restored", "branches", "auto"):
        assert callable(getattr(ghee, name)), name
    with pytest.raises(AttributeError, match="module 'ghee' has no attribute 'reed'"):
        ghee.reed  # noqa: B018


@pytest.mark.parametrize("first", ["ghee.entry", "ghee.cli", "ghee.driver.driver", "ghee.launch.process", "ghee.remote"])
def test_no_module_takes_the_place_of_a_public_name(first: str) -> None:
    """Importing a module of the package binds its name in the package, whoever imports it, and whenever."""
    look = "print([n for n in ghee.__all__ if isinstance(getattr(ghee, n), types.ModuleType)])"
    script = f"import {first}, ghee, types; {look}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['errors']"


def test_a_rank_imports_nothing_of_the_driver_and_no_arrow() -> None:
    """Ranks are started by the dozen, and again after a death: what they import is their start."""
    script = "import ghee.launch.process, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = ("pyarrow", "torch", "pandas", "asyncio", "ghee.driver", "ghee.entry", "ghee.io", "ghee.pipeline", "ghee.remote")
    assert [name for name in modules if name.startswith(heavy)] == []
