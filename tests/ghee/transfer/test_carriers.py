"""One contract, three carriers: in-process queues, shared memory with ZeroMQ, and ZeroMQ frames over TCP."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghee.codec import decode, encode
from ghee.transfer.contract import Endpoint, Store
from ghee.transfer.frames import FrameStore
from ghee.transfer.inproc import CopyStore, Exchange
from ghee.transfer.shm import SharedStore
from ghee.transfer.zeromq import Keys, ZmqEndpoint

LIMIT = 20.0
"""Seconds for a message to arrive; a limit, not something that is waited for."""

CARRIERS = ["inproc", "shm", "tcp"]


class Peer:
    """One rank's end: an endpoint and a store."""

    def __init__(self, endpoint: Endpoint, store: Store) -> None:
        self.endpoint, self.store = endpoint, store
        self.messages: list[Any] = []

    def send(self, batch: object, *others: Peer) -> None:
        """Lay a batch down and send it to all of these."""
        parcel = self.store.put(encode(batch), len(others))
        for other in others:
            note, frames = self.store.pack(parcel)
            self.endpoint.send(other.endpoint.address, [self.head(parcel.header, note), *frames])

    def head(self, header: bytes, note: object) -> bytes:
        """The first frame of a batch."""
        return pickle.dumps((self.endpoint.address, header, note))

    def message(self) -> Any:
        """The next message."""
        deadline = time.monotonic() + LIMIT
        while not self.messages:
            assert time.monotonic() < deadline, "nothing has arrived"
            self.messages += self.endpoint.receive(1.0)
        return self.messages.pop(0)

    def receive(self) -> Any:
        """The next batch."""
        first, *frames = self.message()
        sender, header, note = pickle.loads(first)
        return decode(header, self.store.open(sender, note, frames))

    def tell_freed(self, sender: Peer) -> int:
        """Give back what nothing here refers to any more; how many slots."""
        count = 0
        for address, places in self.store.freed():
            assert address == sender.endpoint.address
            sender.store.give_back(places)
            count += len(places)
        return count

    def close(self) -> None:
        """As a rank that leaves."""
        self.endpoint.close()
        self.store.close()


@pytest.fixture(params=CARRIERS)
def peers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Peer]]:
    """Make peers of one run."""
    made: list[Peer] = []
    exchange, keys = Exchange(), Keys.make()
    folder = Path(os.environ["TMPDIR"], "sockets")
    folder.mkdir()

    def make() -> Peer:
        if request.param == "inproc":
            peer = Peer(exchange.endpoint(), CopyStore())
        elif request.param == "shm":
            peer = Peer(ZmqEndpoint(f"ipc://{folder}/{len(made)}", keys), SharedStore())
        else:
            peer = Peer(ZmqEndpoint("tcp://127.0.0.1:*", keys), FrameStore())
        made.append(peer)
        return peer

    yield make
    for peer in made:
        peer.close()
        peer.close()  # closing twice is allowed
    shutil.rmtree(folder)  # as a launcher does with the folder of its run


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 3)), max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_shared_slots_under_any_order_of_events(plan: list[tuple[int, int]], random: Any) -> None:
    """Batches of any sizes to one to three receivers, some dropped, freed in any order: all is whole, all comes free."""
    sender, receivers = SharedStore(), [SharedStore() for _ in range(3)]
    held: list[Any] = []
    try:
        for number, (size, copies) in enumerate(plan):
            parcel = sender.put(encode(numpy.full(size, number % 251, numpy.uint8)), copies)
            for store in receivers[:copies]:
                if random.random() < 0.2:
                    sender.drop(parcel)
                    continue
                note, frames = sender.pack(parcel)
                frames = [bytearray(frame) for frame in frames]
                held.append((number % 251, decode(parcel.header, store.open("sender", note, frames))))
            while held and random.random() < 0.5:
                held.pop(random.randrange(len(held)))
            for store in receivers:
                for _, places in store.freed():
                    sender.give_back(places)
            assert all((array == value).all() for value, array in held)
    finally:
        held.clear()
        for store in (sender, *receivers):
            store.close()


def test_the_sender_may_go_on_with_its_arrays(peers: Callable[[], Peer]) -> None:
    sender, receiver = peers(), peers()
    array = numpy.ones(1 << 20)
    sender.send({"x": array}, receiver)
    array[:] = 2
    assert (receiver.receive()["x"] == 1).all()


def test_order_is_kept_and_nothing_is_lost(peers: Callable[[], Peer]) -> None:
    sender, other, receiver = peers(), peers(), peers()
    for number in range(500):
        sender.send((0, number, b"x" * (number % 7) * 20_000), receiver)
        other.send((1, number), receiver)
    seen: list[list[int]] = [[], []]
    for _ in range(1000):
        who, number, *_ = receiver.receive()
        seen[who].append(number)
    assert seen == [list(range(500))] * 2


def test_memory_is_used_again_and_a_kept_batch_stays_as_it_is(peers: Callable[[], Peer]) -> None:
    sender, receiver = peers(), peers()
    sender.send(numpy.full(1 << 18, 255, numpy.uint8), receiver)
    kept = receiver.receive()
    sizes = []
    for number in range(1000):
        sender.send(numpy.full(1 << 18, number % 200, numpy.uint8), receiver)
        batch = receiver.receive()
        assert batch[0] == batch[-1] == number % 200
        del batch
        receiver.tell_freed(sender)
        sizes.append(memory_of_memfds())
    assert (kept == 255).all()
    assert sizes[-1] == sizes[10]  # with a batch of 256 KiB each time, 1000 would be 250 MiB
    assert sizes[-1] <= 4 << 20


def test_what_several_receive_comes_free_when_the_last_has_freed_it(peers: Callable[[], Peer]) -> None:
    sender, receivers = peers(), [peers(), peers(), peers()]
    for number in range(20):
        sender.send(numpy.full(1 << 18, number, numpy.uint8), *receivers)
        batches = [receiver.receive() for receiver in receivers]
        assert [int(batch[5]) for batch in batches] == [number] * 3
        batches.clear()
        for receiver in receivers:
            receiver.tell_freed(sender)
    assert memory_of_memfds() <= 1 << 20


def test_a_batch_outlives_its_sender(peers: Callable[[], Peer]) -> None:
    sender, receiver = peers(), peers()
    sender.send(numpy.full(1 << 20, 7, numpy.uint8), receiver)
    batch = receiver.receive()
    sender.close()
    assert (batch == 7).all()
    batch[:] = 8


def memory_of_memfds() -> int:
    """Bytes of this process's memfds, each counted once."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            if "memfd:ghee" in os.readlink(f"/proc/self/fd/{entry}"):
                status = os.stat(f"/proc/self/fd/{entry}")
                found[status.st_ino] = status.st_size
        except OSError:
            continue
    return sum(found.values())


def test_a_waiting_receiver_is_woken_from_another_thread(peers: Callable[[], Peer]) -> None:
    peer = peers()
    thread = threading.Thread(target=peer.endpoint.wake)
    thread.start()
    assert peer.endpoint.receive(None) == []
    thread.join()
    assert peer.endpoint.receive(0.0) == []
