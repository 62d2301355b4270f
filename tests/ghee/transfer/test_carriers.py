"""One contract, three carriers: in-process queues, shared memory with ZeroMQ, and ZeroMQ frames over TCP."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import batch_types
import numpy
import pyarrow as pa
import pytest
import torch
import zmq
import zmq.utils.monitor
from batch_types import BATCHES, overwrite, same
from hypothesis import given, settings
from hypothesis import strategies as st

import ghee
from ghee.codec import decode, encode
from ghee.launch.local import LocalLauncher
from ghee.transfer import shm
from ghee.transfer.arena import Arena
from ghee.transfer.contract import Endpoint, Store
from ghee.transfer.frames import FrameStore
from ghee.transfer.inproc import CopyStore, Exchange
from ghee.transfer.memory import ALIGNMENT
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
            note, frames = self.store.pack(parcel, other.endpoint.address)
            self.endpoint.send(other.endpoint.address, [self.head(parcel.header, note), *frames])
        self.store.drop(parcel)

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
            sender.store.give_back(self.endpoint.address, places)
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


@pytest.mark.parametrize("rows", [3, 40_000], ids=["small", "large"])
@pytest.mark.parametrize("kind", BATCHES)
def test_every_kind_of_batch_arrives_whole_writable_and_private(peers: Callable[[], Peer], kind: str, rows: int) -> None:
    sender, first, second = peers(), peers(), peers()
    batch = BATCHES[kind](rows)
    sender.send(batch, first, second)
    one, two = first.receive(), second.receive()
    assert same(one, batch)
    overwrite(one)
    assert same(batch, BATCHES[kind](rows))
    assert same(two, batch)
    overwrite(two)


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 3)), max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_shared_slots_under_any_order_of_events(plan: list[tuple[int, int]], random: Any) -> None:
    """Batches of any sizes to none to three receivers, one of which dies: all is whole, and all comes free."""
    sender, receivers = SharedStore(), {str(number): SharedStore() for number in range(3)}
    held: list[Any] = []
    try:
        for number, (size, copies) in enumerate(plan):
            parcel = sender.put(encode(numpy.full(size, number % 251, numpy.uint8)), copies)
            for name, store in list(receivers.items())[:copies]:
                if random.random() < 0.2:
                    continue
                note, frames = sender.pack(parcel, name)
                frames = [bytearray(frame) for frame in frames]
                held.append((number % 251, decode(parcel.header, store.open("sender", note, frames))))
            sender.drop(parcel)
            while held and random.random() < 0.5:
                held.pop(random.randrange(len(held)))
            for name, store in receivers.items():
                for _, places in store.freed():
                    sender.give_back(name, places)
            assert all((array == value).all() for value, array in held)
        held.clear()
        sender.peer_gone("0")
        for name, store in receivers.items():
            for _, places in store.freed():
                sender.give_back(name, places)
        assert not sender._batches
        assert sender._arena.used == 0
        assert sender._arena.held <= sender._arena.most_used
    finally:
        held.clear()
        for store in (sender, *receivers.values()):
            store.close()


@pytest.mark.parametrize("size", [0, 1, 9_000, 70_000, 20 << 20], ids=str)
@pytest.mark.parametrize("receivers", [1, 2])
def test_every_buffer_arrives_aligned(peers: Callable[[], Peer], size: int, receivers: int) -> None:
    """Whatever the sizes of the others beside it; 20 MiB go over TCP in pieces."""
    sender, others = peers(), [peers() for _ in range(receivers)]
    for odd in (1, 3, 4 + size):
        batch = {"odd": numpy.ones(odd, numpy.uint8), "x": numpy.arange(10.0), "t": torch.ones(size, dtype=torch.int8)}
        batch["arrow"] = pa.array(range(5))
        sender.send(batch, *others)
        for other in others:
            arrived = other.receive()
            addresses = [arrived["odd"].ctypes.data, arrived["x"].ctypes.data, arrived["arrow"].buffers()[1].address]
            addresses += [arrived["t"].data_ptr()] if size else []
            assert [address % ALIGNMENT for address in addresses] == [0] * len(addresses)


sizes = st.lists(st.integers(1, 400 << 10), min_size=1, max_size=60)


@given(sizes, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_arena_holds_no_more_than_was_in_use_at_once(sizes: list[int], random: Any) -> None:
    arena, live, most = Arena(), [], 0
    try:
        for number, size in enumerate(sizes):
            block = arena.take(size)
            block.memory[:] = bytes([number]) * block.size
            live.append((number, block))
            most = max(most, sum(block.size for _, block in live))
            assert os.fstat(arena.descriptor).st_blocks * 512 <= most
            assert all(block.memory == bytes([number]) * block.size for number, block in live)
            while live and random.random() < 0.6:
                arena.give_back(live.pop(random.randrange(len(live)))[1])
    finally:
        arena.close()


def test_memory_is_flat_where_sizes_vary() -> None:
    """Batches of 1 to 16 MiB in turn, never more than 32 MiB at once."""
    store, flight = SharedStore(), 32 << 20
    try:
        for size in (1 << 20, 2 << 20, 4 << 20, 8 << 20, 16 << 20) * 2:
            live: list[Any] = []
            for _ in range(2 * flight // size):
                if len(live) * size >= flight:
                    store.drop(live.pop(0))
                live.append(store.put(encode(numpy.ones(size - 4096, numpy.uint8)), 1))
                assert memory_of_memfds() <= flight
            for parcel in live:
                store.drop(parcel)
    finally:
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
                found[status.st_ino] = status.st_blocks * 512
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


# ── who may speak ────────────────────────────────────────────────────────────────────────────────────────────────

REFUSED = zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_AUTH
REFUSED |= zmq.Event.DISCONNECTED | zmq.Event.CLOSED


def attempt(context: zmq.Context[Any], victim: ZmqEndpoint, public: bytes | None, secret: bytes, server: bytes) -> list[Any]:
    """Send as a stranger until the connection is refused; what the victim has received meanwhile."""
    push = context.socket(zmq.PUSH)
    push.linger = 0
    if public is not None:
        push.curve_publickey, push.curve_secretkey, push.curve_serverkey = public, secret, server
    monitor = push.get_monitor_socket(REFUSED | zmq.Event.HANDSHAKE_SUCCEEDED)
    push.connect(victim.address)
    push.send(pickle.dumps("poison"))
    received: list[Any] = []
    deadline = time.monotonic() + LIMIT
    while not monitor.poll(0):
        assert time.monotonic() < deadline
        received += victim.receive(0.05)
    event = zmq.utils.monitor.recv_monitor_message(monitor)["event"]
    assert event & REFUSED, f"the stranger was let in: {event!r}"
    push.disable_monitor()
    monitor.close()
    push.close()
    return received


@pytest.mark.parametrize("bind", ["ipc", "tcp"])
@pytest.mark.parametrize("stranger", ["no key", "own key", "wrong server key", "key of another run"])
def test_who_has_not_the_runs_key_delivers_nothing(bind: str, stranger: str) -> None:
    keys, others = Keys.make(), Keys.make()
    victim, friend = (
        ZmqEndpoint(f"ipc://{os.environ['TMPDIR']}/{name}" if bind == "ipc" else "tcp://127.0.0.1:*", keys)
        for name in ("victim", "friend")
    )
    context = zmq.Context()
    try:
        arguments: dict[str, tuple[bytes | None, bytes, bytes]] = {
            "no key": (None, b"", b""),
            "own key": (others.public, others.secret, keys.public),  # the public half may be known to anybody
            "wrong server key": (keys.public, keys.secret, others.public),
            "key of another run": (others.public, others.secret, others.public),
        }
        received = attempt(context, victim, *arguments[stranger])
        friend.send(victim.address, [b"hello"])
        while not received:
            received += victim.receive(1.0)
        assert [[bytes(frame) for frame in message] for message in received] == [[b"hello"]]
    finally:
        context.destroy(0)
        friend.close()
        victim.close()
        for name in ("victim", "friend"):
            Path(os.environ["TMPDIR"], name).unlink(missing_ok=True)


def test_only_the_user_can_enter_the_folder_of_a_run(tmp_path: Path) -> None:
    def look(batch: Any) -> Any:
        import tempfile

        (folder,) = [path for path in Path(tempfile.gettempdir()).iterdir() if path.name.startswith("ghee-")]
        modes = {path.name: path.stat().st_mode & 0o777 for path in [folder, *folder.iterdir()]}
        return [{"folder": folder.name, "modes": modes}]

    found: list[Any] = []
    ghee.run(ghee.read([1]).map(look).write(found))
    modes = found[0][0]["modes"]
    assert modes[found[0][0]["folder"]] == 0o700
    assert modes["bootstrap"] == 0o600


# ── the trap of libzmq ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("carrier", ["shm", "tcp"])
def test_a_sender_that_is_done_long_before_its_receiver_loses_nothing(carrier: str, tmp_path: Path) -> None:
    """The receiver's process stands still, so that sockets and the kernel's buffers fill; the sender comes to its end."""
    batches, stopped = 1500, tmp_path / "stopped"
    os.mkfifo(stopped)

    class Send:
        def __call__(self, number: Any) -> Any:
            if number == batches - 1:
                self.let_the_receiver_go_on()
            return {"number": number, "x": numpy.full(40_000, number % 256, numpy.uint8)}

        def let_the_receiver_go_on(self) -> None:
            """Nothing is left to be done here but the batch in hand."""
            receiver = int(stopped.read_text())
            while Path(f"/proc/{receiver}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                os.sched_yield()
            os.kill(receiver, signal.SIGCONT)

    def take(batches: Any) -> list[int]:
        seen = []
        for batch in batches:
            if not seen:
                stopped.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            assert (batch["x"] == batch["number"] % 256).all()
            seen.append(batch["number"])
        return seen

    (tmp_path / "logs").mkdir()
    launcher = LocalLauncher(tmp_path / "logs", carrier=carrier)
    pipeline = ghee.read(list(range(batches))).map(Send, credit="1Gi").loop(take, credit="1Gi")
    run = ghee.run(pipeline, on=launcher)
    assert sorted(run.result) == list(range(batches))
    assert run.report.balanced


def test_every_kind_of_batch_goes_through_a_run_of_processes() -> None:
    """Source in the driver, one rank that passes on, a sink in the driver: two hops, two directions."""
    batches = [make(20_000) for make in BATCHES.values() if make is not batch_types.Point]
    batches = [batch for batch in batches if type(batch).__module__ != "batch_types"]
    found: list[Any] = []
    ghee.run(ghee.read(batches).map(lambda batch: batch).write(found))
    assert len(found) == len(batches)
    for sent, arrived in zip(batches, found, strict=True):
        assert same(sent, arrived)


def test_a_wrong_note_is_told_from_a_sender_that_has_died() -> None:
    """The batch of a sender that has died is made again; a note that a living one got wrong must fail the run."""
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # a sender that lives until it is told to die
        os.write(ready[1], b".")
        os.read(go_on[0], 1)
        os._exit(0)
    receiver = SharedStore()
    try:
        os.read(ready[0], 1)
        wrong = shm._Note(child, 9_999, (0, 1 << 20), 0, 1 << 20, ((0, 1 << 20),), False)
        with pytest.raises(ValueError, match=f"descriptor 9999 of process {child}, which lives and has it not"):
            receiver.open("", wrong, [])
        os.write(go_on[1], b".")
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        with pytest.raises(OSError, match="No such file"):  # dead, and not buried yet
            receiver.open("", wrong, [])
        os.waitpid(child, 0)
        with pytest.raises(OSError, match="No such file"):
            receiver.open("", wrong, [])
    finally:
        receiver.close()
        for descriptor in (*ready, *go_on):
            os.close(descriptor)
