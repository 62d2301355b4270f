"""Batches to batches: of one size, a range of rows, of several sources in turn, permuted within a buffer. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from ghee.io.arrays import from_numpy
from ghee.io.plan import permutation


def rebatch(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """The same rows in batches of exactly `size` rows, but for the last. Copies only where two batches meet."""
    held: list[Any] = []
    rows = 0
    for batch in batches:
        at = 0
        while at < batch.num_rows:
            part = batch.slice(at, size - rows)
            at += part.num_rows
            rows += part.num_rows
            held.append(part)
            if rows == size:
                yield _joined(held)
                held, rows = [], 0
    if held:
        yield _joined(held)


def sliced(batches: Iterable[Any], skip: int, take: int | None) -> Iterator[Any]:
    """The rows from `skip` on, `take` of them; stops reading after the last one."""
    left = take
    for batch in batches:
        if left is not None and left <= 0:
            return
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        part = batch.slice(skip) if left is None else batch.slice(skip, left)
        skip = 0
        if left is not None:
            left -= part.num_rows
        yield part
        if left == 0:
            return


def interleaved(sources: Iterable[Iterable[Any]], *, width: int, rows: int) -> Iterator[Any]:
    """At most `rows` rows of each of `width` sources in turn; where one is over, the next that waits takes its turn."""
    waiting = iter(sources)
    active = deque(_in_chunks(source, rows) for source in islice(waiting, width))
    while active:
        source = active.popleft()
        part = next(source, None)
        if part is not None:
            yield part
            active.append(source)
        elif (following := next(waiting, None)) is not None:
            active.append(_in_chunks(following, rows))


def _in_chunks(batches: Iterable[Any], rows: int) -> Iterator[Any]:
    for batch in batches:
        for at in range(0, batch.num_rows, rows):
            yield batch.slice(at, rows)


def shuffled(batches: Iterable[Any], key: Sequence[int], *, buffer: int, batch_size: int) -> Iterator[Any]:
    """Rows permuted by `key` within buffers of `buffer` rows (rounded up to whole batches), as whole batches."""
    per_buffer = -(-max(buffer, 1) // batch_size) * batch_size
    for number, block in enumerate(rebatch(batches, per_buffer)):
        mixed = block.take(from_numpy(permutation(block.num_rows, (*key, number))))
        for at in range(0, mixed.num_rows, batch_size):
            yield mixed.slice(at, batch_size)


def _joined(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return parts[0].concat(parts) if hasattr(parts[0], "concat") else pa.concat_batches(parts)
