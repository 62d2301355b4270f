"""A deep network for sparse rows."""
