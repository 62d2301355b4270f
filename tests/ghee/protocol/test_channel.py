"""The channel's rules under connections that break at any moment: everything arrives once, in its order."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ghee.protocol.channel import Incoming, Outgoing


class Network:
    """A sender, a receiver, and connections: the last one works, older ones may still deliver what they hold."""

    def __init__(self, random: Any) -> None:
        self.random = random
        self.sent: Outgoing[int] = Outgoing()
        self.incoming = Incoming()
        self.connections: list[deque[tuple[int, int]]] = [deque()]
        self.answers: deque[int] = deque()
        self.delivered: list[int] = []

    def send(self, item: int) -> None:
        """One more message goes out over the connection that works, or seems to."""
        self.connections[-1].append((self.sent.add(item), item))

    def lose(self) -> None:
        """The connection breaks: any part of what is under way is lost, the rest may come late."""
        under_way = self.connections[-1]
        for _ in range(self.random.randint(0, len(under_way))):
            under_way.pop()
        if self.random.random() < 0.5:  # libzmq connects again by itself and goes on, until the sender has noticed
            gap = [message for message in self.sent.again() if message not in under_way]
            self.connections[-1] = deque(list(under_way) + gap[self.random.randint(0, len(gap)) :])
        self.connections.append(deque(self.sent.again()))

    def deliver(self) -> None:
        """Some connection, of any age, delivers its next message."""
        full = [connection for connection in self.connections if connection]
        if full:
            number, item = self.random.choice(full).popleft()
            if self.incoming.take(number, 10_000):
                self.delivered.append(item)

    def tell(self, lost: bool) -> None:
        """The receiver says what has arrived; that may be lost, with the connection that it goes over."""
        if self.incoming.is_owed:
            self.answers.append(self.incoming.tell())
        if lost:
            self.answers.clear()
            self.incoming.owe()
        elif self.answers:
            self.sent.arrived(self.answers.popleft())

    def step(self, item: int) -> None:
        """Anything happens."""
        what = self.random.random()
        if what < 0.4:
            self.deliver()
        elif what < 0.5:
            self.lose()
        elif what < 0.7:
            self.tell(lost=self.random.random() < 0.3)
        else:
            self.send(item)

    def finish(self) -> None:
        """From now on nothing breaks."""
        self.lose()
        while any(self.connections):
            self.deliver()
        while self.incoming.is_owed or self.answers:
            self.tell(lost=False)


@given(st.randoms(use_true_random=False), st.integers(0, 200))
@settings(max_examples=300, deadline=None)
def test_everything_arrives_once_and_in_order(random: Any, steps: int) -> None:
    network = Network(random)
    sent: list[int] = []
    for number in range(steps):
        before = len(network.sent.kept)
        network.step(number)
        if len(network.sent.kept) > before:
            sent.append(number)
        assert network.delivered == sent[: len(network.delivered)]
        assert list(network.sent.kept) == sent[len(sent) - len(network.sent.kept) :]
        assert len(sent) - len(network.sent.kept) <= len(network.delivered), "what has not arrived was given up"
    network.finish()
    assert network.delivered == sent
    assert not network.sent.kept, "the sender keeps what has arrived"


def test_the_sender_hears_at_once_of_large_messages_and_in_a_pause_of_small_ones() -> None:
    incoming = Incoming()
    assert not incoming.is_owed
    incoming.take(0, 100)
    assert incoming.is_owed
    assert not incoming.is_due
    incoming.take(1, 1 << 20)
    assert incoming.is_due
    assert incoming.tell() == 2
    assert not incoming.is_owed
    for number in range(2, 66):
        incoming.take(number, 1)
    assert incoming.is_due
    incoming.tell()
    assert not incoming.take(3, 1)
    assert incoming.is_due, "a sender that repeats what has arrived has not heard of it"
