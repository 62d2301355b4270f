"""The example that the README begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

import ghee
from ghee.pipeline_file import find_pipeline

FILE = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.mark.parametrize("on", ["local", "inline"])
def test_it_learns_all_but_the_noise(on, tmp_path, monkeypatch):
    monkeypatch.setenv("GHEE_HOME", str(tmp_path / "ghee"))
    pipeline = find_pipeline(f"{FILE}:make", [f"folder={tmp_path}", "epochs=2", "read.limit=80000"])
    first, second = ghee.run(pipeline, on=on, progress=False).result
    assert first > second
    assert 0.009 < second < 0.02, "the noise's variance is 0.01"
