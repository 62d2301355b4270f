"""The main job as a user runs it: real data, real processes."""

import re
import subprocess
import sys
from pathlib import Path

import demo
import pyarrow.dataset as ds
import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_reaches_the_plain_loops_rmse(movielens: Path, tmp_path: Path) -> None:
    command = [sys.executable, demo.__file__, "--predictions", str(tmp_path / "predictions")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"test RMSE: (\S+) with ghee, (\S+) with a plain loop", done.stdout)
    assert found, done.stdout
    streamed, expected = map(float, found.groups())
    assert expected < 0.900  # 0.890 with a standard deviation of 0.001 (python plain.py --seeds 5)
    assert abs(streamed - expected) <= demo.NOISE
    assert "the trainer waited" in done.stdout
    assert "limits the run" in done.stdout
    written, test = ds.dataset(tmp_path / "predictions").to_table(), ds.dataset(movielens / "test").to_table()
    pairs = [sorted(zip(t["user_id"].to_pylist(), t["item_id"].to_pylist(), strict=True)) for t in (written, test)]
    assert pairs[0] == pairs[1]


def test_figures_that_differ_by_more_than_chance_end_the_demo_with_an_error() -> None:
    demo.check_agreement(0.8900, 0.8900 + 0.9 * demo.NOISE)
    for streamed in (0.8900 + 1.1 * demo.NOISE, 0.8900 - 1.1 * demo.NOISE):
        with pytest.raises(SystemExit, match=r"differ by 0\.0055"):
            demo.check_agreement(streamed, 0.8900)
