"""The driver's end of an endless topic: which partitions are this run's, up to where they are cut, what is committed.

thread "ghee kafka" (here)                        driver's thread
joins the group, polls, answers rebalances        ask() ─ take() ─► ranges: the next epoch
looks for the partitions' ends when it is asked   acknowledge(offsets) ◄─ every end has these rows
commits what was acknowledged
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ghee.errors import GheeError, PipelineError, SourceError, SourceNotFoundError, TransactionError
from ghee.io.kafka import client
from ghee.io.kafka.client import Partition
from ghee.io.kafka.oldest import Oldest
from ghee.io.kafka.options import Address, ReadOptions, offset_of, unknown_partitions
from ghee.io.kafka.ranges import Range

CUT_OFFSETS = (1 << 12, 1 << 16, 1 << 18)
"""Offsets of a partition in one cut: at the least, at first, at the most. They follow what was done in CUT_SECONDS."""

CUT_SECONDS = (2.5, 10.0)
"""A cut that took less is followed by a larger one, one that took more by a smaller one: what must be done before a
stopped stream has ended, and what a transaction holds."""

LINGER_SECONDS = 0.5
"""How long a cut waits for a whole batch once there is something."""

HANDOVER_SECONDS = 30.0
"""How long a partition that goes to another member is kept until what was read of it is acknowledged."""

HELD_SECONDS = 3.0
"""How long the group's offsets may be held by a transaction before it is said."""

LOOK_SECONDS = 1.0
"""How often the partitions' ends are asked for, for the lag, while no cut is wanted."""

POLL_SECONDS = 0.05

CLOSE_SECONDS = 45.0
"""How long leaving the group may take, at the most: more than one question to the broker."""

PARTITIONS_SECONDS = 10.0
"""How often it is looked whether topics have more partitions, and patterns more topics."""


class Stream:
    """Cuts the partitions of this run into ranges. `begin` first; `close` ends its thread and leaves the group."""

    def __init__(
        self, address: Address, options: ReadOptions, wake: Callable[[], None], patience: float | None = None
    ) -> None:
        """`wake` is called from the thread when `take` has something. `patience`: seconds for the broker to answer first."""
        self._address, self._options, self._wake, self._patience = address, options, wake, patience
        self._told = client.Told()
        self._change = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._asked = False
        self._ready: list[Range] | None = None
        self._next: dict[Partition, int] = {}
        self._acked: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}
        self._high: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        self._since: float | None = None
        self._looked = 0.0
        self._counted = time.monotonic()
        self._begun_with: set[Partition] = set()
        self._size = max(CUT_OFFSETS[1], options.batch_size)
        self._transactions = False
        self._consumer: Any = None
        self._member: Any = None
        self._oldest: Oldest | None = None
        self._thread = threading.Thread(target=self._run, name="ghee kafka", daemon=True)

    def begin(self, ends: Mapping[Partition, int], *, transactions: bool = False) -> None:
        """Join. `ends` says up to where an earlier run had cut: it goes on there.

        `transactions`: a sink commits the offsets, so they say where to go on; `ends` where there are none.
        """
        self._ends, self._transactions = dict(ends), transactions
        brokers, settings = self._address.brokers, self._options.settings
        wanted = client.partitions_of(brokers, settings, self._address.topics, self._patience)
        if problems := unknown_partitions("start", self._options.start, wanted):
            raise SourceError(f"{self._address.url}: {problems[0]}")
        self._begun_with = set(wanted)
        self._admin = client.admin(brokers, settings, self._told)
        self._oldest = Oldest(self._address, self._options)
        if self._options.group is None:
            self._own(wanted, {})
        else:
            self._consumer = client.consumer(
                brokers, settings, self._told, **{
                    "group.id": self._options.group, "partition.assignment.strategy": "cooperative-sticky",
                    "queued.max.messages.kbytes": 1024, "isolation.level": "read_committed",
                    "topic.metadata.refresh.interval.ms": int(PARTITIONS_SECONDS * 1000),
                },
            )  # fmt: skip
            self._consumer.subscribe(
                list(self._address.topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
            )
        self._thread.start()

    # ── the driver's thread ──────────────────────────────────────────────────────────────────────────────────────

    def ask(self) -> None:
        """The next ranges are wanted, as soon as there is something."""
        self._asked = True

    def check(self) -> None:
        """Raises what went wrong in the thread."""
        if self._error is not None:
            raise self._error

    def take(self) -> list[Range] | None:
        """The ranges that were asked for, once they are there. Raises what went wrong in the thread."""
        self.check()
        with self._change:
            ready, self._ready = self._ready, None
        return ready

    def acknowledge(self, offsets: Mapping[Partition, int]) -> None:
        """Everything before these offsets has reached every end of the pipeline."""
        with self._change:
            for partition, offset in offsets.items():
                self._acked[partition] = max(offset, self._acked.get(partition, 0))
            self._change.notify_all()

    def took(self, seconds: float) -> None:
        """What was cut last has taken so long until it was over."""
        if seconds < CUT_SECONDS[0]:
            self._size = min(2 * self._size, max(CUT_OFFSETS[2], self._options.batch_size))
        elif seconds > CUT_SECONDS[1]:
            self._size = max(self._size // 2, CUT_OFFSETS[0], self._options.batch_size)

    def membership(self) -> Any:
        """What a transaction that commits offsets names: the group's member, whose word counts while it is one."""
        self.check()
        if self._member is None:
            raise TransactionError(f"{self._address.url}: the group {self._options.group} has gone on without this run")
        return self._member

    def lag(self) -> dict[str, int]:
        """By partition how many offsets are not acknowledged yet."""
        with self._change:
            return {
                f"{topic}[{partition}]": max(0, high - self._acked.get((topic, partition), 0))
                for (topic, partition), high in self._high.items()
                if (topic, partition) in self._next
            }

    def oldest(self) -> float | None:
        """How old the oldest message is that is not acknowledged, in seconds."""
        return self._oldest.age() if self._oldest is not None and any(self.lag().values()) else None

    def close(self) -> None:
        """Commit what was acknowledged and leave the group. May be called more than once."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():  # a call of librdkafka does not come back: the group forgets this member by itself
            print(f"ghee: the group {self._options.group} was not left within {CLOSE_SECONDS:.0f} s", flush=True)

    # ── its own thread ───────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while not self._closed:
                if self._consumer is not None:
                    self._heard(self._consumer.poll(POLL_SECONDS))
                    self._note_membership()
                else:
                    time.sleep(POLL_SECONDS)  # without a group nothing is polled: the topic's end is looked at now and then
                self._check_told()
                self._commit()
                if time.monotonic() - self._looked > LOOK_SECONDS:
                    self._look()
                self._look_at_oldest()
                if self._consumer is None and time.monotonic() - self._counted > PARTITIONS_SECONDS:
                    self._look_for_partitions()
                if self._asked:
                    self._cut()
        except BaseException as error:
            self._error = error if isinstance(error, GheeError) else SourceError(f"{self._address.url}: {error}")
            self._closed = True
            self._wake()
        finally:
            if self._consumer is not None:
                self._end_membership()
            if self._oldest is not None:
                self._oldest.close()

    def _note_membership(self) -> None:
        """For `membership`: a consumer lets in one thread at a time, and another one would wait for this one by chance."""
        if self._transactions:
            said, member = self._consumer.consumer_group_metadata(), self._consumer.memberid()
            self._member = said if member and member.encode() in said else None  # nobody's word counts as anybody's

    def _end_membership(self) -> None:
        self._member = None
        try:
            self._commit()
            self._consumer.close()
        except client.library().KafkaException as error:
            print(f"ghee: the group {self._options.group} was not left in order: {error}", flush=True)

    def _heard(self, message: Any) -> None:
        """Nothing is fetched here, so what comes is news of the group: what does not pass ends the run."""
        error = None if message is None else message.error()
        if error is None:
            return
        kinds = client.library().KafkaError
        if error.code() == kinds.INCONSISTENT_GROUP_PROTOCOL:
            raise SourceError(
                f"{self._address.url}: the group {self._options.group} has members that share partitions in another way. "
                "Give this run a group of its own, or those partition.assignment.strategy=cooperative-sticky"
            )
        if error.code() in (kinds.UNKNOWN_TOPIC_OR_PART, kinds._UNKNOWN_TOPIC, kinds._UNKNOWN_PARTITION):
            self._look_for_partitions()
        elif error.code() not in (kinds._PARTITION_EOF, kinds._MAX_POLL_EXCEEDED, *_passing()) and not error.retriable():
            raise SourceError(f"{self._address.url}: the group {self._options.group} cannot be followed: {error.str()}")

    def _check_told(self) -> None:
        if self._told.fatal or self._told.refused:
            raise SourceError(f"{self._address.url}: {self._told.fatal or self._told.last}")

    def _cut(self) -> None:
        high = self._look()
        with self._change:
            ranges = [
                Range(*one, at, min(high.get(one, at), at + self._size)) for one, at in self._next.items()
                if high.get(one, at) > at
            ]  # fmt: skip
            if not ranges or self._waits(sum(one.stop - one.start for one in ranges)):
                return
            for one in ranges:
                self._next[one.topic, one.partition] = one.stop
            self._ready, self._asked, self._since = ranges, False, None
        self._wake()

    def _look(self) -> dict[Partition, int]:
        """Where the partitions end now; none while the broker is away."""
        try:
            high = client.offsets_at(
                self._admin, list(self._next), "latest", client.is_committed(self._options.settings)
            )  # fmt: skip
        except SourceError:  # it is asked again
            high = {}
        self._looked = time.monotonic()
        with self._change:
            self._high.update(high)
        return high

    def _look_for_partitions(self) -> None:
        """Without a group new ones are this run's. Raises SourceNotFoundError where a topic is not there any more."""
        self._counted = time.monotonic()
        try:
            found = client.partitions_of(self._address.brokers, self._options.settings, self._address.topics)
        except SourceNotFoundError:
            raise
        except SourceError:  # the broker is away: it is looked again
            return
        if self._consumer is None:
            self._own([one for one in found if one not in self._next], {})

    def _look_at_oldest(self) -> None:
        assert self._oldest is not None
        with self._change:
            behind = {one: at for one in self._next if (at := self._acked.get(one, 0)) < self._high.get(one, 0)}
        self._oldest.look(behind)

    def _waits(self, rows: int) -> bool:
        """Whether it is better to wait a little for a whole batch."""
        now = time.monotonic()
        self._since = self._since or now
        return rows < self._options.batch_size and now - self._since < LINGER_SECONDS

    def _commit(self) -> None:
        if self._consumer is None or self._transactions:
            return
        with self._change:
            due = {one: at for one, at in self._acked.items() if one in self._next and at > self._committed.get(one, -1)}
        if not due:
            return
        kafka = client.library()
        try:
            self._consumer.commit(offsets=[client.place(*one, at) for one, at in due.items()], asynchronous=False)
        except kafka.KafkaException as error:
            # A rebalance is under way, or the broker is away: what was acknowledged is committed later.
            if error.args[0].retriable() or error.args[0].code() in _passing():
                return
            raise
        self._committed.update(due)

    def _pause(self) -> None:
        """A little while, or until it is closed."""
        with self._change:
            if not self._closed:
                self._change.wait(POLL_SECONDS)

    # ── rebalances: called by poll ───────────────────────────────────────────────────────────────────────────────

    def _assigned(self, consumer: Any, places: Sequence[Any]) -> None:
        self._note_membership()
        found = self._committed_of(consumer, places)
        partitions = [(place.topic, place.partition) for place in places]
        self._own(partitions, {(p.topic, p.partition): p.offset for p in found if p.offset >= 0})
        consumer.incremental_assign([client.place(*one, self._next[one]) for one in partitions])
        consumer.pause([client.place(*one, 0) for one in partitions])  # the ranks read, this one only belongs to the group

    def _committed_of(self, consumer: Any, places: Sequence[Any]) -> Sequence[Any]:
        """The group's offsets; those that an open transaction holds are waited for."""
        kafka = client.library()
        began, said = time.monotonic(), False
        while True:
            try:
                found: Sequence[Any] = consumer.committed(list(places), timeout=2)
                error = next((place.error for place in found if place.error is not None), None)
            except kafka.KafkaException as raised:
                error = raised.args[0]
            if error is None:
                return found
            if self._closed or time.monotonic() - began > self._options.patience or error.code() not in _passing():
                raise kafka.KafkaException(error)
            if not said and time.monotonic() - began > HELD_SECONDS:
                said = True
                print(
                    f"ghee: waiting for the offsets of the group {self._options.group}: {error.str()} "
                    "(a transaction of an earlier run may hold them until its time is over)", flush=True,
                )  # fmt: skip
            self._pause()

    def _own(self, partitions: Sequence[Partition], committed: Mapping[Partition, int]) -> None:
        """These partitions are this run's: from what was committed on, or cut by an earlier run, or from `start`."""
        low = self._offsets_at(partitions, "earliest")
        first = self._first(partitions, low)
        high = self._offsets_at(partitions, "latest", committed=False)
        first |= {one: low[one] for one in partitions if one not in self._begun_with}  # `start` was before there was one
        for one in partitions:
            at, cut = committed.get(one, -1), self._ends.get(one, -1)
            at = cut if at < 0 or (cut > at and not self._transactions) else at
            at = first[one] if at < 0 else at
            if at < low[one]:
                lost = f"{one[0]}[{one[1]}]: offsets {at} to {low[one] - 1} are gone by retention before they were read"
                if self._options.lost == "fail":
                    raise SourceError(f'{lost}. Nothing was skipped; lost="skip" goes on at {low[one]} and says so')
                print(f"ghee: {lost}; going on at {low[one]}", flush=True)
                at = low[one]
            if at > high[one]:
                raise SourceError(
                    f"{one[0]}[{one[1]}] was to be read from offset {at}, and ends at {high[one]}"
                    + (": the group has committed it; was the topic made anew?" if at == committed.get(one) else "")
                )
            with self._change:
                self._next[one] = at
                self._acked[one] = max(committed.get(one, 0), low[one])
                self._committed[one] = committed.get(one, -1)

    def _offsets_at(self, partitions: Sequence[Partition], at: str | int, *, committed: bool = True) -> dict[Partition, int]:
        """Where partitions begin or end; a broker that is away while the run goes on is waited for."""
        began = time.monotonic()
        while True:
            try:
                return client.offsets_at(self._admin, partitions, at, committed)
            except SourceError:
                waiting = self._thread.is_alive() and not self._closed
                if not waiting or time.monotonic() - began > self._options.patience:
                    raise

    def _first(self, partitions: Sequence[Partition], low: Mapping[Partition, int]) -> dict[Partition, int]:
        start = self._options.start
        if start in ("earliest", "committed"):
            return dict(low)
        if isinstance(start, Mapping):
            return {one: at if (at := offset_of(start, *one)) is not None else low[one] for one in partitions}
        high = self._offsets_at(partitions, "latest")
        if start == "latest":
            return high
        if not isinstance(start, int):
            raise PipelineError(f"start={start!r} is no place in a topic")
        since = self._offsets_at(partitions, start)
        return {one: high[one] if at < 0 else at for one, at in since.items()}

    def _revoked(self, consumer: Any, places: Sequence[Any]) -> None:
        """Partitions go to another member: nothing more is cut of them, and what was cut is waited for."""
        self._note_membership()  # with which it is committed meanwhile
        partitions = [(place.topic, place.partition) for place in places]
        deadline = time.monotonic() + HANDOVER_SECONDS
        with self._change:
            ends = {one: self._next[one] for one in partitions if one in self._next}
            while not self._closed and any(self._acked.get(one, 0) < end for one, end in ends.items()):
                left = deadline - time.monotonic()
                if left <= 0 or not self._change.wait(left):
                    if self._transactions:  # the transaction that is open must not commit them any more
                        raise TransactionError(f"rows of {[*ends]} were not committed before they went to another member")
                    print(
                        f"ghee: rows of {[*ends]} were not acknowledged in time; the next member reads them again",
                        flush=True,
                    )
                    break
        self._commit()
        if not self._closed:  # at the end its lag is still asked for
            self._forget(partitions)
        consumer.incremental_unassign(list(places))

    def _lost(self, consumer: Any, places: Sequence[Any]) -> None:
        """The group has gone on without this run (it was not heard of for too long)."""
        partitions = [(place.topic, place.partition) for place in places]
        if self._transactions and not self._closed:
            raise TransactionError(f"{self._address.url}: the group gave {partitions} to others")
        print(
            f"ghee: the group gave {partitions} to others; rows that were not committed are read again by them", flush=True
        )
        self._forget(partitions)
        consumer.incremental_unassign(list(places))

    def _forget(self, partitions: Sequence[Partition]) -> None:
        with self._change:
            for one in partitions:
                for of in (self._next, self._acked, self._committed, self._high, self._ends):
                    of.pop(one, None)


def _passing() -> tuple[int, ...]:
    """Errors that pass: a rebalance is under way, the broker is away, a transaction is open."""
    kinds = client.library().KafkaError
    return (
        kinds.REBALANCE_IN_PROGRESS, kinds.ILLEGAL_GENERATION, kinds.UNKNOWN_MEMBER_ID, kinds._TRANSPORT, kinds._TIMED_OUT,
        kinds._WAIT_COORD, kinds._ALL_BROKERS_DOWN, kinds._STATE, kinds.COORDINATOR_NOT_AVAILABLE, kinds.NOT_COORDINATOR,
        kinds.COORDINATOR_LOAD_IN_PROGRESS, kinds.UNSTABLE_OFFSET_COMMIT, kinds.REQUEST_TIMED_OUT,
    )  # fmt: skip
