"""What the kernel counted about the memory of this container (control groups, version 1 and 2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """``kills``: processes of this container that were killed for memory. Bytes; 0 where the kernel does not say."""

    kills: int
    peak: int
    limit: int


def _number(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def _count(path: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name} (\d+)$", path.read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def read_memory(root: Path = Path("/sys/fs/cgroup")) -> Memory:
    """Counts of the container's own control group, which is the root as the container sees it."""
    if (root / "cgroup.controllers").exists():
        return Memory(
            _count(root / "memory.events", "oom_kill"), _number(root / "memory.peak"), _number(root / "memory.max")
        )
    first = root / "memory"
    return Memory(
        _count(first / "memory.oom_control", "oom_kill"),
        _number(first / "memory.max_usage_in_bytes"),
        _number(first / "memory.limit_in_bytes"),
    )
