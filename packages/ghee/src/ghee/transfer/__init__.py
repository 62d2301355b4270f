"""Moves batches from rank to rank: the Transfer Manager and the carriers it stands on.

A carrier is an endpoint (addressed messages that never block the sender) and a store for payloads (where a batch's
bytes lie on the way). There are three behind one contract (`contract.py`): threads of one process (`inproc.py`),
processes of one host (`shm.py`: bytes in shared memory, ZeroMQ carries the descriptor) and processes of any hosts
(`zeromq.py`: ZeroMQ carries the bytes). Nothing here decides who gets what: that is `ghee.protocol`.
"""
