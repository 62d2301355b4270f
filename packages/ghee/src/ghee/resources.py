"""Resources of a stage: cpus, memory, gpus, replicas. Parsed and checked before anything starts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ghee.errors import ResourceError

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_MEMORY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]i?)?[bB]?\s*")


@dataclass(frozen=True)
class Resources:
    """What one replica of a stage gets.

    `cpus` may be a fraction; `memory` is in bytes, None for as much as there is; `ranks` is the number of MPI ranks in
    each replica; `image` is the Docker image on a cluster.
    """

    replicas: int = 1
    ranks: int = 1
    cpus: float = 1.0
    memory: int | None = None
    gpus: int = 0
    image: str | None = None

    @property
    def size(self) -> int:
        """Ranks of the stage, over all replicas."""
        return self.replicas * self.ranks

    def __str__(self) -> str:
        parts = [f"replicas={self.replicas}"]
        parts += [f"ranks={self.ranks}"] if self.ranks != 1 else []
        parts += [f"cpus={self.cpus:g}"]
        parts += [f"memory={format_bytes(self.memory)}"] if self.memory is not None else []
        parts += [f"gpus={self.gpus}"] if self.gpus else []
        parts += [f"image={self.image}"] if self.image else []
        return ", ".join(parts)


def parse_resources(
    *,
    replicas: object = 1,
    ranks: object = 1,
    cpus: object = 1,
    memory: object = None,
    gpus: object = 0,
    image: object = None,
) -> Resources:
    """Check and convert what a user wrote. Raises ResourceError that lists every problem at once."""
    problems: list[str] = []

    def whole(name: str, value: object, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(f"{name}={value!r}: expected a whole number of at least {least}, such as {name}={max(least, 2)}")
            return least
        return value

    def cpu(value: object) -> float:
        if isinstance(value, str) and re.fullmatch(r"[0-9]+m", value):
            value = int(value[:-1]) / 1000
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            problems.append(
                f'cpus={value!r}: expected a positive number or millicores, such as cpus=2, cpus=0.5 or cpus="500m"'
            )
            return 1.0
        return float(value)

    def bytes_of(value: object) -> int | None:
        try:
            return None if value is None else parse_bytes(value)
        except ResourceError as error:
            problems.append(f"memory={value!r}: {error}")
            return None

    if image is not None and (not isinstance(image, str) or not image.strip() or " " in image):
        problems.append(f'image={image!r}: expected the name of a Docker image, such as image="team/train:1.2"')
    found = Resources(
        whole("replicas", replicas, 1),
        whole("ranks", ranks, 1),
        cpu(cpus),
        bytes_of(memory),
        whole("gpus", gpus, 0),
        image if isinstance(image, str) else None,
    )
    if problems:
        raise ResourceError("; ".join(problems))
    return found


def parse_bytes(value: object) -> int:
    """A number of bytes: an int, or text such as "2Gi" (2 x 2^30), "2GB" or "2G" (2 x 10^9).

    Raises ResourceError for anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = _MEMORY.fullmatch(value) if isinstance(value, str) else None
    if match:
        unit = (match[2] or "").replace("K", "k") if match[2] in ("K",) else match[2] or ""
        size = int(float(match[1]) * _UNITS[unit])
        if size > 0:
            return size
    raise ResourceError('expected a number of bytes or a size such as "512Mi", "2Gi" (binary) or "2GB" (decimal)')


def format_bytes(size: float) -> str:
    """A size for people: "1.5Gi"."""
    for unit in ("", "Ki", "Mi", "Gi"):
        if abs(size) < 1024:
            return f"{size:.3g}{unit}"
        size /= 1024
    return f"{size:.3g}Ti"
