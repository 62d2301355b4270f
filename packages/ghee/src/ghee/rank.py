"""The loop of one rank: receive, call the function, send. It runs in the thread that debuggers and MPI expect."""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle

from ghee import context, failure
from ghee.codec import rows_of
from ghee.errors import BatchError, CancelledError
from ghee.protocol import messages as m
from ghee.protocol.delivery import End, StreamEnded
from ghee.protocol.messages import BatchId
from ghee.stream import Batches
from ghee.task import RankTask
from ghee.transfer.manager import TransferManager


def run_rank(
    manager: TransferManager,
    stage: str,
    world_rank: int,
    world_size: int,
    *,
    inline: bool = False,
    task: RankTask | None = None,
) -> None:
    """Join the run, do the task, tell how it ended, and wait to be stopped.

    The task comes from the driver unless it is given: what runs in the driver's own process need not pickle.
    """
    place = _Where(manager.rank, stage)
    try:
        blob = manager.join(os.getpid())
        task = task or _load(blob)
        context.enter(context.Place(task.stage, world_rank, world_size, task.folder, inline))
        manager.configure(task.settings)
        result = _RUNNERS[task.kind](manager, task, place)
        manager.tell(m.Returned(manager.rank, cloudpickle.dumps(result)))
    except CancelledError:
        return
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        manager.tell(m.Failed(manager.rank, pickle.dumps(failure.capture(error, str(place)))))
    manager.wait_for_stop()


def _load(blob: bytes) -> RankTask:
    task: RankTask = cloudpickle.loads(blob)
    return task


class _Where:
    """Where a rank is, for error messages."""

    def __init__(self, rank: m.RankId, stage: str) -> None:
        self.rank = rank
        self.stage = stage
        self.batch: BatchId | None = None

    def at(self, name: BatchId | None) -> None:
        self.batch = name

    def __str__(self) -> str:
        if self.batch is None:
            return f"stage {self.stage!r}, rank {self.rank.index}"
        epoch, split, seq = self.batch[:3]
        return f"stage {self.stage!r}, rank {self.rank.index}, batch {seq} of split {split} in epoch {epoch}"


class _Function:
    """The user's function of a map stage, whatever its kind: function, generator function, class."""

    def __init__(self, function: Callable[..., object] | None) -> None:
        self._call: Any = function
        self._close: Any = None
        if function is not None and _is_class(function):
            self._call = function()
            self._close = getattr(self._call, "close", None)

    def __call__(self, batch: object) -> Iterator[object]:
        """The batches that come of one batch."""
        result = batch if self._call is None else self._call(batch)
        if inspect.isgenerator(result) or (isinstance(result, Iterator) and not hasattr(result, "shape")):
            yield from (item for item in result if item is not None)
        elif result is not None:
            yield result

    def close(self) -> None:
        if callable(self._close):
            self._close()


def _is_class(function: object) -> bool:
    return isinstance(function, type) or (isinstance(function, functools.partial) and isinstance(function.func, type))


def _apply(manager: TransferManager, function: _Function, name: BatchId, batch: object, rows: int) -> None:
    """Call the function on one batch and send what comes of it."""
    manager.wait_for_room(name[0])
    began, waited = time.perf_counter(), manager.times.waited_room
    outputs = rows_out = 0
    for result in function(batch):
        rows_out += manager.emit((*name, outputs), result)
        outputs += 1
    manager.times.worked += time.perf_counter() - began - (manager.times.waited_room - waited)
    manager.tell(m.Finished(manager.rank, name, rows, rows_out, outputs))


def _run_read(manager: TransferManager, task: RankTask, place: _Where) -> None:
    function = _Function(task.function)
    source: Any = task.payload
    said = [0] * (task.epochs + 1)
    order: dict[int, list[Any]] = {}
    manager.tell(m.Idle(manager.rank))
    while not isinstance(step := manager.next_read(), m.StreamEnd):
        if isinstance(step, m.EpochEnd):
            manager.tell(_epoch_done(manager, step.epoch, step.batches, said[step.epoch]))
            continue
        if step.epoch not in order:
            order = {step.epoch: source.order(task.splits, step.epoch)}
        batches = rows = 0
        reading = source.read(order[step.epoch][step.split], epoch=step.epoch)
        while (batch := _timed_next(manager, reading)) is not None:
            name = (step.epoch, step.split, batches)
            place.at(name)
            count = rows_of(batch)
            manager.times.batches_in += 1
            manager.times.rows_in += count
            _apply(manager, function, name, batch, count)
            batches, rows = batches + 1, rows + count
        place.at(None)
        said[step.epoch] += rows
        manager.tell(m.SplitDone(manager.rank, step.epoch, step.split, batches, rows), m.Idle(manager.rank))
    function.close()


def _timed_next(manager: TransferManager, reading: Iterator[Any]) -> Any:
    """The next batch of a split, None at its end; reading counts as work."""
    began = time.perf_counter()
    batch = next(reading, None)
    manager.times.worked += time.perf_counter() - began
    return batch


def _run_map(manager: TransferManager, task: RankTask, place: _Where) -> None:
    function = _Function(task.function)
    batches = rows = 0
    while not isinstance(step := manager.next_batch(), StreamEnded):
        if isinstance(step, End):
            manager.tell(_epoch_done(manager, step.epoch, batches, rows))
            batches = rows = 0
            continue
        place.at(step.id)
        _apply(manager, function, step.id, manager.unpack(step), step.rows)
        batches, rows = batches + 1, rows + step.rows
        place.at(None)
    function.close()


def _epoch_done(manager: TransferManager, epoch: int, batches: int, rows: int) -> m.EpochDone:
    return m.EpochDone(manager.rank, epoch, batches, rows, 0, 0, 0, 0, 0)


def _run_loop(manager: TransferManager, task: RankTask, place: _Where) -> object:
    assert task.function is not None
    batches = Batches(manager, place.at)
    began = time.perf_counter()
    result = task.function(batches)
    if inspect.isgenerator(result):
        result = _send_all(manager, task, batches, result)
    manager.times.worked += time.perf_counter() - began - manager.times.waited_input - manager.times.waited_room
    return result


def _send_all(manager: TransferManager, task: RankTask, batches: Batches, results: Any) -> object:
    """Send what a loop yields to the next stage; returns what the generator returns."""
    if not task.settings.receivers:
        raise BatchError(
            f"the loop {task.stage!r} yields batches, but no stage comes after it; "
            "let it return its result, or add .write(...) or another stage"
        )
    number = 0
    while True:
        try:
            batch = next(results)
        except StopIteration as stop:
            return stop.value
        manager.emit((batches.epoch, -manager.rank.stage, manager.rank.index, number), batch)
        number += 1


def _run_write(manager: TransferManager, task: RankTask, place: _Where) -> object:
    sink: Any = task.payload
    writer = sink.writer(manager.rank.index)
    batches = rows = 0
    try:
        while not isinstance(step := manager.next_batch(), StreamEnded):
            if isinstance(step, End):
                manager.tell(_epoch_done(manager, step.epoch, batches, rows))
                batches = rows = 0
                continue
            place.at(step.id if len(step.id) > 3 and step.id[1] >= 0 else None)
            batch = manager.unpack(step)
            began = time.perf_counter()
            writer.write(batch)
            manager.times.worked += time.perf_counter() - began
            manager.tell(m.Consumed(manager.rank, step.id))
            batches, rows = batches + 1, rows + step.rows
        return writer.close()
    except BaseException:
        writer.abort()
        raise


_RUNNERS: dict[str, Callable[[TransferManager, RankTask, _Where], object]] = {
    "read": _run_read,
    "map": _run_map,
    "loop": _run_loop,
    "write": _run_write,
}
