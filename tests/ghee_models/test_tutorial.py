"""The tutorial's commands, as they stand there, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

TUTORIAL = Path(__file__).parents[2] / "docs" / "models-tutorial.md"


@pytest.mark.slow
@pytest.mark.timeout(900)  # each command is a process, some of them start others
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    shutil.copy(Path(__file__).with_name("plugin_fwfm.py"), tmp_path)
    said = []
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", TUTORIAL.read_text(), re.DOTALL):
        commands = [shlex.split(line) for line in block.strip().splitlines()] if language == "bash" else []
        for command in commands or [[sys.executable, "-c", block]]:
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            said.append(done.stdout)
    told = "\n".join(said)
    assert "0.3295" in told
    assert "models:/movie-lists@champion is now version 1" in told
    assert re.search(r"\bfwfm\b.*models:/m-", told)
    assert re.search(r"5000000 False \[\d+, ", told)
    rows = pq.read_table(tmp_path / "lists").to_pylist()
    assert sorted(row["user_id"] for row in rows) == [1, 2, 3, 5_000_000]
    assert all(len(row["items"]) == 5 for row in rows)
