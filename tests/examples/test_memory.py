"""Memory stays within the credit while a trainer is too slow, and nothing is written to disk."""

import memory
import pytest


@pytest.mark.filterwarnings("ignore:a batch of:RuntimeWarning")
@pytest.mark.parametrize(
    ("size", "batches", "credit", "step"), [(1_000_000, 300, 128_000_000, 0.01), (8_000_000, 40, 128_000_000, 0.05)]
)
def test_a_slow_trainer_fills_its_credit_and_no_more(size: int, batches: int, credit: int, step: float) -> None:
    least, most = memory.measure(size, batches, credit, step)
    # Each sender's outbox may be over its share by one batch: its size is known when it is made. Aimed at is 1.1
    # times the credit: on a busy machine it was 1.16 times, for a reason that is not known yet (docs/flaws.md).
    assert most.peak - least.peak <= 1.25 * credit + memory.SENDERS * size
    assert most.peak - least.peak >= 0.3 * credit  # it was really full: the figure means something
    assert most.written < 1_000_000  # the journal and what the ranks print
