"""What a source and a sink are to the rest of ghee: the types that the driver and the ranks code against.

        driver                                 ranks
source.splits() ── order(epoch) ── Split ──► source.read(split, epoch) ──► record batches ──► …
sink.prepare()  ──────────────────────────► sink.writer(rank).write(batch) … close() ──► part files (invisible)
sink.publish(parts) ◄── PartFile ─────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Split:
    """A piece of the source that can be read alone; small, and it pickles.

    `index` is its place in the source's order. `rows` is how many rows it will yield where that is known before it is
    read (Parquet and Arrow files without a filter), else None.
    """

    index: int
    pieces: tuple[Any, ...]
    rows: int | None


class Source(Protocol):
    """Something to read. It pickles unless `hosted`: the driver sends it to the ranks, which read the splits."""

    @property
    def hosted(self) -> bool:
        """True when it can be read in the driver's process only (a Python iterable)."""

    def splits(self) -> list[Split]:
        """In the driver: lists the files, checks all of them, cuts them.

        Raises SourceNotFoundError, SourceCorruptError or SchemaError, each with every problem that was found.
        """

    def read(self, split: Split, *, epoch: int) -> Iterator[Any]:
        """In a rank: the split's batches, in an order that depends on (split, epoch, seed) alone.

        Raises SourceError (SourceCorruptError, SourceNotFoundError) naming the file and the row group.
        """

    def order(self, splits: Sequence[Split], epoch: int) -> list[Split]:
        """The order in which the splits are handed out in this epoch; pure."""

    def check_epochs(self, epochs: int) -> None:
        """Raises PipelineError where the source cannot be read `epochs` times."""


@dataclass(frozen=True)
class PartFile:
    """A closed file in the sink's staging folder.

    `path` is its place below the target, as it will be once published; `bytes` its size; `digest` is "sha256:" and the
    SHA-256 of its bytes.
    """

    path: str
    rows: int
    bytes: int
    digest: str


class Writer(Protocol):
    """One rank's end of a sink. Used by one thread. After `close` or `abort` it takes no more batches.

    That of a sink that `stores` has two methods more: `stored()`, the parts that have been closed since it was asked last,
    if every batch lies whole in parts that are closed but for the last one that was written; and `store()`, which closes
    what is open and returns these parts. Parts that were returned are not the writer's any more: `abort` leaves them.
    """

    def write(self, batch: object) -> None:
        """Raises BatchError for what is no batch (nothing of it is written), SinkError where storage fails."""

    def close(self) -> list[PartFile]:
        """Flushes, and returns what was written: invisible to readers until the driver publishes it."""

    def abort(self) -> None:
        """Drops what was written. May be called more than once, and after `close`."""


class Sink(Protocol):
    """Somewhere to write. It pickles unless `hosted`; it is sent to the ranks *after* `prepare`.

    A sink that `stores` (an attribute, True) keeps parts over the death of its run: see `ghee.io.sinks.files.FileSink`.
    """

    @property
    def hosted(self) -> bool:
        """True when it lives in the driver's process (a list, a callback)."""

    def prepare(self) -> None:
        """In the driver, before anything starts: can the target be written, may it be? Removes what dead runs left.

        Raises SinkExistsError or SinkError.
        """

    def writer(self, rank: int) -> Writer:
        """In the rank. `rank` is for names only: a restarted rank may have a second writer."""

    def publish(self, parts: Sequence[PartFile]) -> None:
        """In the driver, once, at the end: the parts become visible, all together, and nothing else does."""

    def abort(self) -> None:
        """In the driver: removes what is staged. May be called more than once; after `publish` it does nothing."""
