"""The package that is tested is the installed one, not a folder of the same name; its benchmarks can be imported."""

import importlib
from pathlib import Path

import pytest

import cumin

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_installed_package_is_imported() -> None:
    assert cumin.__file__ is not None


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("cumin_*.py")))
def test_a_benchmark_knows_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module(name)
