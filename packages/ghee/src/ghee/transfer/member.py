"""A rank before it knows what it is to do."""

from __future__ import annotations

import itertools
import pickle
import threading

from ghee.errors import CancelledError
from ghee.failure import capture
from ghee.observe.trace import Trace
from ghee.protocol import messages as m
from ghee.protocol.messages import Event, RankId
from ghee.transfer.contract import Endpoint, Message, Store
from ghee.transfer.manager import TransferManager
from ghee.transfer.reading import read
from ghee.transfer.wire import Freed, Instructions, Report, Settings, Welcome


class Member:
    """Who a rank is, and its endpoint: enough to join the run. `join` makes the Transfer Manager, once it can be made right.

    `join` and `close` are for the thread of the user's function, `stop` for any.
    """

    def __init__(self, rank: RankId, stage: str, endpoint: Endpoint, store: Store, driver: str) -> None:
        """`stage` is the stage's name, `driver` the driver's address."""
        self.rank, self.stage = rank, stage
        self._endpoint, self._store, self._driver = endpoint, store, driver
        self._stopped = threading.Event()
        self._reports = itertools.count()
        self._manager: TransferManager | None = None

    def join(self, pid: int) -> tuple[TransferManager, bytes]:
        """Tell the driver that the rank is there, and wait for its welcome; returns what moves the batches, and the task.

        Another rank that has heard of this one sooner may send a batch before: it is not looked at until the welcome has
        said how. Raises CancelledError once the rank is stopped; what else goes wrong is told to the driver first.
        """
        try:
            self._tell(m.Joined(self.rank, self._endpoint.address, pid))
            settings, task, unread = self._wait_for_welcome()
            trace = None
            if settings.trace is not None:
                trace = Trace(settings.trace, self.rank, self.stage, self._endpoint.address)
        except CancelledError:
            raise
        except BaseException as error:
            failure = capture(error, f"stage {self.stage!r}, rank {self.rank.index}, while joining the run")
            self._tell(m.Failed(self.rank, pickle.dumps(failure)))
            self._wait_for_stop()
            raise CancelledError("this rank could not join the run, which the driver knows") from error
        self._manager = TransferManager(
            self.rank, self._endpoint, self._store, self._driver, settings, trace, unread, self._reports
        )
        if self._stopped.is_set():  # between the welcome and now
            self._manager.stop()
        return self._manager, task

    def _wait_for_welcome(self) -> tuple[Settings, bytes, list[Message]]:
        early: list[Message] = []
        while not self._stopped.is_set():
            messages = self._endpoint.receive(1.0)
            for number, frames in enumerate(messages):
                message = read(frames, Welcome, list, Instructions, Freed)
                if isinstance(message, Welcome):
                    return message.settings, bytes(frames[1]), early + messages[number + 1 :]
                early.append(frames)
        raise CancelledError("the driver has stopped this rank")

    def _wait_for_stop(self) -> None:
        while not self._stopped.is_set():
            for frames in self._endpoint.receive(1.0):
                message = read(frames, Welcome, list, Instructions, Freed)
                if isinstance(message, Instructions) and message.stop:
                    return

    def _tell(self, event: Event) -> None:
        self._endpoint.send(self._driver, [pickle.dumps(Report(self.rank, [event], None, next(self._reports)))])

    def stop(self) -> None:
        """Stop the rank as the driver would. From any thread."""
        self._stopped.set()
        if self._manager is None:
            self._endpoint.wake()
        else:
            self._manager.stop()

    def close(self) -> None:
        """Let go of endpoint and store."""
        self.stop()
        if self._manager is None:
            self._endpoint.close()
            self._store.close()
        else:
            self._manager.close()
