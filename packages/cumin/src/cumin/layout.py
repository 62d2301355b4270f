"""Where and how the rows of a build are written, as data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Layout:
    """How rows lie in files. It is kept in the manifest and enters no id: the content is the same."""

    compression: str = "zstd"
    rows_per_file: int = 8_388_608
    rows_per_group: int = 131_072

    def form(self) -> dict[str, Any]:
        """What a manifest keeps, and a unit's key is made from."""
        return {
            "compression": self.compression,
            "rows_per_file": self.rows_per_file,
            "rows_per_group": self.rows_per_group,
        }


@dataclass(frozen=True)
class Target:
    """Where and how an engine writes: a staging folder of its own, what to split and sort by, how to hash."""

    folder: Path
    partition_by: tuple[str, ...] = ()
    order_key: tuple[str, ...] = ()
    layout: Layout = field(default_factory=Layout)
    digits: int | None = None
    ordered: bool = False  # the order of the rows is part of what is asked for
