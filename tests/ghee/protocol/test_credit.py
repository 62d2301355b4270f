"""Credit bounds what lies before a stage, on both sides together."""

from hypothesis import given
from hypothesis import strategies as st

from ghee.protocol.credit import inbox_share, outbox_share


@given(st.integers(1, 1 << 40), st.integers(1, 1000), st.integers(1, 1000))
def test_inboxes_and_outboxes_share_one_account(credit, receivers, senders):
    inboxes = inbox_share(credit) * receivers
    outboxes = outbox_share(credit, receivers, senders) * senders
    assert inboxes + outboxes <= credit * receivers + senders  # an outbox takes one byte at least
    assert inboxes >= receivers
    assert outboxes >= senders
