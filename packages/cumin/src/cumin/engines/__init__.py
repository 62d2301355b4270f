"""What runs a query. `base` is the contract; one file per engine, and only that file imports it."""

from cumin.engines.base import Engine, Session

__all__ = ["Engine", "Session"]
