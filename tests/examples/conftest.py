"""The examples and benchmarks are scripts, not packages: their folders are put on the path, as Python does for a script."""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples" / "movielens"), str(ROOT / "benchmarks")]

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("examples", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("examples")


@pytest.fixture(scope="session")
def movielens() -> Path:
    """The folder with the real train/ and test/, which `python examples/movielens/data.py` has fetched before the tests."""
    import data

    return data.prepare()
