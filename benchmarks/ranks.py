"""What a batch costs the driver's rules, however many ranks there are: `python ranks.py`, and real ranks: `--real 64`.

In simulation there are no processes: so many reading ranks send to so many ranks of a loop, each event is told to the real
rules by itself, and the time that these take is divided by the number of batches. The loop makes a checkpoint after every
10th batch.
With `--real` half of the ranks are of a map stage and half of a loop, each a process, on this machine.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter, defaultdict, deque

import numpy as np

import ghee
from ghee.protocol import messages as m
from ghee.protocol.coordinator import Coordinator
from ghee.protocol.delivery import Deliver, Delivery, End, StreamEnded
from ghee.protocol.edge import SourceRules, StageRules
from ghee.protocol.messages import RankId

SIZE = 1000
"""Bytes of a batch. A loop's rank takes four."""

ROOM = 2
"""Batches that lie in a reading rank's outbox at most."""


class Simulation:
    """Reading ranks and a loop without processes: what a rank is told it does at once, in the order of the telling."""

    def __init__(self, readers: int, trainers: int, batches: int, epochs: int, checkpoints: int = 10) -> None:
        """`batches` are read by each reading rank in each epoch, as one split."""
        stages = [StageRules(0, "read", None, readers), StageRules(1, "loop", 0, trainers, 4 * SIZE, depth=1)]
        self.coordinator = Coordinator(stages, SourceRules(epochs, lambda epoch: range(readers), [batches] * readers))
        self.events: deque[m.Event] = deque()
        self.batches, self.checkpoints = batches, checkpoints
        self.reading: dict[RankId, deque[tuple[int, int, int]]] = {RankId(0, n): deque() for n in range(readers)}
        self.outbox: Counter[RankId] = Counter()
        self.inbox = {RankId(1, n): Delivery[m.Send](True, False) for n in range(trainers)}
        self.taken: Counter[tuple[RankId, int]] = Counter()
        self.asked: Counter[RankId] = Counter()
        self.recorded: Counter[RankId] = Counter()
        self.sent = 0
        self.outcome: m.Action | None = None
        self.seconds = 0.0
        self.events.extend(m.Joined(rank, "", 0) for rank in (*self.reading, *self.inbox))
        self.events.extend(m.Idle(rank) for rank in self.reading)

    def run(self) -> None:
        """To the end; `seconds` is the time that the rules have taken from the first batch on."""
        self.carry_out(self.coordinator.start())
        while self.outcome is None:
            self.step()

    def step(self) -> m.Event:
        """Tell the rules of one event, and do what they say."""
        event = self.events.popleft()
        began = time.perf_counter()
        actions = self.coordinator.on(event)
        if self.sent:
            self.seconds += time.perf_counter() - began
        self.carry_out(actions)
        return event

    def carry_out(self, actions: list[m.Action]) -> None:
        """Every rank does what it is told."""
        for action in actions:
            match action:
                case m.Read():
                    self.reading[action.rank].append((action.epoch, action.split, 0))
                    self.read(action.rank)
                case m.Send():
                    self.sent += 1
                    self.outbox[action.rank] -= 1
                    self.read(action.rank)
                    self.inbox[action.to].arrived(action.id[0], action.place, action)
                    self.events.append(m.Accepted(action.to, action.id))
                case m.Release():
                    self.inbox[action.rank].released(action.epoch, action.rounds)
                    self.take(action.rank)
                case m.EpochEnd() if action.rank in self.inbox:
                    self.inbox[action.rank].ended(action.epoch, action.batches, action.sent)
                    self.take(action.rank)
                case m.EpochEnd():
                    self.events.append(
                        m.EpochDone(action.rank, action.epoch, 0, self.taken[action.rank, action.epoch], *[0] * 5)
                    )
                case m.StreamEnd() if action.rank in self.inbox:
                    self.inbox[action.rank].stream_ended(action.epochs)
                    self.take(action.rank)
                case m.StreamEnd():
                    self.events.append(m.Returned(action.rank, b""))
                case m.Recorded():
                    self.recorded[action.rank] = action.number
                    self.take(action.rank)
                case m.Finish() | m.Fail():
                    self.outcome = action

    def read(self, rank: RankId) -> None:
        """Make batches while there is room for them."""
        while self.reading[rank] and self.outbox[rank] < ROOM:
            epoch, split, number = self.reading[rank][0]
            if number == self.batches:
                self.reading[rank].popleft()
                self.events.append(m.SplitDone(rank, epoch, split, number, number))
                self.events.append(m.Idle(rank))
                continue
            self.outbox[rank] += 1
            self.taken[rank, epoch] += 1
            self.events.append(m.Made(rank, (epoch, split, number, 0), 1, SIZE))
            self.events.append(m.Finished(rank, (epoch, split, number), 1, 1, 1))
            self.reading[rank][0] = epoch, split, number + 1

    def take(self, rank: RankId) -> None:
        """A step of the loop for every batch that may be taken."""
        while self.recorded[rank] == self.asked[rank]:
            match self.inbox[rank].next():
                case Deliver(send):
                    assert isinstance(send, m.Send)
                    epoch = send.id[0]
                    self.taken[rank, epoch] += 1
                    self.events.append(m.Consumed(rank, send.id))
                    if self.checkpoints and self.taken[rank, epoch] % self.checkpoints == 0:
                        self.asked[rank] += 1
                        self.events.append(m.Checkpointed(rank, self.asked[rank], epoch, self.taken[rank, epoch]))
                case End(epoch, left):
                    count = self.taken[rank, epoch]
                    self.events.append(m.EpochDone(rank, epoch, count, count, 0, len(left), 0, 0, 0))
                case StreamEnded():
                    self.events.append(m.Returned(rank, b""))
                    return
                case None:
                    return


def simulate(ranks: int, batches: int, epochs: int) -> float:
    """Seconds for each batch."""
    simulation = Simulation(ranks, ranks, batches, epochs)
    simulation.run()
    assert isinstance(simulation.outcome, m.Finish), simulation.outcome
    counts = defaultdict(set)
    for (rank, epoch), count in simulation.taken.items():
        if rank.stage == 1:
            counts[epoch].add(count)
    assert all(of_epoch == {batches} for of_epoch in counts.values()), counts
    return simulation.seconds / simulation.sent


def pass_on(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A map stage that does nothing."""
    return batch


def train(batches: ghee.Batches) -> tuple[list[int], list[int]]:
    """Counts its batches of each epoch, keeps the ids, and meets all other ranks after every batch."""
    from mpi4py import MPI

    counts, ids = [], []
    for epoch in batches.epochs():
        counts.append(0)
        for batch in epoch:
            counts[-1] += 1
            ids += batch["id"].tolist()
            assert MPI.COMM_WORLD.allreduce(counts[-1]) == counts[-1] * ghee.size()
    return counts, ids


def run_real(ranks: int, batches: int = 10, epochs: int = 2) -> tuple[ghee.Run, float]:
    """A run of so many processes, half of them of a map stage, half of a loop; the run and its seconds."""
    maps, trainers = ranks - ranks // 2, ranks // 2
    source = [{"id": np.arange(8) + 8 * number} for number in range(batches * trainers)]
    began = time.perf_counter()
    run = ghee.run(
        ghee.read(source, epochs=epochs).map(pass_on, replicas=maps).loop(train, replicas=trainers), progress=False
    )
    seconds = time.perf_counter() - began
    assert isinstance(run, ghee.Run)
    results = run.results["train"]
    assert [counts for counts, _ in results] == [[batches] * epochs] * trainers
    expected = Counter(int(row) for _ in range(epochs) for item in source for row in item["id"])
    assert Counter(row for _, ids in results for row in ids) == expected
    return run, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[10, 100, 1000], help="ranks of each of the two stages")
    parser.add_argument("--batches", type=int, default=20, help="batches of each rank in each epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--real", type=int, nargs="*", default=[], help="processes, half of them of a map and half of a loop"
    )
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for ranks in options.ranks:
        epochs = max(options.epochs, 2000 // ranks // options.batches)  # what is short is not measured well
        print(f"{ranks} x {ranks} ranks: {1e6 * simulate(ranks, options.batches, epochs):.1f} µs a batch")
    for ranks in options.real:
        run, seconds = run_real(ranks)
        print(f"{ranks} processes: {seconds:.1f} s, the first batch after {run.report.first_batch:.1f} s")


if __name__ == "__main__":
    main()
