"""The main job from a store and back to it: the same RMSE as from local files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stores import Store

EXAMPLES = Path(__file__).parents[3] / "examples" / "movielens"


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["hdfs", "s3"])
def test_movielens_from_a_store_has_the_rmse_of_the_files(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue(kind)
    env = {**os.environ, "GHEE_HOME": str(tmp_path)}
    prepared = subprocess.run(
        [sys.executable, EXAMPLES / "data.py"], stdout=subprocess.PIPE, text=True, check=True, env=env
    ).stdout
    folder = Path(prepared.splitlines()[-1])
    for path in folder.rglob("*.parquet"):
        store.put(f"ratings/{path.relative_to(folder)}", path.read_bytes())
    command = [sys.executable, EXAMPLES / "demo.py"]
    command += ["--ratings", store.url("ratings"), "--predictions", store.url("predictions")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr  # it has compared itself with a plain loop over local files
    found = re.search(r"test RMSE: (\S+) with ghee", done.stdout)
    assert found, done.stdout
    assert abs(float(found[1]) - 0.890) < 0.005
    assert [name for name in store.names("predictions") if name.endswith(".parquet")]
