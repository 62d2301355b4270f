"""What ranks and the driver send each other: batches, freed places, reports, instructions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ghee.codec import Buffer
from ghee.protocol.messages import Action, BatchId, Event, RankId, Tail


class Arrived(NamedTuple):
    """A batch in the inbox. `sender` and `address` are who sent it; `buffers` is what it stands on, once it is here."""

    id: BatchId
    rows: int
    size: int
    place: int
    fill: Tail | None
    redo: bool
    header: bytes
    sender: RankId
    address: str
    note: object
    buffers: list[Buffer]


class Freed(NamedTuple):
    """Rank to rank: places of the sender's store that nothing refers to any more at `address`."""

    address: str
    places: list[object]


@dataclass
class Times:
    """Seconds and counts since the rank's first batch; `first_batch` is when that was, on the clock `time.time`.

    `set_aside` counts messages of the source that could not be decoded and were passed over.
    `given` counts the batches that a loop's function has been handed, the one it is at among them.
    `read` is the part of `worked` that a reading rank spent in its source, `cpu` what the rank's process computed.
    """

    waited_input: float = 0.0
    waited_room: float = 0.0
    worked: float = 0.0
    rows_in: int = 0
    rows_out: int = 0
    batches_in: int = 0
    batches_out: int = 0
    bytes_out: int = 0
    first_batch: float = 0.0
    set_aside: int = 0
    read: float = 0.0
    cpu: float = 0.0
    given: int = 0


class Instructions(NamedTuple):
    """Driver to rank: actions, the addresses of ranks that were not heard of before, and of those that have died."""

    actions: list[Action]
    addresses: dict[RankId, str]
    stop: bool = False
    gone: tuple[str, ...] = ()


class Report(NamedTuple):
    """Rank to driver: events, and the rank's times when they are due. `number` counts the rank's reports, from 0 on."""

    rank: RankId
    events: list[Event]
    times: Times | None
    number: int
