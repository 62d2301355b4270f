"""The most popular items for everyone."""
