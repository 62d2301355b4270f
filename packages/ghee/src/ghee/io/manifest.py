"""The manifest of a finished write (`_ghee.json`), and what a reader must leave out while a publish is under way.

    target/
      part-00000-00000-<token>.parquet     published
      _ghee.json                           {"version", "writes": [{"token", "files": [{path, rows, bytes, digest}]}], …}
      _staging-<token>/                    a run that writes now, or that died
        owner.json                         host and process; on a local disk locked for as long as the run lives
        publish.json                       what is being moved in and what goes: {"add": […], "remove": […]}
        data/…                             closed and half-written part files

Replacing the manifest is the moment of publishing: before it a reader leaves out what is being added, after it what is
being removed. So a write is seen as a whole or not at all, and a run that dies between two renames has changed nothing.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any

import pyarrow.fs as pafs

MANIFEST = "_ghee.json"
STAGING = "_staging-"
INTENT = "publish.json"
OWNER = "owner.json"


def read_manifest(filesystem: Any, folder: str) -> dict[str, Any] | None:
    """The folder's manifest: version, rows, and per write its token and files. None where there is none."""
    found: dict[str, Any] | None = load_json(filesystem, posixpath.join(folder, MANIFEST))
    return found


def tokens(manifest: dict[str, Any] | None) -> set[str]:
    return set() if manifest is None else {write["token"] for write in manifest["writes"]}


def publish_state(filesystem: Any, folder: str) -> tuple[frozenset[str], tuple[tuple[str, frozenset[str]], ...]]:
    """(tokens of finished writes, per publish under way: its token and the files to leave out). Equal before and after
    a listing, the listing saw one state; else it must be made anew."""
    staged = [
        info.path
        for info in filesystem.get_file_info(pafs.FileSelector(folder))
        if info.type == pafs.FileType.Directory and posixpath.basename(info.path).startswith(STAGING)
    ]
    intents = [intent for path in sorted(staged) if (intent := load_note(filesystem, posixpath.join(path, INTENT)))]
    done = tokens(read_manifest(filesystem, folder))
    left_out = [(i["token"], frozenset(i["remove" if i["token"] in done else "add"])) for i in intents]
    return frozenset(done), tuple(left_out)


def load_note(filesystem: Any, path: str) -> Any:
    """As `load_json`; a file that was cut while it was written is none: what it was to announce was not begun."""
    try:
        return load_json(filesystem, path)
    except ValueError:
        return None


def load_json(filesystem: Any, path: str) -> Any:
    """The JSON file's value, or None where there is no such file."""
    try:
        with filesystem.open_input_stream(path) as stream:
            return json.loads(stream.read())
    except FileNotFoundError:
        return None
