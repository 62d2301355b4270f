"""What a loop is given: the stream of batches, epoch by epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from ghee.protocol import messages as m
from ghee.protocol.delivery import End, StreamEnded
from ghee.protocol.messages import Tail
from ghee.ranks.checkpoints import Checkpoints
from ghee.transfer.manager import TransferManager
from ghee.transfer.wire import Arrived


class Batches:
    """The batches of one rank of a loop stage.

    Example:
        def train(batches):
            for epoch in batches.epochs():
                for batch in epoch:
                    step(batch)

    Iterating over the stream itself gives the batches of all epochs in a row. All ranks of the stage get the same number
    of batches in every epoch. A batch belongs to the function once it was given out; leaving an epoch early (`break`)
    passes over the rest of it, which the report counts as skipped.
    """

    def __init__(
        self,
        manager: TransferManager,
        at: Callable[[tuple[int, ...] | None], None],
        checkpoints: Checkpoints,
    ) -> None:
        """`at` is called with the name of each batch that is given out, so that an error can say where it happened."""
        self._checkpoints = checkpoints
        self._number, self._before = manager.settings.number, manager.settings.step
        self._taken = self._taken_in_epoch = 0
        self._given, self._since = False, 0.0
        self._manager = manager
        self._at = at
        self._ended = False
        self.epoch = manager.settings.epoch
        """The number of the epoch that is being read."""
        self._counts = _Counts()
        self._held: Arrived | None = None

    def epochs(self) -> Iterator[Epoch]:
        """The epochs that are left; each is to be iterated over once."""
        while not self._ended:
            epoch = Epoch(self)
            if not epoch._begin():
                return
            yield epoch
            epoch._pass_over()

    def __iter__(self) -> Iterator[Any]:
        for epoch in self.epochs():
            yield from epoch

    def state(self) -> dict[str, Any]:
        """The place in the stream, after the batch that was given out last: small, of constant size, plain JSON.

        `ghee.run(pipeline, resume=state)` begins with the batch after it. All ranks of the loop call this after the same
        batch; it returns once the place is written down in the run's journal. `step` is the number of batches that each
        rank was given since the run's very beginning.

        Raises CheckpointError where the ranks do not agree (in the driver, which ends the run).
        """
        self._mark(None)
        place = self._checkpoints
        return {
            "run": place.run, "stage": place.stage, "checkpoint": self._number, "epoch": self.epoch,
            "step": self._before + self._taken,
        }  # fmt: skip

    def checkpoint(self, value: object) -> None:
        """Keep `value` together with the place in the stream: see `ghee.checkpoint`."""
        self._mark(value)

    @property
    def restored(self) -> Any:
        """What this rank gave to the checkpoint that the run goes on from; None at a beginning: see `ghee.restored`."""
        return self._checkpoints.load(self._manager.rank.index)

    def _mark(self, value: object) -> None:
        if self._given:
            self._give_back()
        self._number += 1
        if value is not None:
            self._checkpoints.save(self._number, self._manager.rank.index, value)
        rank, step = self._manager.rank, self._taken_in_epoch
        self._manager.tell(
            m.Checkpointed(rank, self._number, self.epoch, step, self._before + self._taken, value is not None)
        )
        self._manager.wait_for_recorded(self._number)

    def _next(self) -> Arrived | End | StreamEnded:
        self._give_back()
        self._manager.count_work()
        step = self._manager.next_batch()
        if isinstance(step, Arrived):
            self._held, self._given = step, False
        elif isinstance(step, End):
            self._report(step)
        else:
            self._ended = True
        return step

    def _give_back(self) -> None:
        """The function asks for more: it is done with the batch before."""
        if self._held is not None:
            self._taken += 1
            self._taken_in_epoch += 1
            if self._manager.trace is not None:
                self._manager.trace.worked(self._since, self._held.id, self._held.rows)
            if self._held.fill is None:
                self._manager.tell(*(m.Consumed(self._manager.rank, name) for name in self._held.names))
        self._held, self._given = None, False

    def _deliver(self, arrived: Arrived) -> object:
        self._at(arrived.id)
        self._given, self._since = True, time.perf_counter()
        self._manager.times.given = self._taken + 1
        counts = self._counts
        counts.batches += 1
        if arrived.fill is Tail.PAD:
            counts.padded += 1
        else:
            counts.rows += arrived.rows
        if arrived.fill is Tail.REPEAT:
            counts.repeated += 1
            counts.repeated_rows += arrived.rows
        return self._manager.unpack(arrived)

    def _skip(self, arrived: Arrived) -> None:
        self._since = time.perf_counter()
        if arrived.fill is None:
            self._counts.skipped += arrived.rows
        self._manager.unpack(arrived)  # lets its memory go

    def _report(self, end: End) -> None:
        tail = 0
        for left in end.left:
            assert isinstance(left, Arrived)
            tail += left.rows
            self._manager.unpack(left)
        c = self._counts
        self._manager.tell(
            m.EpochDone(
                self._manager.rank, end.epoch, c.batches, c.rows, c.skipped, tail, c.padded, c.repeated, c.repeated_rows
            )
        )
        self._counts = _Counts()
        self.epoch = end.epoch + 1
        self._taken_in_epoch = 0
        self._at(None)


class _Counts:
    def __init__(self) -> None:
        self.batches = self.rows = self.skipped = self.padded = self.repeated = self.repeated_rows = 0


class Epoch:
    """The batches of one epoch, to be iterated over once."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._first: Arrived | None = None
        self._over = False
        self.number = batches.epoch
        """Counted from 0."""

    def __iter__(self) -> Iterator[Any]:
        while not self._over:
            arrived, self._first = self._first, None
            if arrived is None:
                step = self._batches._next()
                if not isinstance(step, Arrived):
                    self._over = True
                    return
                arrived = step
            yield self._batches._deliver(arrived)

    def _begin(self) -> bool:
        """Wait for the first batch or the end of the epoch; False if the stream has ended."""
        step = self._batches._next()
        if isinstance(step, StreamEnded):
            return False
        if isinstance(step, Arrived):
            self._first = step
        else:
            self._over = True
        return True

    def _pass_over(self) -> None:
        if self._first is not None:
            self._batches._skip(self._first)
            self._first = None
        while not self._over:
            step = self._batches._next()
            if isinstance(step, Arrived):
                self._batches._skip(step)
            else:
                self._over = True
