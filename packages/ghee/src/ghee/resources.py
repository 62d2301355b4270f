"""Resources of a stage: cpus, memory, gpus, replicas. Parsed and checked before anything starts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ghee.errors import ResourceError

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_MEMORY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]i?)?[bB]?\s*")


_AUTO = re.compile(r"\s*auto\(\s*([0-9]+)\s*,\s*([0-9]+)\s*\)\s*")


@dataclass(frozen=True)
class Auto:
    """A number of replicas that follows what is needed. Made by `ghee.auto`."""

    min: int
    max: int

    def __str__(self) -> str:
        return f"auto({self.min}, {self.max})"


def auto(min: int, max: int) -> Auto:
    """As many replicas of a map as its trainer needs, from `min` to `max`: `.map(preprocess, replicas=ghee.auto(1, 8))`.

    The run begins with `min`. The number follows how long the trainer waits and what a replica makes, up and down, in one
    step; the report and the journal say why it changed. Raises ResourceError where the bounds mean nothing.
    """
    for name, value in (("min", min), ("max", max)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ResourceError(
                f"ghee.auto({min!r}, {max!r}): {name}={value!r}, expected a whole number of at least 1, "
                "such as ghee.auto(1, 8)"
            )
    if min > max:
        raise ResourceError(
            f"ghee.auto({min}, {max}): min is larger than max; the bounds are (least, most), such as ghee.auto({max}, {min})"
        )
    return Auto(min, max)


@dataclass(frozen=True)
class Resources:
    """What one replica of a stage gets.

    `cpus` may be a fraction; `memory` is in bytes, None for as much as there is; `ranks` is the number of MPI ranks in
    each replica; `image` is the Docker image on a cluster. Where the number of replicas follows what is needed (`auto`),
    `replicas` is the most.
    """

    replicas: int = 1
    ranks: int = 1
    cpus: float = 1.0
    memory: int | None = None
    gpus: int = 0
    image: str | None = None
    auto: Auto | None = None

    @property
    def size(self) -> int:
        """Ranks of the stage, over all replicas."""
        return self.replicas * self.ranks

    @property
    def asked(self) -> int | Auto:
        """The replicas as the user asked for them."""
        return self.auto or self.replicas

    def __str__(self) -> str:
        parts = [f"replicas={self.asked}"]
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
    fixed: str = "",
) -> Resources:
    """Check and convert what a user wrote. Raises ResourceError that lists every problem at once.

    `fixed` says why the number of replicas cannot follow what is needed, where it cannot.
    """
    problems: list[str] = []
    follows: Auto | None = None
    if isinstance(replicas, str) and (match := _AUTO.fullmatch(replicas)):
        replicas = auto(int(match[1]), int(match[2]))
    if isinstance(replicas, Auto) and fixed:
        problems.append(f"replicas={replicas}: {fixed}; give a number, such as replicas={replicas.max}")
        replicas = 1
    elif isinstance(replicas, Auto):
        follows = replicas
        replicas = follows.max

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
        follows,
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
