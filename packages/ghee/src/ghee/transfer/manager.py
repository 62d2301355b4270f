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

import pickle
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from ghee.codec import Buffer, Encoded, decode, encode, no_rows
from ghee.errors import CancelledError
from ghee.protocol import messages as m
from ghee.protocol.delivery import Deliver, Delivery, End, StreamEnded
from ghee.protocol.messages import Action, BatchId, Event, RankId, Tail
from ghee.transfer.contract import Endpoint, Message, Parcel, Store

STATISTICS_EVERY = 0.1
"""Seconds between two reports of a rank's times to the driver, at the least."""


class Arrived(NamedTuple):
    """A batch in the inbox."""

    id: BatchId
    rows: int
    size: int
    fill: Tail | None
    header: bytes
    sender: str
    note: object
    frames: list[Buffer]


@dataclass
class Times:
    """Seconds and counts since the rank began; `since` is on the clock `time.time`."""

    waited_input: float = 0.0
    waited_room: float = 0.0
    worked: float = 0.0
    rows_in: int = 0
    rows_out: int = 0
    batches_in: int = 0
    batches_out: int = 0
    bytes_out: int = 0
    first_batch: float = 0.0


class Instructions(NamedTuple):
    """Driver to rank: actions, and the addresses of ranks that were not heard of before."""

    actions: list[Action]
    addresses: dict[RankId, str]
    stop: bool = False


class Report(NamedTuple):
    """Rank to driver: events, and the rank's times when they are due."""

    rank: RankId
    events: list[Event]
    times: Times | None


@dataclass
class Settings:
    """How a rank takes part: `receivers` is the number of edges that its outputs go to; sizes in bytes."""

    receivers: int
    room: int
    gated: bool = False
    ordered: bool = False


@dataclass
class _Outbox:
    parcels: dict[BatchId, Parcel] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)

    def held(self, epoch: int) -> int:
        return sum(size for at, size in self.used.items() if at <= epoch)


class TransferManager:
    """Sends and receives the batches of one rank.

    `next_read`, `next_batch`, `emit` and `tell` are for the thread of the user's function; they raise CancelledError
    once the driver has stopped the rank.
    """

    def __init__(self, rank: RankId, endpoint: Endpoint, store: Store, driver: str) -> None:
        self.rank = rank
        self.times = Times()
        self._endpoint, self._store, self._driver = endpoint, store, driver
        self._settings = Settings(0, 1)
        self._delivery: Delivery[Arrived] = Delivery(False, False)
        self._reads: deque[m.Read | m.EpochEnd | m.StreamEnd] = deque()
        self._outbox = _Outbox()
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._addresses: dict[RankId, str] = {}
        self._inbox: dict[BatchId, Arrived] = {}
        self._opened: dict[BatchId, list[Buffer]] = {}
        self._forward: list[m.Send] = []
        self._task: bytes | None = None
        self._stopped = False
        self._broken: BaseException | None = None
        self._signalled = False
        self._statistics_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"transfer {rank}", daemon=True)

    # ── the user's thread ────────────────────────────────────────────────────────────────────────────────────────

    def join(self, pid: int) -> bytes:
        """Tell the driver that the rank is there, and wait for its task."""
        self.tell(m.Joined(self.rank, self._endpoint.address, pid))
        self._thread.start()
        with self._changed:
            while self._task is None:
                self._wait()
            return self._task

    def configure(self, settings: Settings) -> None:
        """Set what the task says; to be called before the first `next_*`."""
        with self._changed:
            self._settings = settings
            self._delivery.gated, self._delivery.ordered = settings.gated, settings.ordered

    def tell(self, *events: Event) -> None:
        """Queue events for the driver."""
        self._events.extend(events)
        self._signal()

    def next_read(self) -> m.Read | m.EpochEnd | m.StreamEnd:
        """For a reading rank: what to do next."""
        with self._changed:
            began = time.perf_counter()
            while not self._reads:
                self._wait()
            self.times.waited_input += time.perf_counter() - began
            return self._reads.popleft()

    def next_batch(self) -> Arrived | End | StreamEnded:
        """For a consuming rank: the next batch, the end of an epoch, or the end of the stream."""
        with self._changed:
            began = time.perf_counter()
            while (step := self._delivery.next()) is None:
                self._wait()
            self.times.waited_input += time.perf_counter() - began
        if not isinstance(step, Deliver):
            return step
        arrived = step.item
        assert isinstance(arrived, Arrived)
        self.times.batches_in += 1
        self.times.rows_in += arrived.rows
        if not self.times.first_batch:
            self.times.first_batch = time.time()
        return arrived

    def unpack(self, arrived: Arrived) -> object:
        """The batch itself. What it stands on is the caller's from now on."""
        self._inbox.pop(arrived.id, None)
        buffers = self._opened.pop(arrived.id, None) or self._open(arrived)
        batch = decode(arrived.header, buffers)
        return no_rows(batch) if arrived.fill is Tail.PAD else batch

    def _open(self, arrived: Arrived) -> list[Buffer]:
        return self._store.open(arrived.sender, arrived.note, arrived.frames)

    def wait_for_room(self, epoch: int) -> None:
        """Wait until the outbox may take another batch of the epoch."""
        with self._changed:
            if self._outbox.held(epoch) < self._settings.room:
                return
            began = time.perf_counter()
            while self._outbox.held(epoch) >= self._settings.room:
                self._wait()
            self.times.waited_room += time.perf_counter() - began

    def emit(self, name: BatchId, batch: object) -> int:
        """Lay a batch into the outbox and announce it; returns its rows. Waits for room first."""
        encoded = encode(batch)
        self.wait_for_room(name[0])
        parcel = self._store.put(encoded, self._settings.receivers)
        with self._changed:
            self._outbox.parcels[name] = parcel
            self._outbox.used[name[0]] = self._outbox.used.get(name[0], 0) + parcel.size
        self.times.batches_out += 1
        self.times.rows_out += parcel.rows
        self.times.bytes_out += parcel.size
        self.tell(m.Made(self.rank, name, parcel.rows, parcel.size))
        return parcel.rows

    def wait_for_stop(self) -> None:
        """Wait until the driver stops the rank."""
        with self._changed:
            while not self._stopped:
                self._changed.wait()

    def close(self) -> None:
        """Let go of endpoint and store."""
        self._stopped = True
        self._endpoint.wake()
        if self._thread.ident is not None:
            self._thread.join()
        self._store.close()

    def _wait(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._stopped:
            raise CancelledError("the driver has stopped this rank")
        self._changed.wait()

    def _signal(self) -> None:
        if not self._signalled:
            self._signalled = True
            self._endpoint.wake()

    # ── the transfer thread ──────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._signalled = False
                self._flush()
                for message in self._endpoint.receive(1.0):
                    self._on_message(message)
            self._flush()
        except BaseException as error:
            self._broken = error
        finally:
            self._endpoint.close()
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _flush(self) -> None:
        for sender, places in self._store.freed():
            self._endpoint.send(sender, [pickle.dumps(places)])
        events = []
        while self._events:
            events.append(self._events.popleft())
        now = time.monotonic()
        due = now - self._statistics_at >= STATISTICS_EVERY or any(isinstance(event, m.Returned) for event in events)
        if events or due:
            if due:
                self._statistics_at = now
            self._endpoint.send(self._driver, [pickle.dumps(Report(self.rank, events, self.times if due else None))])

    def _on_message(self, frames: Message) -> None:
        message = pickle.loads(frames[0])
        if isinstance(message, Arrived):
            self._on_arrived(message._replace(frames=frames[1:]))
        elif isinstance(message, Instructions):
            self._on_instructions(message)
        elif isinstance(message, bytes):
            with self._changed:
                self._task = message
                self._changed.notify_all()
        else:
            self._store.give_back(message)

    def _on_arrived(self, arrived: Arrived) -> None:
        place = arrived.note[0]  # type: ignore[index]
        arrived = arrived._replace(note=arrived.note[1])  # type: ignore[index]
        if arrived.fill is None:
            self._inbox[arrived.id] = arrived
            self._events.append(m.Accepted(self.rank, arrived.id))
            self._pass_on()
        with self._changed:
            self._delivery.arrived(arrived.id[0], place, arrived)
            self._changed.notify_all()

    def _on_instructions(self, instructions: Instructions) -> None:
        self._addresses.update(instructions.addresses)
        with self._changed:
            for action in instructions.actions:
                self._on_action(action)
            self._stopped = self._stopped or instructions.stop
            self._changed.notify_all()

    def _on_action(self, action: Action) -> None:
        match action:
            case m.Send():
                self._send(action)
            case m.Discard():
                parcel = self._remove(action.id)
                self._store.drop(parcel)
            case m.Release():
                self._delivery.released(action.epoch, action.rounds)
            case m.EpochEnd():
                self._delivery.ended(action.epoch, action.batches, action.sent)
                self._reads.append(action)
            case m.StreamEnd():
                self._delivery.stream_ended(action.epochs)
                self._reads.append(action)
            case m.Read():
                self._reads.append(action)
            case _:
                raise AssertionError(f"no rank is told {action}")

    def _send(self, action: m.Send) -> None:
        if action.fill is not None:
            self._forward.append(action)
            self._pass_on()
            return
        parcel = self._remove(action.id) if action.last else self._outbox.parcels[action.id]
        self._dispatch(action, parcel)

    def _remove(self, name: BatchId) -> Parcel:
        parcel = self._outbox.parcels.pop(name)
        left = self._outbox.used[name[0]] - parcel.size
        if left:
            self._outbox.used[name[0]] = left
        else:
            del self._outbox.used[name[0]]
        return parcel

    def _dispatch(self, action: m.Send, parcel: Parcel) -> None:
        note, frames = self._store.pack(parcel)
        head = Arrived(
            action.id,
            parcel.rows,
            parcel.size,
            action.fill,
            parcel.header,
            self._endpoint.address,
            (action.place, note),
            [],
        )
        self._endpoint.send(self._addresses[action.to], [pickle.dumps(head), *frames])

    def _pass_on(self) -> None:
        """Send copies of batches in the inbox to the ranks for which the tail has none, once they have arrived here."""
        for action in [a for a in self._forward if a.id in self._inbox]:
            self._forward.remove(action)
            arrived = self._inbox[action.id]
            self._opened[arrived.id] = self._opened.get(arrived.id) or self._open(arrived)
            views = [memoryview(buffer) for buffer in self._opened[arrived.id]]
            self._dispatch(action, self._store.put(Encoded(arrived.header, views, arrived.rows), 1))
