"""Position: what a loop has taken of its stream, so that a later run goes on exactly after it.

A rank takes its batches one after the other, and the even share gives every rank as many. So "after step n" means the
same at all ranks, and what they have taken by then is known by name (the names are the lineage: docs/protocol.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ghee.protocol.lineage import Lineage
from ghee.protocol.messages import BatchId, RankId


class Step(NamedTuple):
    """A place between two batches of a rank: `number` batches of `epoch` were taken since the run began or went on."""

    epoch: int
    number: int


@dataclass(frozen=True)
class Position:
    """What was taken at one edge: every epoch before `epoch`, and of this one what is named.

    `splits` are places in the epoch's order whose batches were all taken. `roots` are batches of the source, by split, with
    their rows, of which everything was taken. `batches` are single batches that came of other roots, and parts of such,
    where batches are cut anew.
    """

    epoch: int = 0
    splits: frozenset[int] = frozenset()
    roots: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    batches: frozenset[BatchId] = frozenset()

    def has_root(self, root: BatchId) -> bool:
        """Whether everything that came of a batch of the source was taken."""
        epoch, split, seq = root[:3]
        if epoch != self.epoch:
            return epoch < self.epoch
        return split in self.splits or seq in self.roots.get(split, ())

    def has(self, name: BatchId) -> bool:
        """Whether a batch was taken."""
        return self.has_root(name) or name in self.batches

    def parts(self) -> dict[BatchId, list[tuple[int, int]]]:
        """What was taken of single batches, by their names: ranges of rows, the first and the number of each.

        Of an edge where batches are cut anew; elsewhere the names are those of whole batches.
        """
        found: dict[BatchId, list[tuple[int, int]]] = {}
        for *name, skip, take in self.batches:
            found.setdefault(tuple(name), []).append((skip, take))
        return found

    def common(self, other: Position) -> Position:
        """What was taken here and there, as far as whole roots go: the rest must be made again for one of them."""
        first, second = sorted((self, other), key=lambda position: position.epoch)
        if first.epoch < second.epoch:
            return Position(first.epoch, first.splits, first.roots)
        roots = {
            split: {q: r for q, r in of.items() if second.has_root((first.epoch, split, q))}
            for split, of in first.roots.items()
        }
        for split, of in second.roots.items():
            if split in first.splits:
                roots[split] = dict(of)
        return Position(first.epoch, first.splits & second.splits, {split: of for split, of in roots.items() if of})

    def to_json(self) -> dict[str, Any]:
        """As it stands in the journal: splits as ranges, so that its size does not grow with the epoch."""
        return {
            "epoch": self.epoch,
            "splits": _ranges(self.splits),
            "roots": {str(split): {str(seq): rows for seq, rows in of.items()} for split, of in self.roots.items()},
            "batches": sorted(list(name) for name in self.batches),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Position:
        """The inverse of `to_json`."""
        return Position(
            data["epoch"],
            frozenset(number for first, last in data["splits"] for number in range(first, last + 1)),
            {int(split): {int(seq): rows for seq, rows in of.items()} for split, of in data["roots"].items()},
            frozenset(tuple(name) for name in data["batches"]),
        )


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


class Uneven(Exception):
    """The ranks of a loop did not call `checkpoint` after the same step. The message says which did what."""


class Tracker:
    """Follows what the ranks of one loop take.

    Names are kept for a round until every rank has taken its batch of it, then only while their root is under way: the
    memory does not grow with the epoch, and nothing is kept twice where no checkpoint is ever asked for.
    """

    def __init__(
        self,
        ranks: Iterable[RankId],
        lineage: Lineage,
        batches_of: Callable[[tuple[int, int]], int | None],
        start: Position,
    ) -> None:
        """`batches_of((epoch, split))` is the number of batches of a split, once it was read."""
        self._ranks = tuple(ranks)
        self._lineage, self._batches_of = lineage, batches_of
        self._start = start
        self._epoch = start.epoch
        self._at: dict[RankId, Step] = dict.fromkeys(self._ranks, Step(start.epoch, 0))
        self._ranks_in: Counter[int] = Counter({start.epoch: len(self._ranks)})
        self._rounds: dict[Step, list[BatchId]] = {}
        self._taken_at: Counter[Step] = Counter()
        self._open: Counter[BatchId] = Counter()
        self._batches: dict[BatchId, set[BatchId]] = {}
        self._whole: set[int] = set()
        self._prune_at = 1024
        self._asked: dict[RankId, tuple[int, Step]] = {}
        self._steps = 0

    def taken(self, rank: RankId, *names: BatchId) -> None:
        """The rank is done with a batch, or with one that consists of several parts.

        Raises Uneven if it has passed a step at which others made a checkpoint.
        """
        if len(self._ranks) == 1:  # no other rank to wait for
            for name in names:
                self._keep(name)
            return
        before, epoch = self._at[rank], names[0][0]
        at = self._move(rank, Step(epoch, before.number + 1 if before.epoch == epoch else 1))
        self._check_not_past(rank, at)
        self._rounds.setdefault(at, []).extend(names)
        self._taken_at[at] += 1
        for name in names:
            self._open[name[:3]] += 1
        if self._taken_at[at] == len(self._ranks) and not self._asked:
            self._fold(at)

    def epoch_done(self, rank: RankId, epoch: int) -> None:
        """The rank has seen the end of an epoch. Raises Uneven as `taken` does."""
        self._check_not_past(rank, self._move(rank, Step(epoch + 1, 0)))
        self._close_epochs()

    def _move(self, rank: RankId, at: Step) -> Step:
        before, self._at[rank] = self._at[rank].epoch, at
        if before != at.epoch:
            self._ranks_in[at.epoch] += 1
            self._ranks_in[before] -= 1
            if not self._ranks_in[before]:
                del self._ranks_in[before]
        return at

    def _close_epochs(self) -> None:
        epoch = min(self._ranks_in)
        if epoch > self._epoch and not self._asked:
            self._fold(Step(epoch, 0))
            self._epoch = epoch
            self._batches.clear()
            self._whole.clear()

    @property
    def is_asked(self) -> bool:
        """Whether some rank waits for a checkpoint that others have not made their part of."""
        return bool(self._asked)

    @property
    def waiting(self) -> tuple[list[RankId], list[RankId]]:
        """The ranks that wait for a checkpoint to be whole, and those that they wait for."""
        return list(self._asked), [rank for rank in self._ranks if rank not in self._asked] if self._asked else []

    def given(self, rank: RankId, steps: int) -> None:
        """The rank's function has been given so many batches. Raises Uneven if others wait for a checkpoint before that.

        `taken` finds out the same once the function is done with the batch, which never is where it waits for those others
        in a collective.
        """
        if self._asked and rank not in self._asked and steps > self._steps:
            other, (_, step) = next(iter(self._asked.items()))
            raise Uneven(self._past(rank, Step(step.epoch, step.number + steps - self._steps), other, step))

    def asked(self, rank: RankId, number: int, step: Step, steps: int = 0) -> Position | None:
        """The rank has made its part of checkpoint `number` after `step`. The position, once all ranks have.

        `steps` counts the rank's batches since the run's very beginning.
        """
        if self._asked:
            other, said = next(iter(self._asked.items()))  # one stands for all: whoever says otherwise ends the run
            if said != (number, step):
                raise Uneven(
                    f"rank {rank.index} asked for checkpoint {number} after batch {step.number} of epoch {step.epoch}, "
                    f"rank {other.index} for checkpoint {said[0]} after batch {said[1].number} of epoch {said[1].epoch}: "
                    + _ADVICE
                )
        else:  # whoever goes on later is found out by `taken`
            for other, at in self._at.items():
                if at > step:
                    raise Uneven(self._past(other, at, rank, step))
        self._asked[rank] = (number, step)
        self._steps = steps
        if len(self._asked) < len(self._ranks):
            return None
        self._asked.clear()
        self._close_epochs()
        self._fold(step)
        return self._position()

    def _check_not_past(self, rank: RankId, at: Step) -> None:
        if self._asked:
            other, (_, step) = next(iter(self._asked.items()))
            if at > step:
                raise Uneven(self._past(rank, at, other, step))

    @staticmethod
    def _past(rank: RankId, at: Step, other: RankId, step: Step) -> str:
        return (
            f"rank {rank.index} went on to batch {at.number} of epoch {at.epoch} without the checkpoint that rank "
            f"{other.index} asked for after batch {step.number} of epoch {step.epoch}: {_ADVICE}"
        )

    def _fold(self, upto: Step) -> None:
        """Nobody can ask for a position before `upto` any more."""
        for at in [at for at in self._rounds if at <= upto]:
            del self._taken_at[at]
            for name in self._rounds.pop(at):
                root = name[:3]
                self._open[root] -= 1
                if not self._open[root]:
                    del self._open[root]
                self._keep(name)

    def _keep(self, name: BatchId) -> None:
        """The batch is before whatever position can be asked for; once its root is over, that is kept in mind instead."""
        self._batches.setdefault(name[:3], set()).add(name)
        if len(self._batches) > self._prune_at:
            self._batches = {root: names for root, names in self._batches.items() if not self._is_over(root)}
            self._prune_at = 1024 + 2 * len(self._batches)

    def _is_over(self, root: BatchId) -> bool:
        """Whether everything that came of the root was taken in the rounds that are folded."""
        return root not in self._open and self._lineage.is_closed(root)

    def _position(self) -> Position:
        epoch = self._epoch
        start = self._start if self._start.epoch == epoch else Position(epoch)
        roots = {split: dict(of) for split, of in start.roots.items()}
        for (at, split), of in self._lineage.finished.items():
            if split in self._whole:
                roots.pop(split, None)
            if at != epoch or split in self._whole or split in start.splits:
                continue
            over = {seq: rows for seq, rows in of.items() if self._is_over((epoch, split, seq))}
            if len(over) == self._batches_of((epoch, split)):
                self._whole.add(split)
                roots.pop(split, None)
            elif over:
                roots.setdefault(split, {}).update(over)
        splits = start.splits | self._whole
        taken = [name for names in self._batches.values() for name in names]
        position = Position(epoch, frozenset(splits), roots)
        return Position(
            epoch, position.splits, roots,
            frozenset(name for name in (*start.batches, *taken) if name[0] == epoch and not position.has_root(name)),
        )  # fmt: skip


_ADVICE = (
    "all ranks of a loop call ghee.checkpoint (or batches.state) after the same batch; write ghee.checkpoint(value) where "
    "you have `if ghee.rank() == 0: ghee.checkpoint(value)`, for every rank keeps a value of its own"
)
