"""What ranks tell the driver (events) and what the driver tells ranks (actions). Data only.

A batch is named by the way it came to be: `(epoch, split, seq, out, out, ...)`: the epoch, the split it was read from,
its place in the split, and one index per function it has passed through. The name is the lineage: a batch that was
lost with its rank is made again under the same name, so it can never be counted twice. Where batches are cut anew, a part
of one is named like it, and by the rows that were left out and those that were taken: `(*name, skip, take)`.
"""

from __future__ import annotations

from collections.abc import Set
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ghee.protocol.position import Position

BatchId = tuple[int, ...]


class RankId(NamedTuple):
    """A rank of a stage. `index` counts over all replicas of the stage; `life` grows when a rank is started again."""

    stage: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a rank
    life: int = 0


class Cause(StrEnum):
    """Why a run cannot go on, set where it is known: the type of the error follows from it, never from a sentence."""

    USER = "user"  # a function raised
    CHECKPOINT = "checkpoint"  # the ranks of a loop do not agree about one
    LEDGER = "ledger"  # rows do not balance
    TAIL = "tail"  # batches do not divide by the ranks, and that was to be an error
    KILLED = "killed"  # a rank's process, its MPI world or its machine was taken away
    EXITED = "exited"  # a rank's process ended by itself
    KILLED_AT_START = "killed at its start"  # the same two, before the rank had joined the run
    EXITED_AT_START = "exited at its start"

    @property
    def is_kill(self) -> bool:
        """Whether it comes from outside: the same work, begun once more, may well go through."""
        return self in (Cause.KILLED, Cause.KILLED_AT_START)


class Tail(StrEnum):
    """What becomes of the batches of an epoch that do not divide by the ranks of a loop stage."""

    DROP = "drop"  # they are not delivered; reported
    PAD = "pad"  # the ranks without one get a batch of no rows
    REPEAT = "repeat"  # the ranks without one get a copy of one that another rank got; reported
    ERROR = "error"  # the run fails


class WhenSlow(StrEnum):
    """What becomes of a batch that a branch cannot take yet, when every other branch has taken it."""

    WAIT = "wait"  # it stays where it was made, which holds the other branches up
    SKIP = "skip"  # it goes past this branch; counted as skipped
    REREAD = "reread"  # it goes past, and is made again for this branch alone when there is room for it


# ── events: a rank tells the driver ──────────────────────────────────────────────────────────────────────────────────


class Joined(NamedTuple):
    """The rank runs and listens; it is sent its task in return."""

    rank: RankId
    address: str
    pid: int


class Idle(NamedTuple):
    """A reading rank has nothing to read and asks for a split."""

    rank: RankId


class Made(NamedTuple):
    """A batch lies in the rank's outbox, ready to be sent."""

    rank: RankId
    id: BatchId
    rows: int
    size: int


class Finished(NamedTuple):
    """The rank's function is done with an input: how many batches and rows came of it. It returns the input's credit.

    `redo`: the input had been at a rank that died; no count of an epoch at this rank includes it.
    """

    rank: RankId
    id: BatchId
    rows_in: int
    rows_out: int
    outputs: int
    redo: bool = False


class SplitDone(NamedTuple):
    """A split was read to its end: `rows` rows in `batches` batches, each of them finished.

    `partial`: only some batches were asked for.
    """

    rank: RankId
    epoch: int
    split: int
    batches: int
    rows: int
    partial: bool = False


class GaveBack(NamedTuple):
    """The answer to `GiveBack`: what is left of the split is for another rank. What was made of it stays made."""

    rank: RankId
    epoch: int
    split: int


class Accepted(NamedTuple):
    """A batch has arrived at the rank it was sent to."""

    rank: RankId
    id: BatchId


class Consumed(NamedTuple):
    """A loop or a sink is done with a batch; its credit is free again."""

    rank: RankId
    id: BatchId


class EpochDone(NamedTuple):
    """A consumer has seen the end of an epoch, and says what it counted itself.

    `batches` and `rows` were delivered, `skipped` rows were left unread by the loop, `tail` rows were dropped by the
    tail rule, `padded` and `repeated` batches were delivered on top of the source's.
    """

    rank: RankId
    epoch: int
    batches: int
    rows: int
    skipped: int
    tail: int
    padded: int
    repeated: int
    repeated_rows: int


class Checkpointed(NamedTuple):
    """A loop's rank has made its part of checkpoint `number` after `step` batches of `epoch`, and waits for `Recorded`.

    `steps` counts its batches since the run's very beginning; `value`: it has saved something of its own.
    """

    rank: RankId
    number: int
    epoch: int
    step: int
    steps: int = 0
    value: bool = False


class Stored(NamedTuple):
    """A sink's rank has closed its files: `parts` hold what it has consumed since it said so last, all of one epoch."""

    rank: RankId
    epoch: int
    parts: tuple[Any, ...]


class Returned(NamedTuple):
    """The rank's function has returned; `result` is its pickled value. After that the rank takes no batch any more."""

    rank: RankId
    result: bytes


class Failed(NamedTuple):
    """The rank's function has raised; `error` is pickled (see `ghee.failure`). `again`: the run may begin again."""

    rank: RankId
    error: bytes
    again: bool = False


class Recalled(NamedTuple):
    """The rank's answer to `Recall`: whatever it had accepted before, it has said so; nothing else will be accepted."""

    rank: RankId
    id: BatchId


class Died(NamedTuple):
    """The rank's process is gone, and with it its whole world; told by the launcher, never by the rank.

    `cause` is one of a rank's end. What ended by itself would do so again, and is not started again.
    """

    rank: RankId
    reason: str
    cause: Cause = Cause.KILLED


# ── actions: the driver tells a rank ─────────────────────────────────────────────────────────────────────────────────


class Read(NamedTuple):
    """Read the split that is the `split`-th of the epoch; of its batches only those in `only`, and none in `skip`.

    `redo`: it was read, or begun, before by a rank that died or left. `now`: in the middle of the split that the rank is
    reading, which comes later, as soon as that has to wait for room. `what` is the split itself, of an endless source,
    whose splits no rank knows beforehand.
    """

    rank: RankId
    epoch: int
    split: int
    skip: Set[int] = frozenset()
    only: frozenset[int] | None = None
    redo: bool = False
    now: bool = False
    what: object = None


class GiveBack(NamedTuple):
    """The rank is to leave: stop reading the split after the batch at hand and say `GaveBack`, unless it is done with it."""

    rank: RankId
    epoch: int
    split: int


class Send(NamedTuple):
    """Send the batch to another rank, as the `place`-th of its epoch there. `last`: forget it then.

    `fill` is set where the batch stands in for one that the tail does not have. Where batches are cut anew, this is part
    `index` of the one at the place: `take` rows after the first `skip`, or all of them where that is None.
    """

    rank: RankId
    id: BatchId
    to: RankId
    place: int
    last: bool
    fill: Tail | None = None
    redo: bool = False
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which nobody wants of an action
    skip: int = 0
    take: int | None = None


class Discard(NamedTuple):
    """Throw a batch of the outbox away."""

    rank: RankId
    id: BatchId


class Recall(NamedTuple):
    """The maker of a batch that was to come has died: take it no more if it has not arrived, and say `Recalled`."""

    rank: RankId
    id: BatchId
    sender: RankId


class Record(NamedTuple):
    """Told to the driver itself: write down that checkpoint `number` of a loop is whole, and what it has taken by then."""

    stage: int
    number: int
    steps: int
    value: bool
    position: Position


class Keep(NamedTuple):
    """Parts of a sink are to be recorded, together with the position after them (None where it has none)."""

    stage: int
    parts: tuple[Any, ...]
    position: Position | None


class Recorded(NamedTuple):
    """Checkpoint `number` is written down: go on."""

    rank: RankId
    number: int


class Restart(NamedTuple):
    """Told to the driver itself: start the world of these ranks again, under these names."""

    ranks: tuple[RankId, ...]
    reason: str


class Start(NamedTuple):
    """Told to the driver itself: start a world that joins late."""

    ranks: tuple[RankId, ...]


class Left(NamedTuple):
    """Told to the driver itself: a world that was to leave has nothing left that anybody needs. Stop it."""

    ranks: tuple[RankId, ...]


class Release(NamedTuple):
    """The first `rounds` batches of the epoch may be delivered: every rank of the world has as many."""

    rank: RankId
    epoch: int
    rounds: int


class EpochEnd(NamedTuple):
    """The epoch has exactly `batches` batches for this rank; `sent` were sent to it, the tail among them.

    `commit` is what a sink with transactions commits with them: the driver's, nothing that the rules look at. `parts`:
    where batches are cut anew, of how many parts those consist that were sent.
    """

    rank: RankId
    epoch: int
    batches: int
    sent: int
    commit: object = None
    parts: int = 0


class StreamEnd(NamedTuple):
    """The stream has `epochs` epochs; there will be no further one."""

    rank: RankId
    epochs: int


class EpochBalanced(NamedTuple):
    """Told to the driver itself: the ledger of an epoch balances at a stage."""

    stage: int
    epoch: int


class GaveUp(NamedTuple):
    """Told to the driver itself: a branch has failed, and the run goes on without it."""

    stage: int
    cause: Fail


class Finish(NamedTuple):
    """Told to the driver itself: every consumer has returned; stop all ranks."""


class Fail(NamedTuple):
    """Told to the driver itself: the run cannot go on. `again`: but from its checkpoints, with all ranks started anew."""

    cause: Cause
    message: str
    rank: RankId | None = None
    error: bytes | None = None
    again: bool = False


Event = (
    Joined | Idle | Made | Finished | SplitDone | GaveBack | Accepted | Recalled | Consumed | EpochDone | Checkpointed
    | Stored | Returned | Failed | Died
)  # fmt: skip
Action = (
    Read | GiveBack | Send | Discard | Recall | Release | EpochEnd | StreamEnd | EpochBalanced | Record | Keep | Recorded
    | Restart | Start | Left | GaveUp | Finish | Fail
)  # fmt: skip
