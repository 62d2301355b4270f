"""User code that forks in a rank: the child keeps its batch as it was, and ends by itself."""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

import numpy
import pytest

import ghee
from ghee.codec import decode, encode
from ghee.transfer.shm import SharedStore


def send(sender: SharedStore, receiver: SharedStore, value: int, receivers: int = 1) -> Any:
    parcel = sender.put(encode(numpy.full(100_000, value)), receivers)
    note, frames = sender.pack(parcel, "receiver")
    sender.drop(parcel)
    return decode(parcel.header, receiver.open("sender", note, frames))


@pytest.mark.parametrize("receivers", [1, 2], ids=["shared mapping", "copy-on-write"])
def test_a_childs_batch_stays_as_it_was_at_the_fork(receivers: int) -> None:
    """The parent writes into it, frees it, and its place is used for others; the child writes into its own."""
    sender, receiver = SharedStore(), SharedStore()
    go_on, told = os.pipe(), os.pipe()
    batch = send(sender, receiver, 7, receivers)
    first = batch.ctypes.data
    child = os.fork()
    if child == 0:
        os.read(go_on[0], 1)
        was = int(batch.min()), int(batch.max())
        batch[:] = 100
        os.write(told[1], repr((was, int(batch.min()))).encode())
        os._exit(0)
    try:
        batch[:] = 8
        del batch
        for name, places in receiver.freed():
            assert name == "sender"
            sender.give_back("receiver", places)
        again = send(sender, receiver, 9)
        assert receivers > 1 or again.ctypes.data == first
        os.write(go_on[1], b".")
        assert os.read(told[0], 100) == b"((7, 7), 100)"
        assert (again == 9).all()
        assert os.waitpid(child, 0)[1] == 0
        del again
    finally:
        for descriptor in (*go_on, *told):
            os.close(descriptor)
        sender.close()
        receiver.close()


def test_a_process_of_multiprocessing_is_handed_a_batch() -> None:
    def check(batch: Any, go_on: Any, results: Any) -> None:
        go_on.wait()
        results.put((int(batch["n"][0]), int(batch["x"].min()), int(batch["x"].max())))

    def train(batches: Any) -> Any:
        method = multiprocessing.get_context("fork")
        results, go_on, children = method.SimpleQueue(), method.Event(), []
        for number, batch in enumerate(batches):
            if number % 10 == 0:
                children.append(method.Process(target=check, args=(batch, go_on, results)))
                children[-1].start()
        go_on.set()
        found = [results.get() for _ in children]
        for child in children:
            child.join()
        return found

    def make(number: int) -> Any:
        return {"n": numpy.full(1, number), "x": numpy.full(50_000, number)}

    found = ghee.run(ghee.read(list(range(40))).map(make).loop(train)).result
    assert len(found) == 4
    assert all(low == high == number for number, low, high in found)


@pytest.mark.parametrize("on", ["local", "inline"])
def test_a_forked_child_ends_with_its_own_code_and_the_run_goes_on(on: str) -> None:
    """However it leaves the function: by sys.exit, an exception, a return, or by asking for a batch, which is the rank's."""

    def train(batches: Any) -> Any:
        left, codes = iter(batches), []
        for way in ("exit", "exit 7", "exit by text", "raise", "return", "ask"):
            next(left)
            child = os.fork()
            if child:
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            elif way.startswith("exit"):
                sys.exit({"exit": None, "exit 7": 7}.get(way, "over"))
            elif way == "raise":
                raise ValueError("in the child")
            elif way == "ask":
                next(left)
            else:
                return None
        assert next(left, None) is None
        return codes

    run = ghee.run(ghee.read([numpy.arange(3)] * 6).loop(train), on=on)
    assert run.result == [0, 7, 1, 1, 0, 1]
    assert run.report.balanced


@pytest.mark.parametrize("on", ["local", "inline"])
def test_a_forked_child_of_a_map_that_goes_on_gives_no_batch(on: str) -> None:
    def double(batch: Any) -> Any:
        child = os.fork()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0
        return {"code": numpy.full(1, code), "x": batch * 2}

    found: list[Any] = []
    ghee.run(ghee.read([numpy.arange(3)] * 3).map(double).write(found), on=on)
    assert [int(batch["code"][0]) for batch in found] == [1] * 3
