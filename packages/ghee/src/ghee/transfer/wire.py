"""What ranks and the driver send each other: the welcome, batches, freed places, reports, instructions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ghee.codec import Buffer
from ghee.observe.times import Times
from ghee.observe.trace import TraceSettings
from ghee.protocol.messages import Action, BatchId, Event, RankId, Tail


@dataclass(frozen=True)
class Settings:
    """How a rank takes part: `receivers` is the number of edges that its outputs go to; `room` is what its outbox takes and
    `credit` the smallest of its receivers', both in bytes.

    `cuts`: what it makes is cut anew by rows. `rebatch`: of how many rows its own batches are, which come to it in parts;
    with `drop_last` it is not given one that has fewer.

    `epoch` is the first that it sees. A loop goes on from checkpoint `number`, after `step` batches; 0 is the beginning.
    `trace`: what happens is to be written down.
    """

    receivers: int
    room: int
    credit: int = 1
    gated: bool = False
    ordered: bool = False
    cuts: bool = False
    rebatch: int | None = None
    drop_last: bool = False
    epoch: int = 0
    number: int = 0
    step: int = 0
    trace: TraceSettings | None = None


class Welcome(NamedTuple):
    """Driver to rank, before anything else of the driver's. A second frame is the stage's task, which may take long to load;
    what moves batches needs none of it.
    """

    settings: Settings


class Arrived(NamedTuple):
    """A batch in the inbox. `sender` and `address` are who sent it; `buffers` is what it stands on, once it is here.

    `index` and `cut` are of a part: its number among those of its place, and which rows of the buffers' batch it is, the
    first and how many, where it is not all. `parts`: what a batch is put together of.
    """

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
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a batch
    cut: tuple[int, int] | None = None
    parts: tuple[Arrived, ...] = ()

    @property
    def names(self) -> list[BatchId]:
        """Of the batch, or of its parts."""
        return [part.id for part in self.parts] or [self.id]


class Freed(NamedTuple):
    """Rank to rank: places of the sender's store that nothing refers to any more at `address`."""

    address: str
    places: list[object]


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
