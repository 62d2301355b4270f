"""What was found of a query over given schemas and partitions, kept for the next plan: in the process, and on the disk.

A study (`cumin.study`) follows from the rendered query, the tables' schemas and partitions, what is declared of them,
and the code that reads all this. Its key is a hash of all of it: the versions of Python, sqlglot, pyarrow and the
engine, and this package's own source, among it. So an entry is right for ever, or never asked for again. A file that
is not what was written is as good as none.
"""

import json
import os
import sys
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from cumin.encoding import digest
from cumin.inputs.base import Table
from cumin.inputs.listing import cache_folder
from cumin.modes import Finding
from cumin.query import Rendered
from cumin.recipe import Recipe
from cumin.versions import own_code, version

_IN_PROCESS, _ON_DISK = 256, 2_000  # entries
_lock = threading.Lock()
_known: "OrderedDict[str, Study]" = OrderedDict()


@dataclass(frozen=True)
class Study:
    """What a parser and an engine say of a recipe: all of a plan that needs one."""

    schema: str  # the result's; as `schemas.write_schema` makes it, like those of the inputs
    schema_form: list[Any]
    input_schemas: dict[str, str]
    input_forms: dict[str, list[Any]]
    read: dict[str, list[str] | None]  # the partitions that the query can read; None: all
    executed: str  # the text that the engine runs
    relied_keys: dict[str, tuple[str, ...]]
    findings: list[Finding]
    ordered: bool  # whether an ORDER BY stands in the query

    def partitions(self, name: str, every: Iterable[str]) -> list[str]:
        """The partitions of an input that the query can read."""
        read = self.read[name]
        return list(every) if read is None else read

    def to_json(self) -> dict[str, Any]:
        """As it is kept on the disk."""
        return {**asdict(self), "findings": [each.to_json() for each in self.findings]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Study":
        """The inverse of `to_json`."""
        keys = {name: tuple(key) for name, key in data["relied_keys"].items()}
        return cls(**{**data, "relied_keys": keys, "findings": [Finding(*each) for each in data["findings"]]})


def key_of(
    recipe: Recipe, rendered: Rendered, tables: Mapping[str, Table], tokens: Mapping[str, Any], *, again: bool = False
) -> str | None:
    """The hash of all that a study follows from; None where that is not sure. `tokens` stand for the tables' schemas;
    `again` reads this package's source once more."""
    engine, code = recipe.engine.study_key(), own_code(again=again)
    if engine is None or code is None or any(token is None for token in tokens.values()):
        return None
    form = {
        "code": code,
        "versions": [sys.version, version("sqlglot"), version("pyarrow"), engine],
        "text": rendered.text,
        "dialect": rendered.dialect,
        "inputs": [
            [name, table.kind, tokens[name], list(table.partition_columns), _names(table.partitions),
             list(getattr(recipe.inputs[name], "key", ()))]
            for name, table in tables.items()
        ],
        "udfs": [[name, *map(str, udf.arguments), str(udf.returns)] for name, udf in recipe.udfs.items()],
        "determinism": [*recipe.determinism.form().items(), list(recipe.determinism.allow)],
        "output": [list(recipe.partition_by), list(recipe.order_key)],
    }  # fmt: skip
    return digest("cumin/study", form)


def _names(partitions: Iterable[str]) -> str:
    body = "".join(f"{len(name)}:{name}" for name in sorted(partitions))
    return blake3(body.encode("utf-8", "surrogateescape")).hexdigest()


def recall(key: str) -> Study | None:
    """The study of this key, if it is known."""
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
    found = _read(key)
    if found is not None:
        _keep(key, found)
    return found


def remember(key: str, study: Study) -> None:
    """Keep a study. A disk that cannot be written is no error: the next process finds out again."""
    _keep(key, study)
    body = json.dumps({"key": key, "study": study.to_json()}, ensure_ascii=True).encode()
    with suppress(OSError):
        folder = cache_folder() / "plans"
        folder.mkdir(exist_ok=True)
        _make_room(folder)
        beside = folder / f".{uuid.uuid4().hex}"
        try:
            beside.write_bytes(blake3(body).hexdigest().encode() + b"\n" + body)
            os.replace(beside, folder / f"{key}.json")
        finally:
            beside.unlink(missing_ok=True)


def _keep(key: str, study: Study) -> None:
    with _lock:
        _known[key] = study
        while len(_known) > _IN_PROCESS:
            _known.popitem(last=False)


def _read(key: str) -> Study | None:
    try:
        seal, _, body = (cache_folder() / "plans" / f"{key}.json").read_bytes().partition(b"\n")
        if seal != blake3(body).hexdigest().encode():
            return None
        data = json.loads(body)
        return Study.from_json(data["study"]) if data["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make_room(folder: Path) -> None:
    """Remove the oldest half when there are too many entries."""
    names = os.listdir(folder)
    if len(names) < _ON_DISK:
        return
    paths = sorted((folder / name for name in names), key=lambda path: path.stat().st_mtime)
    for path in paths[: len(paths) // 2]:
        path.unlink(missing_ok=True)
