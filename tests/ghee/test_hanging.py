"""A test that hangs fails alone: its text shows where every process hangs, what comes after it runs, nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

HANGING = """
import os
import signal
import threading
import pytest
import ghee

@pytest.mark.timeout(200)
def test_that_hangs():
    def waits_for_ever_in_a_rank(batches):
        os.close(os.open(MARK, os.O_WRONLY))
        threading.Event().wait()
    run = ghee.run(ghee.read([{"n": [1]}]).loop(waits_for_ever_in_a_rank), progress=False, wait=False)
    os.close(os.open(MARK, os.O_RDONLY))  # a FIFO: once the rank is there
    signal.setitimer(signal.ITIMER_REAL, 1)  # its time is up
    run.wait()

@pytest.mark.timeout(3)
def test_that_hangs_in_a_join_while_threads_run():
    thread = threading.Thread(target=threading.Event().wait, name="for ever", daemon=True)
    thread.start()
    thread.join()

def test_after_them():
    pass
"""


@pytest.mark.timeout(400)
def test_a_hanging_test_fails_alone_with_the_stacks_of_its_ranks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "reached")
    script = tmp_path / "test_hangs.py"
    script.write_text(HANGING.replace("MARK", repr(str(tmp_path / "reached"))))
    (tmp_path / "conftest.py").write_text(
        (TESTS / "conftest.py").read_text().replace("__file__", repr(str(TESTS / "conftest.py")))
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout-method=signal", "-rA", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 1 passed" in done.stdout
    assert "ghee.launch.process" in done.stdout
    assert "in waits_for_ever_in_a_rank" in done.stdout, done.stdout
    assert "── thread 'for ever' of pytest" in done.stdout
    # That nothing is left is every test's to see: conftest.py
