"""What lets the workers of a test run share one cluster."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster  # that environment has tests/ on its path


def test_who_waits_to_be_alone_comes_before_who_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from servers.kube import held

    monkeypatch.setenv(held.VARIABLE, str(tmp_path))
    order: list[str] = []

    def enter(name: str, alone: bool) -> None:
        with held.turn(alone=alone):
            order.append(name)

    with held.turn(alone=False):
        enter("beside", False)  # two that break nothing run at the same time
        first = threading.Thread(target=enter, args=("alone", True))
        first.start()
        assert any(_is_locked(tmp_path / "gate") for _ in iter(int, 1))  # until it waits
        second = threading.Thread(target=enter, args=("later", False))
        second.start()
        assert order == ["beside"]
    first.join()
    second.join()
    assert order == ["beside", "alone", "later"]


def _is_locked(path: Path) -> bool:
    with open(path, "w") as tried:
        try:
            fcntl.flock(tried, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_an_environment_that_pods_would_not_see_is_refused_before_anything_starts() -> None:
    from servers.kube import images

    images.check_place([Path("/var/tmp/clone/.tox/cluster")])
    with pytest.raises(RuntimeError, match=r"/tmp/clone/\.tox/cluster is in /tmp.*Clone the repository.*elsewhere"):
        images.check_place([Path("/usr"), Path("/tmp/clone/.tox/cluster")])
