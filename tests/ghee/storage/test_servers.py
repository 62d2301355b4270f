"""Every server keeps the contract: it serves, is killed, and comes back with its state under the same address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.contract import Program, Server, Tool, need, running
from servers.hdfs import Hdfs
from servers.s3 import S3


@pytest.mark.server
@pytest.mark.parametrize("kind", [Hdfs, S3])
def test_killed_and_restarted(kind: type[Server], tmp_path_factory: pytest.TempPathFactory) -> None:
    lives: Iterator[Server] = running(kind, tmp_path_factory)
    server = next(lives)
    address, pids = server.address, [program.pid for program in server.programs]
    server.kill()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    server.restart()
    assert server.address == address
    assert all(program.pid not in pids for program in server.programs)
    server.restart()  # what runs goes on
    pids = [program.pid for program in server.programs]
    lives.close()  # type: ignore[attr-defined]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_missing_tool_is_a_skip_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown(S3):
        tools = (Tool("no-such-program", "apt-get install it"),)

    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install it"):
        need(Unknown.missing(), "unknown")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install it"):
        need(Unknown.missing(), "unknown")


def test_a_program_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3:(?s:.*)no such broker"):
        Program("broker", ["sh", "-c", "echo no such broker; exit 3"], tmp_path, lambda: False).start()
