"""A topic as a sink: what a rank produces, and when it counts as delivered.

write(batch) ─► produce, bounded queue ─► broker          end_epoch ◄─ the epoch has no further batch
                                                             at least once: every delivery report is waited for
                                                             exactly once:  offsets into the transaction, commit
Only then does the rank say that its epoch is over, and only after that are offsets committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ghee import context
from ghee.errors import GheeError, SinkError, SourceNotFoundError, TransactionError
from ghee.io.contract import PartFile
from ghee.io.kafka import client
from ghee.io.kafka.bounded import Call
from ghee.io.kafka.encode import Message, make_messages
from ghee.io.kafka.options import Address, WriteOptions

QUEUE_KILOBYTES = 16 << 10
"""What lies in each writing rank's librdkafka at the most; a rank waits while it is full."""

QUIET_SECONDS = 3.0
"""A broker that takes nothing for so long is away or slow: it is said."""

TRANSACTION_SECONDS = 60
"""How long the broker keeps a transaction of a run that is gone, and how long one cut may take."""

CALL_SECONDS = 2.0
"""How long one call of a transaction waits before it is said that the broker does not answer."""

STUCK_SECONDS = 30.0
"""After which a call of a transaction that has not come back is given up, and the transaction with it."""

T = TypeVar("T")


class KafkaSink:
    """Writes batches to a topic. Rows are there at least once; with `transactions`, once."""

    hosted = False
    endless = True
    """It may end a stream: what it has written is there before the run has ended."""

    def __init__(self, address: Address, options: WriteOptions) -> None:
        client.library()
        self.address, self.options = address, options
        self._patience: float | None = None

    @property
    def transactions(self) -> bool:
        """Whether rows and offsets are committed together."""
        return self.options.transactions

    def prepare(self) -> None:
        """Raises SinkError where no broker answers, or has no such topic; PipelineError for wrong settings."""
        settings = client.only_of(self.options.settings, "producer")
        try:
            client.partitions_of(self.address.brokers, settings, self.address.topics, self._patience)
            self._patience = self.options.patience  # where the run begins again, the broker has been there
        except SourceNotFoundError as error:
            raise SinkError(f"{error}. It is not made by ghee: make it with the partitions that it should have") from None
        except GheeError as error:
            raise (error if isinstance(error, ValueError) else SinkError(str(error))) from None
        client.producer(self.address.brokers, self.options.settings, client.Told(), **_bounds(self.options))

    def writer(self, rank: int) -> KafkaWriter:
        """In a rank."""
        where = context.current()
        run, stage = (Path(where.folder).name, where.stage) if where is not None else ("", "write")
        return KafkaWriter(self.address, self.options, f"ghee-{run}-{stage}-{rank}")

    def publish(self, parts: Sequence[PartFile]) -> None:
        """What was written is there already."""

    def abort(self) -> None:
        """What was delivered stays; an open transaction was given up by its rank."""


def _bounds(options: WriteOptions) -> dict[str, Any]:
    """A queue that does not grow, and the partitioner of Java's client: equal keys lie together whoever wrote them."""
    bounds: dict[str, Any] = {
        "queue.buffering.max.kbytes": QUEUE_KILOBYTES, "partitioner": "murmur2_random", "linger.ms": 5,
        "delivery.report.only.error": True,
    }  # fmt: skip
    if options.transactions:
        bounds["transaction.timeout.ms"] = TRANSACTION_SECONDS * 1000
    else:
        bounds["message.timeout.ms"] = max(1000, int(options.patience * 1000))
    own = client.only_of(options.settings, "producer")
    return {key: value for key, value in bounds.items() if key not in own}


class KafkaWriter:
    """One rank's producer. Used by one thread."""

    def __init__(self, address: Address, options: WriteOptions, name: str) -> None:
        """`name` is the transactional.id: the same for the same rank of the same run, so that an older one is shut out."""
        self._url, self._topic, self._brokers = address.url, address.topics[0], address.brokers
        self._options = options
        self._told = client.Told()
        self._failure: BaseException | None = None
        more = {"transactional.id": name} if options.transactions else {}
        self._producer = client.producer(
            self._brokers, options.settings, self._told, on_delivery=self._delivered, **_bounds(options), **more
        )
        self._open, self._began = False, 0.0
        self._stuck = False
        self._limit = int(options.settings.get("transaction.timeout.ms", TRANSACTION_SECONDS * 1000)) / 1000
        if options.transactions:
            self._call(self._producer.init_transactions)

    def write(self, batch: object) -> None:
        """Produce every row; waits while the queue is full. Raises BatchError, and SinkError where the broker refuses."""
        messages = make_messages(batch, self._options)
        if messages:
            self._begin()
        produce, topic = self._producer.produce, self._topic
        full, broken = BufferError, client.library().KafkaException
        for message in messages:
            try:
                produce(topic, *message)
            except full:
                self._wait_for(lambda message=message: self._produce(message))  # type: ignore[misc]
            except broken as error:
                self._fail(error, message)
        self._producer.poll(0)
        self._raise_failure()

    def _begin(self) -> None:
        if self._options.transactions and not self._open:
            self._call(lambda seconds: self._producer.begin_transaction())
            self._open, self._began = True, time.monotonic()

    def end_epoch(self, commit: Any = None) -> None:
        """Everything that was written is with the broker when this returns. `commit`: offsets and the group's membership."""
        if not self._options.transactions:
            self._flush()
            return
        if commit is None and not self._open:
            return
        self._begin()
        if commit is not None:
            offsets, membership = commit
            places = [client.place(topic, partition, at) for topic, partition, at in offsets]
            self._call(lambda seconds: self._producer.send_offsets_to_transaction(places, membership, seconds))
        self._call(self._producer.commit_transaction)
        self._open = False
        self._raise_failure()

    def close(self) -> list[PartFile]:
        """Flush; there are no files."""
        if self._options.transactions:
            assert not self._open, "the last epoch was not ended"
        else:
            self._flush()
        return []

    def abort(self) -> None:
        """Give up what was not committed; what was delivered without a transaction stays."""
        if self._stuck:
            return  # the producer takes no other call; the broker ends what is open
        if self._open:
            self._open = False
            try:
                self._bounded(lambda: self._producer.abort_transaction(CALL_SECONDS), lambda error: None)
            except (client.library().KafkaException, TransactionError):
                pass  # the broker ends it: when this rank's successor comes, or by its time limit
        else:
            self._producer.purge()

    # ── the producer ─────────────────────────────────────────────────────────────────────────────────────────────

    def _produce(self, message: Message) -> bool:
        """False where the queue is full."""
        try:
            self._producer.produce(self._topic, *message)
        except BufferError:
            return False
        except client.library().KafkaException as error:
            self._fail(error, message)
        return True

    def _fail(self, error: Any, message: Message) -> NoReturn:
        self._failure = self._refused(error.args[0], message[0])
        raise self._failure

    def _delivered(self, error: Any, message: Any) -> None:
        """Of a message that the broker has not taken: the first is why the run ends."""
        if error is not None and self._failure is None:
            self._failure = self._refused(error, message.value())

    def _refused(self, error: Any, value: Any) -> BaseException:
        kinds = client.library().KafkaError
        code = error.code()
        if code == kinds.MSG_SIZE_TOO_LARGE:
            size = len(value or b"")
            return SinkError(
                f"{self._url}: a message of {size:,} bytes is larger than the limit (message.max.bytes of this program, "
                "1,000,000 unless settings= says otherwise; max.message.bytes of the topic). Make smaller messages, "
                f"or raise both: settings={{'message.max.bytes': {2 * size}}}"
            )
        if code in (kinds._UNKNOWN_PARTITION, kinds.UNKNOWN_TOPIC_OR_PART, kinds._UNKNOWN_TOPIC):
            return SinkError(
                f"{self._url}: there is no such partition or topic: {error.str()}. Does partition= fit the topic?"
            )
        if code == kinds._MSG_TIMED_OUT and not self._options.transactions:
            return SinkError(
                f"{self._url}: the broker has taken nothing for {self._options.patience:.0f} s: "
                f"{self._told.last or error.str()}. patience= (seconds) says how long to wait"
            )
        if self._options.transactions and not self._is_final(code):
            return TransactionError(f"{self._url}: {error.str()}; the transaction is given up, none of its rows is seen")
        return SinkError(f"{self._url}: the broker does not take a message: {error.str()}")

    @staticmethod
    def _is_final(code: int) -> bool:
        kinds = client.library().KafkaError
        return code in (
            kinds.TOPIC_AUTHORIZATION_FAILED, kinds.INVALID_MSG, kinds.INVALID_RECORD, kinds.INVALID_TIMESTAMP,
            kinds.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, kinds.CLUSTER_AUTHORIZATION_FAILED,
        )  # fmt: skip

    def _flush(self) -> None:
        self._wait_for(lambda: self._producer.flush(0.1) == 0)

    def _wait_for(self, is_done: Callable[[], bool]) -> None:
        """Ask until it is done; says so where the broker is quiet for long. Raises what the broker has refused."""
        began = time.monotonic()
        waiting = False
        while not is_done():
            self._producer.poll(0.1)
            self._raise_failure()
            silent = time.monotonic() - began
            if silent > QUIET_SECONDS and not waiting and self._told.last:
                waiting = True
                print(f"ghee: waiting for {self._url}: {self._told.last}", flush=True)
        self._raise_failure()
        if waiting:
            print(f"ghee: {self._url} takes messages again after {time.monotonic() - began:.0f} s", flush=True)

    def _raise_failure(self) -> None:
        if self._told.refused:
            raise SinkError(f"the broker {self._brokers} refuses the credentials: {self._told.last}")
        if self._failure is not None:
            raise self._failure

    def _call(self, step: Callable[[float], T]) -> T:
        """One step of a transaction, until the broker has answered. Raises SinkError, TransactionError."""
        kafka = client.library()
        began = time.monotonic()
        waiting = False

        def say(error: str) -> None:
            nonlocal waiting
            if not waiting and time.monotonic() - began > QUIET_SECONDS:
                waiting = True
                print(f"ghee: waiting for {self._url}: {self._told.last or error}", flush=True)

        while True:
            try:
                answer = self._bounded(lambda: step(CALL_SECONDS), say)
            except kafka.KafkaException as raised:
                self._judge(raised.args[0], time.monotonic() - began)
                say(raised.args[0].str())
                continue
            if waiting:
                print(f"ghee: {self._url} answers again after {time.monotonic() - began:.0f} s", flush=True)
            return answer

    def _bounded(self, step: Callable[[], T], say: Callable[[str], None]) -> T:
        """What a call returns. Raises TransactionError where it does not come back: this producer is of no use any more.

        The run then begins again where it was committed. Its producer has the same name, so the broker ends the transaction
        that is open, and takes nothing more of the call that is left behind.
        """
        call = Call(step)
        began = time.monotonic()
        while not call.is_done(CALL_SECONDS):
            if self._told.refused:
                self._stuck = True
                self._raise_failure()
            say("no answer")
            if time.monotonic() - began > STUCK_SECONDS:
                self._stuck = True
                raise TransactionError(
                    f"{self._url}: the Kafka client has not come back for {STUCK_SECONDS:.0f} s "
                    f"({self._told.last or 'no error was told'}); the transaction is given up, none of its rows is seen"
                )
        return call.answer()

    def _judge(self, error: Any, silent: float) -> None:
        """What follows from an error of a transaction: returns where the step is to be tried again."""
        kinds = client.library().KafkaError
        if self._failure is not None and not isinstance(self._failure, TransactionError):
            raise self._failure
        fenced = error.code() in (kinds._FENCED, kinds.PRODUCER_FENCED, kinds.INVALID_PRODUCER_EPOCH)
        if fenced and self._open and time.monotonic() - self._began > 0.9 * self._limit:
            raise TransactionError(
                f"{self._url}: the broker ended a transaction that took longer than {self._limit:.0f} s. A cut of the topic "
                "must be done by then: give the stages more replicas, or settings={'transaction.timeout.ms': …} more time"
            )
        if fenced:
            raise SinkError(
                f"{self._url}: another process writes as this rank of this run ({error.str()}): it was begun again "
                "elsewhere, and this one is shut out"
            )
        if error.txn_requires_abort():
            raise TransactionError(f"{self._url}: {error.str()}; the transaction is given up, none of its rows is seen")
        if error.fatal() or not error.retriable():
            raise SinkError(f"{self._url}: the transaction failed: {error.str()}")
        if silent > self._options.patience:
            raise SinkError(
                f"{self._url}: the broker has not answered for {silent:.0f} s: {self._told.last or error.str()}. "
                "patience= (seconds) says how long to wait"
            )
        if self._open and time.monotonic() - self._began > self._limit:  # the broker ends it, if it has not
            raise TransactionError(
                f"{self._url}: a transaction was not over within {self._limit:.0f} s: {self._told.last or error.str()}; "
                "it is given up, none of its rows is seen"
            )
