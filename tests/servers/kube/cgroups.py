"""The cgroup that holds everything of one test cluster, made before it starts and removed after it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def _hierarchies() -> list[Path]:
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [folder for folder in sorted(ROOT.iterdir()) if folder.is_dir() and (folder / "cgroup.procs").exists()]


def make(name: str) -> None:
    for hierarchy in _hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        # Version 1 gives a new cpuset no processors and no memory: nothing could run in it.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            source = hierarchy / setting
            if source.exists() and not (ROOT / "cgroup.controllers").exists():
                (folder / setting).write_text(source.read_text())
        if hierarchy == ROOT:
            controllers = (ROOT / "cgroup.controllers").read_text().split()
            (ROOT / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in controllers))


def remove(name: str) -> None:
    """Removes the cgroup and those below it, and raises OSError where one still holds a process."""
    for hierarchy in _hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            os.rmdir(folder)
