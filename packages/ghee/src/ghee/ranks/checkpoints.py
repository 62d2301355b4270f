"""Checkpoints of a loop: what a rank keeps beside its place in the stream, as files in the run's folder."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghee import context, pickling
from ghee.errors import CheckpointError

KEPT = 2
"""Checkpoints with values that are kept: the last, and the one before."""


@dataclass(frozen=True)
class Checkpoints:
    """The files of one loop stage: `checkpoints/STAGE/NUMBER/rank-R` below the run's folder.

    The folder is this user's alone (mode 0700), so what is unpickled from it is what this user's run has put there.
    `number` is the checkpoint that the run goes on from, 0 if it begins.
    """

    folder: Path
    index: int
    stage: str
    number: int = 0

    @property
    def run(self) -> str:
        """The run's id."""
        return self.folder.name

    def save(self, number: int, rank: int, value: object) -> None:
        """Write a rank's value, whole or not at all. Raises CheckpointError for what cannot be pickled or written."""
        if not self.folder.is_dir():
            raise CheckpointError(
                f"the run's folder {self.folder} is not on this rank's machine, so the value of a checkpoint would be lost "
                "with it: give the run a folder that all Pods share (ghee.Kubernetes(home=..., pods={'volumes': [...]}))"
            )
        path = self._path(number, rank)
        unfinished = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                pickling.dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(path)
        except OSError as error:
            raise CheckpointError(f"checkpoint {number} cannot be written to {path.parent}: {error}") from error
        except Exception as error:
            raise CheckpointError(
                f"the value of checkpoint {number}, a {type(value).__name__}, cannot be pickled: {error}; "
                "give numbers, arrays, tensors, a state_dict, or dicts and lists of these"
            ) from error

    def load(self, rank: int) -> Any:
        """What a rank has saved, or rank 0 where there were fewer ranks. None at a beginning."""
        own, first = self._path(self.number, rank), self._path(self.number, 0)
        path = own if own.exists() else first
        if not path.exists():
            return None
        with path.open("rb") as file:
            return pickle.load(file)

    def has_value(self) -> bool:
        """Whether the files of the checkpoint are there."""
        return self._path(self.number, 0).exists()

    def forget_old(self, number: int) -> None:
        """Checkpoint `number` is whole and written down: remove what came long before it."""
        numbers = sorted(int(path.name) for path in self._root.iterdir() if path.name.isdigit() and int(path.name) <= number)
        for old in numbers[:-KEPT]:
            shutil.rmtree(self._root / str(old), ignore_errors=True)

    @property
    def _root(self) -> Path:
        return self.folder / "checkpoints" / str(self.index)

    def _path(self, number: int, rank: int) -> Path:
        return self._root / str(number) / f"rank-{rank}"


def checkpoint(value: object) -> None:
    """In a loop: keep `value` (a state_dict, say) together with the place in the stream, after the batch given out last.

    When a rank of the loop is killed later, or the whole run is and is resumed, the loop's function is called again:
    `ghee.restored()` gives the value back, and the stream begins with exactly the next batch. All ranks of the loop call
    this after the same batch, each with its own value. Returns once all of it is on disk.

    Raises CheckpointError outside of a loop, for None, for what cannot be pickled, and where the ranks do not agree.

    Example:
        def train(batches):
            model.load_state_dict(ghee.restored() or model.state_dict())
            for epoch in batches.epochs():
                for batch in epoch:
                    step(model, batch)
                ghee.checkpoint(model.state_dict())
    """
    if value is None:
        raise CheckpointError("checkpoint(None) keeps nothing: give what the loop needs to go on, or call batches.state()")
    _stream("checkpoint").checkpoint(value)


def restored() -> Any:
    """In a loop: what this rank gave to the checkpoint that the run goes on from; None if it begins.

    With more ranks than then, the new ones get what rank 0 gave. Raises CheckpointError outside of a loop.
    """
    return _stream("restored").restored


def _stream(what: str) -> Any:
    place = context.current()
    if place is None or not place.stream:
        raise CheckpointError(f"ghee.{what}() is for the function of a loop stage, while it runs")
    return place.stream[-1]
