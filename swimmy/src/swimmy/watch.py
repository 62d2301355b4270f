"""One list and one watch, kept up for as long as a run lasts: decides what a stream's end means. No HTTP in here.

A watch may freeze (a half-open connection), be cut in the middle of a line, repeat what was told already, or say 410 Gone
when the server has forgotten the place. In each case this goes on from the last place that is sure, or lists again and
tells the difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from swimmy.patience import pause

Object = dict[str, Any]


class Gone(Exception):
    """The server no longer knows the place from which the watch was to go on (HTTP 410)."""


class Unavailable(Exception):
    """The server did not answer, or the stream broke; trying again may help. ``wait``: seconds that the server asks for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Source(Protocol):
    """Where objects come from. Both methods raise Gone or Unavailable."""

    def list(self) -> tuple[list[Object], str]:
        """All objects, and the place in the server's history that they show."""

    def watch(self, version: str) -> AbstractContextManager[Iterable[bytes]]:
        """A stream of lines, one JSON event each, of what happened after that place."""


class ListWatch:
    """Calls ``on_change(kind, object)`` with "set" or "deleted" for every change; ``on_trouble`` with what is wrong, or
    None when over.
    """

    def __init__(
        self,
        source: Source,
        on_change: Callable[[str, Object], None],
        on_trouble: Callable[[str | None], None],
        wait: Callable[[float], bool],
    ) -> None:
        """``wait(seconds)`` returns True when the watch is to end."""
        self._source, self._on_change, self._on_trouble, self._wait = source, on_change, on_trouble, wait
        self._known: dict[str, str] = {}
        self._objects: dict[str, Object] = {}
        self._version: str | None = None
        self._failures = 0
        self._quiet = 0
        self._told = False

    def run(self) -> None:
        """Lists, watches, and goes on until ``wait`` says that it is enough.

        A stream that tells nothing, or a place that is gone, is no trouble once. Some servers and proxies answer so at once,
        again and again: then each takes a longer pause than the one before.
        """
        while not self._wait(0):
            self._told = False
            try:
                if self._version is None:
                    self._list()
                self._watch()
                self._recovered()
            except Gone:
                self._version = None
            except Unavailable as error:
                self._failures += 1
                self._on_trouble(str(error))
                if self._wait(pause(self._failures, error.wait)):
                    return
                continue
            self._quiet = 0 if self._told else self._quiet + 1
            if self._quiet > 1 and self._wait(pause(self._quiet)):
                return

    def _recovered(self) -> None:
        if self._failures:
            self._failures = 0
            self._on_trouble(None)

    def _list(self) -> None:
        objects, version = self._source.list()
        self._recovered()
        present = {each["metadata"]["uid"] for each in objects}
        for uid in [uid for uid in self._objects if uid not in present]:
            self._forget(uid, self._objects[uid])
        for each in objects:
            self._set(each)
        self._version = version

    def _watch(self) -> None:
        assert self._version is not None
        with self._source.watch(self._version) as lines:
            for event in _events(lines):
                self._recovered()
                self._take(event)

    def _take(self, event: Object) -> None:
        kind, item = event.get("type"), event.get("object", {})
        if kind == "ERROR":
            if item.get("code") == 410:
                raise Gone
            raise Unavailable(f"the watch ended: {item.get('message', item)}")
        self._told = True
        version = item["metadata"]["resourceVersion"]
        if kind == "DELETED":
            self._forget(item["metadata"]["uid"], item)
        elif kind in ("ADDED", "MODIFIED"):
            self._set(item)
        self._version = version

    def _set(self, item: Object) -> None:
        uid, version = item["metadata"]["uid"], item["metadata"]["resourceVersion"]
        if self._known.get(uid) == version:
            return  # told before
        self._known[uid] = version
        self._objects[uid] = item
        self._on_change("set", item)

    def _forget(self, uid: str, item: Object) -> None:
        self._known.pop(uid, None)
        if self._objects.pop(uid, None) is not None:
            self._on_change("deleted", item)


def _events(lines: Iterable[bytes]) -> Iterator[Object]:
    """Whole lines as events; a line that was cut off ends the stream, and is told again after the last whole one."""
    for line in lines:
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError:
            return
        if isinstance(event, dict):
            yield event
