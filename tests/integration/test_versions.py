"""Each package says its version, and ghee_models refuses a `ghee` that is another project's."""

import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["swimmy", "ghee", "cumin", "ghee_models"])
def test_a_package_says_the_version_that_is_installed(name: str) -> None:
    assert importlib.import_module(name).__version__ == importlib.metadata.version(name.replace("_", "-"))


def test_a_strangers_ghee_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "ghee").mkdir()
    (tmp_path / "ghee" / "__init__.py").write_text("def send(message): pass\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import ghee_models"]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"{tmp_path}/ghee/__init__.py) is another project of that name" in done.stderr
    assert "python -m pip install ./packages/ghee ./packages/ghee_models" in done.stderr
