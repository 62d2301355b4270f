"""Bare pyzmq: PUSH to PULL over ipc, without copies in Python, eight batches in flight on either side."""

import multiprocessing
import os
import sys
import tempfile

import numpy as np
import zmq
from hop import measure_sizes, receive, send, sizes_from
from job import print_result

IN_FLIGHT = 8


def push(address: str, size: int, count: int, received) -> None:
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.sndhwm = IN_FLIGHT
        socket.connect(address)
        for array in send(size, count):
            socket.send(array, copy=False)
        received.wait()  # a socket that closes earlier may lose what the receiver has not read yet


def one(size: int, count: int) -> dict[str, float]:
    received = multiprocessing.Event()
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.rcvhwm = IN_FLIGHT
        address = f"ipc://{folder}/hop"
        socket.bind(address)
        sender = multiprocessing.get_context("spawn").Process(target=push, args=(address, size, count, received))
        sender.start()
        frames = (socket.recv(copy=False) for _ in range(count))
        arrays = (np.frombuffer(frame.buffer, np.uint8) for frame in frames)
        measured = receive(arrays, size, count, os.getpid())
        received.set()
        sender.join()
    return measured


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    print_result("zmq", {"pyzmq": zmq.__version__}, measure_sizes(sizes_from(sys.argv[1:]), one))
