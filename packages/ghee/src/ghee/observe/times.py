"""What a rank measures of itself: where its time went, and how much it has taken and given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Times:
    """Seconds and counts since the rank's first batch; `first_batch` is when that was, on the clock `time.time`.

    `set_aside` counts messages of the source that could not be decoded and were passed over.
    `largest_in` is of the batches, in rows.
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
    largest_in: int = 0
    given: int = 0
