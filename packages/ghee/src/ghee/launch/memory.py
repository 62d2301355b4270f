"""Whether the kernel has killed for want of memory."""

from __future__ import annotations

import re
from pathlib import Path


def oom_kills() -> int:
    """How many processes of this cgroup the kernel has killed for want of memory; 0 where nothing counts them."""
    total = 0
    for path in _counters():
        try:
            found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
        except OSError:
            continue
        total += int(found[1]) if found else 0
    return total


def _counters() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found.append(Path("/sys/fs/cgroup" + path, "memory.events"))
        elif "memory" in controllers.split(","):
            found.append(Path("/sys/fs/cgroup/memory" + path, "memory.oom_control"))
    return found
