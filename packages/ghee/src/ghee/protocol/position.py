"""Position: what a loop has taken of its stream, so that a later run goes on exactly after it.

A rank takes its batches one after the other, and the even share gives every rank as many. So "after step n" means the
same at all ranks, and what they have taken by then is known by name (the names are the lineage: docs/protocol.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ghee.protocol.lineage import Lineage
from ghee.protocol.messages import BatchId, RankId
from ghee.protocol.spans import Spans
from ghee.protocol.taken import Taken


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
    splits: Set[int] = frozenset()
    roots: Mapping[int, Spans] = field(default_factory=dict)
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
            split: of if split in second.splits else of.common(second.roots.get(split, Spans()))
            for split, of in first.roots.items()
        }
        for split, of in second.roots.items():
            if split in first.splits:
                roots[split] = of
        return Position(first.epoch, first.splits & second.splits, {split: of for split, of in roots.items() if of})

    def to_json(self) -> dict[str, Any]:
        """As it stands in the journal: by ranges, so that its size does not grow with the epoch."""
        return {
            "epoch": self.epoch,
            "splits": [[first, last] for first, last, _ in Spans(self.splits).spans],
            "roots": {str(split): [list(span) for span in of.spans] for split, of in self.roots.items()},
            "batches": sorted(list(name) for name in self.batches),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Position:
        """The inverse of `to_json`."""
        return Position(
            data["epoch"],
            Spans.of((first, last, 0) for first, last in data["splits"]),
            {int(split): Spans.of((first, last, rows) for first, last, rows in of) for split, of in data["roots"].items()},
            frozenset(tuple(name) for name in data["batches"]),
        )


class Uneven(Exception):
    """The ranks of a loop did not call `checkpoint` after the same step. The message says which did what."""


class Tracker:
    """Follows what the ranks of one loop take.

    Names are kept for a round until every rank has taken its batch of it, then only while their root is under way; of
    the roots that are over, ranges are kept: the memory does not grow with the epoch.
    """

    def __init__(self, ranks: Iterable[RankId], lineage: Lineage, start: Position) -> None:
        self._ranks = tuple(ranks)
        self._start = start
        self._epoch = start.epoch
        self._at: dict[RankId, Step] = dict.fromkeys(self._ranks, Step(start.epoch, 0))
        self._ranks_in: Counter[int] = Counter({start.epoch: len(self._ranks)})
        self._rounds: dict[Step, list[BatchId]] = {}
        self._taken_at: Counter[Step] = Counter()
        self._open: Counter[BatchId] = Counter()
        self._batches: dict[BatchId, set[BatchId]] = {}
        self._rows: dict[BatchId, int] = {}
        """Of roots that are closed, while a batch of theirs lies in a round that is not folded."""
        self._taken = {start.epoch: Taken(start.splits, start.roots)}
        self._is_given_up = False
        self._asked: dict[RankId, tuple[int, Step]] = {}
        self._steps = 0
        lineage.watch.append(self._closed)

    def taken(self, rank: RankId, *names: BatchId) -> None:
        """The rank is done with a batch, or with one that consists of several parts.

        Raises Uneven if it has passed a step at which others made a checkpoint.
        """
        if self._is_given_up:
            return
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
            self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        """Everything of the epochs before was taken."""
        self._epoch = epoch
        self._batches.clear()
        self._taken = {later: taken for later, taken in self._taken.items() if later >= epoch}

    def give_up(self) -> None:
        """A rank has returned: there will be no further position, and nothing more is to be kept for one."""
        self._is_given_up = True
        for kept in (self._rounds, self._open, self._batches, self._rows, self._taken):
            kept.clear()

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
                self._settled(name)

    def _settled(self, name: BatchId) -> None:
        """The batch is before whatever position can be asked for; once its root is over, that is kept in mind instead."""
        root = name[:3]
        self._keep(name)
        self._open[root] -= 1
        if not self._open[root]:
            del self._open[root]
            if root in self._rows:
                self._over(root, self._rows.pop(root))

    def _keep(self, name: BatchId) -> None:
        self._batches.setdefault(name[:3], set()).add(name)

    def read(self, split: tuple[int, int], batches: int) -> None:
        """A split was read to its end, and has so many batches."""
        if split[0] >= self._epoch and not self._is_given_up:
            self._taken_of(split[0]).read(split[1], batches)

    def _closed(self, root: BatchId, rows: int) -> None:
        """Everything that came of a root of so many rows was consumed or dropped, everywhere."""
        if root in self._open:
            self._rows[root] = rows
        else:
            self._over(root, rows)

    def _over(self, root: BatchId, rows: int) -> None:
        """Everything that came of the root was taken in the rounds that are folded."""
        self._batches.pop(root, None)
        if root[0] >= self._epoch and not self._is_given_up:
            self._taken_of(root[0]).add(root[1], root[2], rows)

    def _taken_of(self, epoch: int) -> Taken:
        if epoch not in self._taken:
            self._taken[epoch] = Taken()
        return self._taken[epoch]

    def _position(self) -> Position:
        epoch, taken = self._epoch, self._taken_of(self._epoch)
        names = [name for names in self._batches.values() for name in names]
        if self._start.epoch == epoch:
            names += self._start.batches
        return Position(
            epoch, Spans(taken.splits), {split: Spans(of) for split, of in taken.roots.items()},
            frozenset(name for name in names if name[0] == epoch and not taken.has(*name[1:3])),
        )  # fmt: skip


_ADVICE = (
    "all ranks of a loop call ghee.checkpoint (or batches.state) after the same batch; write ghee.checkpoint(value) where "
    "you have `if ghee.rank() == 0: ghee.checkpoint(value)`, for every rank keeps a value of its own"
)
