"""The Transfer Manager: one for each rank, between its function and the network.

    user's thread                              transfer thread
    ─────────────                              ───────────────
    next() ◄── Delivery ◄── inbox ◄──────────  batches from other ranks
    emit() ──► outbox ──► Made ─────────────►  events to the driver
                 ▲                             actions from the driver:
                 └──────────── Send ◄────────    Send takes a batch out of the outbox to another rank

The transfer thread alone touches the endpoint, so a function that computes for long holds nothing up: what it has made
goes out meanwhile, and what it will need comes in.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence

from ghee import forked
from ghee.codec import Buffer, Encoded, decode, encode, no_rows
from ghee.errors import CancelledError, TransferError
from ghee.failure import capture
from ghee.observe.times import Times
from ghee.observe.trace import TRANSFER, Trace
from ghee.protocol import messages as m
from ghee.protocol.delivery import Deliver, Delivery, End, StreamEnded
from ghee.protocol.joining import Joining
from ghee.protocol.messages import Action, BatchId, Event, RankId, Tail
from ghee.slicing import check_rows, joined, sliced
from ghee.transfer.contract import Endpoint, Message, Parcel, Store
from ghee.transfer.outbox import Made, Outbox
from ghee.transfer.reading import read
from ghee.transfer.wire import Arrived, Freed, Instructions, Report, Settings

MESSAGE_BYTES = 256 << 10
"""Batches that are told to go to the same rank at once go in one message, until their frames have so many bytes."""

EARLY_BYTES = 4 << 20
"""A batch of so many bytes is announced before it is copied: the driver's answer comes while the copy is under way."""

GATHER_SECONDS = 0.002
"""The transfer thread works at most once in so long while the rank's function has what it needs: what has come meanwhile is
taken and told together: fewer times awake, and fewer messages. Once the function waits, nothing is put off."""

STATISTICS_EVERY = 0.1
"""Seconds between two reports of a rank's times to the driver, at the least."""


class TransferManager:
    """Sends and receives the batches of one rank.

    `next_read`, `next_batch`, `emit` and `tell` are for the thread of the user's function; they raise CancelledError
    once the driver has stopped the rank. `transfer.member.Member` makes it, from the driver's welcome.
    """

    def __init__(
        self, rank: RankId, endpoint: Endpoint, store: Store, driver: str, settings: Settings, trace: Trace | None,
        unread: Sequence[Message], reports: Iterator[int],
    ) -> None:  # fmt: skip
        """The endpoint is the transfer thread's from here on. `unread` are the messages that came before this one was made,
        `reports` the numbers of the rank's reports to the driver, `trace` where what happens is written down.
        """
        self.rank, self.settings, self.trace = rank, settings, trace
        self._pid = os.getpid()
        self.times = Times()
        self.largest = 0
        """Bytes of the largest batch that was made here."""
        self.has_warned = False
        self._endpoint, self._store, self._driver = endpoint, store, driver
        self._delivery = _delivery(settings)
        self._reads: deque[m.Read | m.EpochEnd | m.StreamEnd] = deque()
        self._outbox = Outbox()
        self._laid_down: deque[tuple[Made, Parcel]] = deque()
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._addresses: dict[RankId, str] = {}
        self._inbox: dict[BatchId, Arrived] = {}
        self._urgent: deque[m.Read] = deque()
        self._given_back: set[tuple[int, int]] = set()
        self._first_at = 0.0
        self.cpu_clock: Callable[[], float] = time.process_time
        """Seconds that this rank has computed; where ranks are threads, those of its own thread."""
        self._cpu_before = 0.0
        self._disordered = False
        self._refused: set[tuple[BatchId, RankId]] = set()
        self._forward: list[m.Send] = []
        self._parcels: defaultdict[str, list[tuple[Arrived, Sequence[Buffer]]]] = defaultdict(list)
        self._parcels_size: dict[str, int] = {}
        self._recorded = 0
        self._stopped = False
        self._broken: BaseException | None = None
        self._waits = threading.Event()
        self._signalled = False
        self._statistics_at = 0.0
        self._reports = reports
        self._thread = threading.Thread(target=self._run, args=(unread,), name=f"transfer {rank}", daemon=True)
        self._thread.start()

    # ── the user's thread ────────────────────────────────────────────────────────────────────────────────────────

    def tell(self, *events: Event) -> None:
        """Queue events for the driver."""
        self._events.extend(events)
        self._signal()

    def next_read(self) -> m.Read | m.EpochEnd | m.StreamEnd:
        """For a reading rank: what to do next."""
        forked.check(self._pid, self.rank)
        with self._changed:
            began = time.perf_counter()
            while not self._reads and not self._urgent:
                self._wait()
            if self._first_at:
                self.times.waited_input += time.perf_counter() - began
            if self.trace is not None:
                self.trace.wait("waits for a split", began)
            read = self.urgent_read() or self._reads.popleft()
            self._disordered = self._disordered or (isinstance(read, m.Read) and read.redo)
            return read

    def count_work(self) -> None:
        """For a loop, whose work is all the time since its first batch in which it did not wait."""
        if self._first_at:
            passed = time.perf_counter() - self._first_at
            self.times.worked = passed - self.times.waited_input - self.times.waited_room

    def urgent_read(self) -> m.Read | None:
        """For a reading rank: what is to be read before anything else, if there is something."""
        if not self._urgent:
            return None
        self._disordered = True
        return self._urgent.popleft()

    def gives_back(self, read: m.Read) -> bool:
        """For a reading rank: whether it is to leave the rest of the split to another."""
        return read.only is None and (read.epoch, read.split) in self._given_back

    def urgent_batch(self) -> Arrived | None:
        """For a map rank: the batch that is to be taken before anything else, if there is one."""
        with self._changed:
            step = self._delivery.next() if self._delivery.is_urgent else None
        if step is None:
            return None
        assert isinstance(step, Deliver)
        assert isinstance(step.item, Arrived)
        return step.item

    def next_batch(self) -> Arrived | End | StreamEnded:
        """For a consuming rank: the next batch, the end of an epoch, or the end of the stream."""
        forked.check(self._pid, self.rank)
        with self._changed:
            began = time.perf_counter()
            while (step := self._delivery.next()) is None:
                self._wait()
            if self.times.first_batch:  # what came before the first batch is the run's start, and no wait of this stage
                self.times.waited_input += time.perf_counter() - began
            if self.trace is not None:
                self.trace.wait("waits for input", began)
        if not isinstance(step, Deliver):
            return step
        arrived = step.item
        assert isinstance(arrived, Arrived)
        self._disordered = self._disordered or arrived.redo
        self.times.batches_in += 1
        if arrived.fill is not Tail.PAD:
            self.times.rows_in += arrived.rows
            self.times.largest_in = max(self.times.largest_in, arrived.rows)
        if not self.times.first_batch:
            self.times.first_batch = time.time()
            self.begin()
        return arrived

    def begin(self) -> None:
        """The rank has its first batch: what is measured counts from here on."""
        if not self._first_at:
            self._first_at = time.perf_counter()
            self._cpu_before = self.cpu_clock()

    def unpack(self, arrived: Arrived) -> object:
        """The batch itself. What it stands on is the caller's from now on."""
        batches = []
        for part in arrived.parts or (arrived,):
            self._inbox.pop(part.id, None)
            batch = decode(part.header, part.buffers)
            part.buffers.clear()  # the batch holds on to what it needs
            batches.append(batch if part.cut is None else sliced(batch, *part.cut))
        batch = joined(batches) if len(batches) > 1 else batches[0]
        return no_rows(batch) if arrived.fill is Tail.PAD else batch

    def wait_for_room(self, upto: BatchId) -> bool:
        """Wait until the outbox may take another batch that does not come after `upto`.

        False if there is something urgent to be done first, for which room does not count, or a split to be given back.
        """
        with self._changed:
            self._check_stopped()  # a rank that always has room waits for nothing else
            began = time.perf_counter()
            while self._outbox.held(upto, self._disordered) >= self.settings.room:
                if self._urgent or self._delivery.is_urgent or upto[:2] in self._given_back:
                    return False
                self._wait()
            self.times.waited_room += time.perf_counter() - began
            if self.trace is not None:
                self.trace.wait("waits for room", began)
            return True

    def emit(self, name: BatchId, batch: object) -> int:
        """Lay a batch into the outbox and announce it; returns its rows. `wait_for_room` is the caller's to call."""
        forked.check(self._pid, self.rank)
        if self.settings.cuts:
            check_rows(batch)
        encoded = encode(batch)
        made = Made(encoded.rows, encoded.size)
        is_early = made.size >= EARLY_BYTES
        if not is_early:
            made.parcel = self._lay_down(name, encoded)
        with self._changed:
            self._outbox.add(name, made)
        self.largest = max(self.largest, made.size)
        self.times.batches_out += 1
        self.times.rows_out += made.rows
        self.times.bytes_out += made.size
        self.tell(m.Made(self.rank, name, made.rows, made.size))
        if is_early:
            self._laid_down.append((made, self._lay_down(name, encoded)))
            self._signal()
        return made.rows

    def _lay_down(self, name: BatchId, encoded: Encoded) -> Parcel:
        began = time.perf_counter()
        parcel = self._store.put(encoded, self.settings.receivers + self.settings.cuts)
        if self.trace is not None:
            self.trace.span("packs", began, batch=name, bytes=parcel.size)
        return parcel

    def wait_for_recorded(self, number: int) -> None:
        """Wait until the driver has written checkpoint `number` down."""
        began = time.perf_counter()
        with self._changed:
            while self._recorded < number:
                self._wait()
        if self.trace is not None:
            self.trace.wait("waits for the checkpoint", began)

    def wait_for_stop(self) -> None:
        """Wait until the driver stops the rank."""
        with self._changed:
            while not self._stopped:
                self._changed.wait()

    def stop(self) -> None:
        """Stop the rank as the driver would. From any thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._endpoint.wake()

    def close(self) -> None:
        """Let go of endpoint and store."""
        self.stop()
        self._thread.join()
        self._store.close()

    def _wait(self) -> None:
        forked.check(self._pid, self.rank)
        self._check_stopped()
        self._waits.set()
        self._changed.wait()
        self._waits.clear()

    def _check_stopped(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._stopped:
            raise CancelledError("the driver has stopped this rank")

    def _signal(self) -> None:
        if not self._signalled:
            self._signalled = True
            self._endpoint.wake()

    # ── the transfer thread ──────────────────────────────────────────────────────────────────────────────────────

    def _run(self, unread: Sequence[Message]) -> None:
        began = 0.0
        try:
            for message in unread:
                self._on_message(message)
            while not self._stopped:
                if (pause := began + GATHER_SECONDS - time.monotonic()) > 0:
                    self._waits.wait(pause)
                began = time.monotonic()
                self._signalled = False
                self._flush()
                for message in self._endpoint.receive(1.0):
                    self._on_message(message)
            self._flush()
        except BaseException as error:
            self._broken = error
            self._say_why(error)
        finally:
            self._endpoint.close()
            if self.trace is not None:
                self.trace.close()
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _say_why(self, error: BaseException) -> None:
        failure = capture(error, f"stage {self.rank.stage}, rank {self.rank.index}, while moving batches")
        failed = m.Failed(self.rank, pickle.dumps(failure))
        self._report([failed], None)

    def _report(self, events: list[Event], times: Times | None) -> None:
        self._endpoint.send(self._driver, [pickle.dumps(Report(self.rank, events, times, next(self._reports)))])

    def _flush(self) -> None:
        while self._laid_down:
            self._send_waiting(*self._laid_down.popleft())
        for sender, places in self._store.freed():
            self._endpoint.send(sender, [pickle.dumps(Freed(self._endpoint.address, places))])
        events = []
        while self._events:
            events.append(self._events.popleft())
        if self.trace is not None:  # what has failed will be killed once the driver knows
            self.trace.flush(at_once=any(isinstance(event, m.Failed) for event in events))
        now = time.monotonic()
        due = now - self._statistics_at >= STATISTICS_EVERY or any(isinstance(event, m.Returned) for event in events)
        if events or due:
            if due:
                self._statistics_at = now
                if self._first_at:
                    self.times.cpu = self.cpu_clock() - self._cpu_before
            self._report(events, self.times if due else None)

    def _on_message(self, frames: Message) -> None:
        message = read(frames, list, Instructions, Freed)
        try:
            self._take(message, frames)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
            kind = type(message).__name__
            raise TransferError(f"a {kind} has come that does not fit what this rank has and was told: {error!r}") from error

    def _take(self, message: object, frames: Message) -> None:
        if isinstance(message, list):
            at = 1
            if sum(count for _, count in message) != len(frames) - 1:
                raise ValueError(f"{len(frames) - 1} frames have come with {len(message)} batches of another number")
            for arrived, count in message:
                self._on_arrived(arrived, frames[at : at + count])
                at += count
            with self._changed:
                self._changed.notify_all()
        elif isinstance(message, Instructions):
            self._on_instructions(message)
        else:
            assert isinstance(message, Freed)
            self._store.give_back(message.address, message.places)

    def _on_arrived(self, arrived: Arrived, frames: list[Buffer]) -> None:
        if (arrived.id, arrived.sender) in self._refused:
            return
        began = time.perf_counter()
        try:
            arrived = arrived._replace(buffers=self._store.open(arrived.address, arrived.note, frames))
        except OSError:
            return  # the sender has died, and its memory with it: the driver will have the batch made again
        if arrived.fill is None:
            self._inbox[arrived.id] = arrived
            self._events.append(m.Accepted(self.rank, arrived.id))
            self._pass_on()
        with self._changed:
            if arrived.redo:
                self._delivery.arrived_again(arrived)
            elif not self._put(arrived):
                raise TransferError(
                    f"{arrived.sender} has sent batch {arrived.id} as number {arrived.place} of its epoch, which came before"
                )
            if self.trace is not None:
                self.trace.span("takes in", began, TRANSFER, arrived.id, bytes=arrived.size)

    def _put(self, arrived: Arrived) -> bool:
        epoch, place = arrived.id[0], arrived.place
        if isinstance(self._delivery, Joining):
            filled = arrived.fill is not None
            return self._delivery.part_arrived(epoch, place, arrived.index, arrived.rows, arrived, fill=filled)
        return self._delivery.arrived(epoch, place, arrived)

    def _on_instructions(self, instructions: Instructions) -> None:
        self._addresses.update(instructions.addresses)
        for address in instructions.gone:
            self._store.peer_gone(address)
            self._endpoint.forget(address)
        with self._changed:
            for action in instructions.actions:
                self._on_action(action)
            for address in list(self._parcels):
                self._dispatch_all(address)
            self._stopped = self._stopped or instructions.stop
            self._changed.notify_all()

    def _on_action(self, action: Action) -> None:
        match action:
            case m.Send():
                self._send(action)
            case m.Discard():
                self._let_go(self._outbox.take(action.id))
            case m.Recall():
                self._refused.add((action.id, action.sender))
                self._events.append(m.Recalled(self.rank, action.id))
            case m.Release():
                self._delivery.released(action.epoch, action.rounds)
            case m.Recorded():
                self._recorded = action.number
            case m.EpochEnd():
                if isinstance(self._delivery, Joining):
                    parts = action.parts
                    self._delivery.parts_ended(action.epoch, action.batches, action.sent, parts, action.commit)
                else:
                    self._delivery.ended(action.epoch, action.batches, action.sent, action.commit)
                self._reads.append(action)
            case m.StreamEnd():
                self._delivery.stream_ended(action.epochs)
                self._reads.append(action)
            case m.Read():
                self._given_back.discard((action.epoch, action.split))
                (self._urgent if action.only is not None or action.now else self._reads).append(action)
            case m.GiveBack():
                self._given_back.add((action.epoch, action.split))
            case _:
                raise AssertionError(f"no rank is told {action}")

    def _send(self, action: m.Send) -> None:
        if action.fill is not None:
            self._forward.append(action)
            self._pass_on()
            return
        made = self._outbox.batches[action.id][0]
        if made.parcel is None:
            made.sends.append(action)
        else:
            self._dispatch(action, made.parcel)
        if action.last:
            self._let_go(self._outbox.take(action.id))

    def _let_go(self, made: Made) -> None:
        """Nobody gets the batch any more, but for those that it is to be sent to once it is laid down."""
        if made.parcel is None:
            made.is_over = True
        else:
            self._store.drop(made.parcel)

    def _send_waiting(self, made: Made, parcel: Parcel) -> None:
        """A batch that was announced early is laid down now."""
        made.parcel = parcel
        for action in made.sends:
            self._dispatch(action, parcel)
            self._dispatch_all(self._addresses[action.to])
        made.sends.clear()
        if made.is_over:
            self._store.drop(parcel)

    def _dispatch(self, action: m.Send, parcel: Parcel, of: Arrived | None = None) -> None:
        """Send a batch, or a part of it; `of` is a part that stands in for one and was taken from the inbox."""
        to = self._addresses[action.to]
        note, frames = self._store.pack(parcel, to)
        cut = None if action.take is None else (action.skip, action.take)
        name, rows = (action.id, parcel.rows) if cut is None else ((*action.id, *cut), cut[1])
        if of is not None:
            cut, rows = of.cut, of.rows
        elif cut is not None and frames:  # the bytes travel with the message: no more of them than are wanted
            parcel, note, frames = self._cut_out(parcel, note, frames, cut, to)
            cut = None
        head = Arrived(
            name, rows, parcel.size, action.place, action.fill, action.redo, parcel.header,
            self.rank, self._endpoint.address, note, [], action.index, cut,
        )  # fmt: skip
        parcels = self._parcels[to]
        parcels.append((head, frames))
        self._parcels_size[to] = self._parcels_size.get(to, 0) + sum(len(frame) for frame in frames)
        if self._parcels_size[to] >= MESSAGE_BYTES:
            self._dispatch_all(to)

    def _cut_out(
        self, parcel: Parcel, note: object, frames: Sequence[Buffer], cut: tuple[int, int], to: str
    ) -> tuple[Parcel, object, Sequence[Buffer]]:
        batch = decode(parcel.header, self._store.open(self._endpoint.address, note, frames))
        part = self._store.put(encode(sliced(batch, *cut)), 1)
        note, frames = self._store.pack(part, to)
        self._store.drop(part)
        return part, note, frames

    def _dispatch_all(self, address: str) -> None:
        """Send what is to go to a rank, as one message."""
        parcels = self._parcels.pop(address, [])
        self._parcels_size.pop(address, None)
        if parcels:
            began = time.perf_counter()
            heads = [(head, len(frames)) for head, frames in parcels]
            self._endpoint.send(address, [pickle.dumps(heads), *(frame for _, frames in parcels for frame in frames)])
            if self.trace is not None:
                self.trace.sent(began, [head.id for head, _ in parcels], address, sum(head.size for head, _ in parcels))

    def _pass_on(self) -> None:
        """Send copies of batches in the inbox to the ranks for which the tail has none, once they have arrived here."""
        for action in [a for a in self._forward if a.id in self._inbox]:
            self._forward.remove(action)
            arrived = self._inbox[action.id]
            views = [memoryview(buffer) for buffer in arrived.buffers]
            parcel = self._store.put(Encoded(arrived.header, views, arrived.rows), 1)
            self._dispatch(action, parcel, arrived)
            self._dispatch_all(self._addresses[action.to])
            self._store.drop(parcel)


def _delivery(settings: Settings) -> Delivery[Arrived]:
    if settings.rebatch is None:
        return Delivery(settings.gated, settings.ordered, settings.epoch)
    return Joining(
        settings.gated, settings.ordered, settings.epoch,
        rows=settings.rebatch, drop_last=settings.drop_last, join=_put_together,
    )  # fmt: skip


def _put_together(parts: list[Arrived]) -> Arrived:
    rows, size = sum(part.rows for part in parts), sum(part.size for part in parts)
    return parts[0]._replace(rows=rows, size=size, parts=tuple(parts))
