"""A rank that is sent batches before it is ready: before the driver's welcome is here, and while its task is loaded."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ghee
from ghee.codec import encode
from ghee.errors import CancelledError
from ghee.protocol import messages as m
from ghee.protocol.delivery import End, StreamEnded
from ghee.protocol.messages import RankId
from ghee.transfer.inproc import CopyStore, Exchange, InprocEndpoint
from ghee.transfer.manager import TransferManager
from ghee.transfer.member import Member
from ghee.transfer.wire import Arrived, Instructions, Report, Settings, Welcome

FILES, ROWS = 6, 40

LONGEST = 0.5
"""Seconds."""


def numbers_in(seconds: float) -> Callable[[Any], list[int]]:
    """A loop whose task takes so many seconds to load in a rank, as `import torch` does: in one half of the ranks, and in
    the other the rest of `LONGEST`.
    """

    def load() -> int:
        import os  # it runs in a rank, which does not find this module
        import sys
        import time

        if "ghee.launch.process" in " ".join(sys.orig_argv):  # it stands for imports; nothing is waited for
            time.sleep(longest - seconds if int(os.environ.get("PMI_RANK", "0")) % 2 else seconds)
        return 0

    class SlowToLoad:
        def __reduce__(self) -> Any:
            return load, ()

    longest, slow = LONGEST, SlowToLoad()

    def loop(batches: Any) -> list[int]:
        assert slow is not None
        return [int(batch["n"][0].as_py()) for batch in batches]

    return loop


@pytest.mark.parametrize(
    ("ranks", "replicas", "seconds"), [(1, 1, 0.5), (1, 2, 0.1), (1, 3, 0.3), (2, 1, 0.5), (2, 2, 0.2), (2, 3, 0.0)]
)
def test_an_ordered_loop_is_ordered_however_long_its_task_takes_to_load(
    ranks: int, replicas: int, seconds: float, tmp_path: Path
) -> None:
    for part in range(FILES):
        pq.write_table(pa.table({"n": range(part * ROWS, (part + 1) * ROWS)}), tmp_path / f"{part}.parquet")
    source = ghee.read(str(tmp_path / "*.parquet"), batch_size=1)
    pipeline = source.map(lambda batch: batch, replicas=replicas).loop(
        numbers_in(seconds), replicas=ranks, ordered=True, name="loop"
    )
    by_rank = ghee.run(pipeline, progress=False).results["loop"]
    assert by_rank == [list(range(rank, FILES * ROWS, ranks)) for rank in range(ranks)]


# ── one rank, and a driver that says nothing yet ─────────────────────────────────────────────────────────────────

ME, OTHER = RankId(1, 0), RankId(0, 0)


@contextmanager
def joining() -> Iterator[tuple[Member, InprocEndpoint, InprocEndpoint]]:
    """A rank's member, its driver's endpoint, and another rank's."""
    exchange = Exchange()
    driver, other = exchange.endpoint(), exchange.endpoint()
    member = Member(ME, "loop", exchange.endpoint(), CopyStore(), driver.address)
    try:
        yield member, driver, other
    finally:
        member.close()
        driver.close()
        other.close()


def send_batch(other: InprocEndpoint, to: str, place: int) -> None:
    encoded = encode({"n": np.array([place])})
    head = Arrived((0, 0, place), 1, encoded.size, place, None, False, encoded.header, OTHER, other.address, None, [])
    other.send(to, [pickle.dumps([(head, len(encoded.buffers))]), *map(bytes, encoded.buffers)])


def all_of(manager: TransferManager) -> list[int]:
    seen = []
    while not isinstance(step := manager.next_batch(), StreamEnded):
        if not isinstance(step, End):
            batch: Any = manager.unpack(step)
            seen.append(int(batch["n"][0]))
    return seen


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("before_welcome", [0, 1, 2, 3])
def test_batches_that_come_before_the_welcome_are_taken_as_it_says(order: tuple[int, ...], before_welcome: int) -> None:
    with joining() as (member, driver, other):
        address = member._endpoint.address
        for place in order[:before_welcome]:
            send_batch(other, address, place)
        driver.send(address, [pickle.dumps(Welcome(Settings(0, 1, ordered=True))), b"task"])
        ends = [m.EpochEnd(ME, 0, 3, 3), m.StreamEnd(ME, 1)]
        driver.send(address, [pickle.dumps(Instructions(ends, {}))])  # type: ignore[arg-type]
        for place in order[before_welcome:]:
            send_batch(other, address, place)
        manager, task = member.join(0)
        assert task == b"task"
        assert all_of(manager) == [0, 1, 2]


def test_a_rank_that_is_stopped_before_the_welcome_ends() -> None:
    with joining() as (member, driver, _):
        stopping = threading.Thread(target=lambda: driver.receive(None) and member.stop())
        stopping.start()  # once the rank has said that it is there
        with pytest.raises(CancelledError):
            member.join(0)
        stopping.join()


def test_what_goes_wrong_before_the_welcome_is_told_to_the_driver_which_stops_the_rank() -> None:
    told: list[m.Event] = []

    def drive() -> None:
        while not any(isinstance(event, m.Failed) for event in told):
            for frames in driver.receive(None):
                report: Report = pickle.loads(frames[0])
                assert report.number == len(told)
                told.extend(report.events)
        driver.send(address, [pickle.dumps(Instructions([], {}, stop=True))])

    with joining() as (member, driver, _):
        address = member._endpoint.address
        driver.send(address, [b"noise"])
        driving = threading.Thread(target=drive)
        driving.start()
        with pytest.raises(CancelledError):
            member.join(0)
        driving.join()
    joined, failed = told
    assert isinstance(joined, m.Joined)
    assert isinstance(failed, m.Failed)
    assert "while joining the run" in pickle.loads(failed.error).where
