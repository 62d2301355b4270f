"""What a rank is given to do, as it travels from the driver to the rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["read", "map", "loop", "write"]


@dataclass(frozen=True)
class RankTask:
    """A stage's function, and what it works on. Travels by cloudpickle.

    `payload` is the source for a reading stage and the sink for a writing one; `function` is None where there is none.
    `splits` are the source's, for a reading stage.
    """

    kind: Kind
    stage: str
    size: int
    function: Callable[..., object] | None
    payload: object
    splits: list[object]
    epochs: int
    folder: str
    gpus: int = 0
