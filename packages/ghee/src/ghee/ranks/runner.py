"""The loop of one rank: receive, call the function, send. It runs in the thread that debuggers and MPI expect."""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle

from ghee import context, failure, forked, pickling
from ghee.codec import rows_of
from ghee.errors import BatchError, CancelledError, TransactionError
from ghee.protocol import messages as m
from ghee.protocol.delivery import End, StreamEnded
from ghee.protocol.messages import BatchId
from ghee.ranks.batches import Batches
from ghee.ranks.checkpoints import Checkpoints
from ghee.ranks.task import RankTask
from ghee.resources import format_bytes
from ghee.transfer.manager import TransferManager
from ghee.transfer.member import Member
from ghee.transfer.wire import Arrived


def run_rank(
    member: Member,
    world_rank: int,
    world_size: int,
    *,
    inline: bool = False,
    task: RankTask | None = None,
    address: str = "",
) -> None:
    """Join the run, do the task, tell how it ended, and wait to be stopped.

    The task comes from the driver unless it is given: what runs in the driver's own process need not pickle. `address` is
    the IP of the rank's Pod on a cluster.
    """
    place = _Where(member.rank, member.stage)
    try:
        manager, blob = member.join(os.getpid())
    except CancelledError:
        return
    try:
        task = task or _load(blob)
        world = f"{manager.rank.stage}-{manager.rank.index - world_rank}-{manager.rank.life}"
        context.enter(context.Place(task.stage, world_rank, world_size, task.folder, inline, world, task.gpus, address))
        if inline:
            clock = time.pthread_getcpuclockid(threading.get_ident())
            manager.cpu_clock = functools.partial(time.clock_gettime, clock)
        result = _run_unless_forked(manager, task, place)
        manager.tell(m.Returned(manager.rank, _dump(result, task)))
        manager.wait_for_stop()
    except CancelledError:
        pass
    except BaseException as error:  # sys.exit too: the driver is told, whatever it was
        again = isinstance(error, TransactionError)
        manager.tell(m.Failed(manager.rank, pickle.dumps(failure.capture(error, str(place))), again))
        manager.wait_for_stop()
    finally:
        context.leave()


def _run_unless_forked(manager: TransferManager, task: RankTask, place: _Where) -> object:
    """Call the function; a child that it has forked, and that comes out of it too, goes no further."""
    pid, error = os.getpid(), None
    try:
        return _RUNNERS[task.kind](manager, task, place)
    except BaseException as raised:
        error = raised
        raise
    finally:
        if os.getpid() != pid:
            forked.leave(error)


def _load(blob: bytes) -> RankTask:
    try:
        task: RankTask = cloudpickle.loads(blob)
    except Exception as error:
        error.add_note(
            "the function could not be loaded in the rank: it needs something that is there in your process, but that "
            f"{sys.executable} does not find in a process of its own (a module beside the script or installed is found)"
        )
        raise
    return task


def _dump(result: object, task: RankTask) -> bytes:
    try:
        data: bytes = pickling.dumps(result)
    except Exception as error:
        kind = type(result).__name__
        raise BatchError(
            f"the result of the {task.kind} {task.stage!r}, a {kind}, cannot be sent back: {error}; "
            "return what pickles (numbers, arrays, a state_dict), or write it to a file and return its path"
        ) from error
    return data


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
    """The user's function of a map stage, whatever its kind: function, generator function, class, callable object."""

    def __init__(self, function: Callable[..., object] | None) -> None:
        self._call: Any = function
        if function is not None and _is_class(function):
            self._call = function()
        self._close: Any = None if inspect.isroutine(self._call) else getattr(self._call, "close", None)

    def __call__(self, batch: object) -> Iterator[object]:
        """The batches that come of one batch."""
        result = batch if self._call is None else self._call(batch)
        if inspect.isgenerator(result) or (isinstance(result, Iterator) and not hasattr(result, "shape")):
            yield from (item for item in result if item is not None)
        elif result is not None:
            _check_list(result)
            yield result

    def close(self) -> None:
        if callable(self._close):
            self._close()


def _check_list(result: object) -> None:
    """A list is one batch, of its items; one of tables is several, which the next function would not expect."""
    if isinstance(result, list) and result and (hasattr(result[0], "num_rows") or hasattr(result[0], "iloc")):
        kind = type(result[0]).__name__
        raise BatchError(
            f"the function returned a list of {len(result)} {kind}: a returned list is one batch, whose rows are its items; "
            "to give several batches write `yield` for each, to give one put them together"
        )


def _is_class(function: object) -> bool:
    return isinstance(function, type) or (isinstance(function, functools.partial) and isinstance(function.func, type))


def _apply(
    manager: TransferManager,
    function: _Function,
    name: BatchId,
    batch: object,
    rows: int,
    *,
    ordered: bool,
    redo: bool,
    received: bool = True,
) -> None:
    """Call the function on one batch and send what comes of it.

    What is made again (`redo`) does not wait for room: nothing else might move before it is there.
    """
    began, waited = time.perf_counter(), manager.times.waited_room
    outputs = rows_out = 0
    for result in function(batch):
        if outputs and not redo:
            manager.wait_for_room(name if ordered else name[:1])
        rows_out += manager.emit((*name, outputs), result)
        _warn_of_large(manager, context.stage())
        outputs += 1
    manager.times.worked += time.perf_counter() - began - (manager.times.waited_room - waited)
    if manager.trace is not None:
        manager.trace.worked(began, name, rows, received)
    manager.tell(m.Finished(manager.rank, name, rows, rows_out, outputs, redo))


def _warn_of_large(manager: TransferManager, stage: str) -> None:
    """Say once that a batch is larger than all credit: it passes, but nothing passes beside it."""
    credit = manager.settings.credit
    if manager.largest > credit and not manager.has_warned:
        manager.has_warned = True
        warnings.warn(
            f"a batch of {format_bytes(manager.largest)} from stage {stage!r} is larger than its credit of "
            f"{format_bytes(credit)}: such batches pass one at a time, and memory holds them whole; make smaller batches "
            f"(batch_size=) or give the stages more credit (credit={format_bytes(2 * manager.largest)!r})",
            RuntimeWarning,
            stacklevel=2,
        )


def _run_read(manager: TransferManager, task: RankTask, place: _Where) -> None:
    _Reader(manager, task, place).run()


class _Reader:
    """A rank of the first stage: reads splits and calls the first function."""

    def __init__(self, manager: TransferManager, task: RankTask, place: _Where) -> None:
        self._manager, self._task, self._place = manager, task, place
        self._function = _Function(task.function)
        self._source: Any = task.payload
        self._least: int = getattr(self._source, "least_rows", 0)
        self._said: Counter[int] = Counter()
        self._orders: dict[int, list[Any]] = {}

    def run(self) -> None:
        """Read until there is nothing more. What the source holds is let go of, however this ends."""
        try:
            self._follow()
        finally:
            if hasattr(self._source, "close"):
                self._source.close()

    def _follow(self) -> None:
        manager = self._manager
        manager.tell(m.Idle(manager.rank))
        while not isinstance(step := manager.next_read(), m.StreamEnd):
            if isinstance(step, m.EpochEnd):
                manager.tell(_epoch_done(manager, step.epoch, step.batches, self._said.pop(step.epoch, 0)))
            else:
                self._read(step)
                if step.only is None and not step.now:
                    manager.tell(m.Idle(manager.rank))
        self._function.close()

    def _read(self, step: m.Read) -> None:
        """Read a split to its end, or until another rank is to go on with it."""
        manager, batches, rows = self._manager, 0, 0
        for batch in self._batches(step):
            name = (step.epoch, step.split, batches)
            count = rows_of(batch)
            batches, rows = batches + 1, rows + count
            if name[2] in step.skip or (step.only is not None and name[2] not in step.only):
                continue
            while not manager.gives_back(step) and step.only is None and not manager.wait_for_room(name[:2]):
                urgent = manager.urgent_read()
                if urgent is not None:
                    self._read(urgent)
            if manager.gives_back(step):
                manager.tell(m.GaveBack(manager.rank, step.epoch, step.split))
                return
            self._place.at(name)
            manager.begin()
            manager.times.batches_in += 1
            manager.times.rows_in += count
            ordered = manager.settings.ordered
            if count < self._least:
                manager.tell(m.Finished(manager.rank, name, count, 0, 0, step.redo))
            else:
                _apply(manager, self._function, name, batch, count, ordered=ordered, redo=step.redo, received=False)
            self._said[step.epoch] += 0 if step.redo else count
            self._place.at(None)
        partial = step.only is not None
        manager.times.set_aside = getattr(self._source, "set_aside", 0)
        manager.tell(m.SplitDone(manager.rank, step.epoch, step.split, batches, rows, partial))

    def _batches(self, step: m.Read) -> Iterator[Any]:
        split = step.what
        if split is None:
            if step.epoch not in self._orders:
                while len(self._orders) > 1:  # an epoch and the next one overlap; all of many would fill the memory
                    del self._orders[min(self._orders)]
                self._orders[step.epoch] = self._source.order(self._task.splits, step.epoch)
            split = self._orders[step.epoch][step.split]
        reading = self._source.read(split, epoch=step.epoch)
        while (batch := _timed_next(self._manager, reading)) is not _OVER:
            yield batch


_OVER = object()


def _timed_next(manager: TransferManager, reading: Iterator[Any]) -> Any:
    """The next batch of a split, _OVER at its end; reading counts as work."""
    began = time.perf_counter()
    batch = next(reading, _OVER)
    if manager.times.batches_in:  # the first is the run's start: imports, opening files
        passed = time.perf_counter() - began
        manager.times.worked += passed
        manager.times.read += passed
    if manager.trace is not None and batch is not _OVER:
        manager.trace.span("reads", began)
    return batch


def _run_map(manager: TransferManager, task: RankTask, place: _Where) -> None:
    function = _Function(task.function)
    ordered = manager.settings.ordered
    batches = rows = 0

    def take(arrived: Arrived) -> None:
        place.at(arrived.id)
        batch = manager.unpack(arrived)
        _apply(manager, function, arrived.id, batch, arrived.rows, ordered=ordered, redo=arrived.redo)
        place.at(None)

    while not isinstance(step := manager.next_batch(), StreamEnded):
        if isinstance(step, End):
            manager.tell(_epoch_done(manager, step.epoch, batches, rows))
            batches = rows = 0
            continue
        while not step.redo and not manager.wait_for_room(step.id if ordered else step.id[:1]):
            urgent = manager.urgent_batch()
            if urgent is not None:
                take(urgent)
        take(step)
        if not step.redo:
            batches, rows = batches + 1, rows + step.rows
    function.close()


def _epoch_done(manager: TransferManager, epoch: int, batches: int, rows: int) -> m.EpochDone:
    return m.EpochDone(manager.rank, epoch, batches, rows, 0, 0, 0, 0, 0)


def _run_loop(manager: TransferManager, task: RankTask, place: _Where) -> object:
    assert task.function is not None
    checkpoints = Checkpoints(Path(task.folder), manager.rank.stage, task.stage, manager.settings.number)
    batches = Batches(manager, place.at, checkpoints)
    where = context.current()
    assert where is not None
    where.stream.append(batches)
    result = task.function(batches)
    if inspect.isgenerator(result):
        result = _send_all(manager, task, batches, result)
    manager.count_work()
    return result


def _send_all(manager: TransferManager, task: RankTask, batches: Batches, results: Any) -> object:
    """Send what a loop yields to the next stage; returns what the generator returns."""
    if not manager.settings.receivers:
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
        manager.wait_for_room((batches.epoch,))
        manager.emit((batches.epoch, -manager.rank.stage, manager.rank.index, number), batch)
        _warn_of_large(manager, task.stage)
        number += 1


def _run_write(manager: TransferManager, task: RankTask, place: _Where) -> object:
    sink: Any = task.payload
    writer = sink.writer(manager.rank.index)
    end_epoch = getattr(writer, "end_epoch", None)
    stores = getattr(sink, "stores", False)
    batches = rows = 0

    def tell_stored(epoch: int, parts: list[Any]) -> None:
        if parts:
            manager.tell(m.Stored(manager.rank, epoch, tuple(parts)))

    try:
        while not isinstance(step := manager.next_batch(), StreamEnded):
            if isinstance(step, End):
                if end_epoch is not None:
                    end_epoch(step.commit)
                if stores:
                    tell_stored(step.epoch, writer.store())
                manager.tell(_epoch_done(manager, step.epoch, batches, rows))
                batches = rows = 0
                continue
            place.at(step.id if len(step.id) > 3 and step.id[1] >= 0 else None)
            batch = manager.unpack(step)
            began = time.perf_counter()
            writer.write(batch)
            manager.times.worked += time.perf_counter() - began
            if manager.trace is not None:
                manager.trace.worked(began, step.id, step.rows)
            if stores:  # what came before this batch
                tell_stored(step.id[0], writer.stored())
            manager.tell(*(m.Consumed(manager.rank, name) for name in step.names))
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
