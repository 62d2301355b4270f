"""From a journal to where a run goes on: which checkpoint of which loop, and whether the pipeline still fits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghee.driver.journal import VERSION, Journal
from ghee.driver.plan import Plan
from ghee.errors import CheckpointError
from ghee.io.contract import PartFile
from ghee.protocol.position import Position
from ghee.ranks.checkpoints import Checkpoints


@dataclass(frozen=True)
class Kept:
    """What a sink has stored before: the token of its staging, and the parts in it."""

    token: str
    parts: tuple[PartFile, ...]


@dataclass(frozen=True)
class Start:
    """Where a run begins: by a loop's index its position, its checkpoint's number and its steps until then.

    By a sink's index its position and what it has stored.
    """

    positions: Mapping[int, Position] = field(default_factory=dict)
    numbers: Mapping[int, int] = field(default_factory=dict)
    steps: Mapping[int, int] = field(default_factory=dict)
    kept: Mapping[int, Kept] = field(default_factory=dict)

    def __str__(self) -> str:
        where = [f"checkpoint {number} (batch {self.steps[index]} of each rank)" for index, number in self.numbers.items()]
        rows = sum(part.rows for kept in self.kept.values() for part in kept.parts)
        where += [f"{rows} stored rows"] if rows else []
        return ", ".join(where) or "the beginning"


def fingerprint(plan: Plan, splits: list[Any]) -> str:
    """Of what the names of batches rest on: the splits, with the files' sizes and times, and how they are read."""
    said = f"{splits!r} {getattr(plan.source, 'options', None)!r}"
    said = re.sub(r" at 0x[0-9a-f]+", "", said)  # a function of the user's lies elsewhere in every process
    return hashlib.sha256(said.encode()).hexdigest()


def describe_run(plan: Plan, splits: list[Any]) -> dict[str, Any]:
    """The journal's record of a run that begins or goes on."""
    stages: list[list[Any]] = [
        [stage.name, stage.kind, *([] if stage.rebatch is None else [stage.rebatch])] for stage in plan.stages
    ]
    record = {"kind": "run", "version": VERSION, "stages": stages, "source": fingerprint(plan, splits)}
    fixed = getattr(plan.source, "fixed", None)
    return record if fixed is None else {**record, "fixed": fixed}


def check_fits(journal: Journal, record: Mapping[str, Any], run: str) -> None:
    """Raises CheckpointError where the journal's run was of another pipeline, or of input that has changed since."""
    for before in journal.of_kind("run")[:1]:
        if before["version"] != VERSION:
            raise CheckpointError(
                f"the journal of run {run} has format {before['version']}, this ghee reads {VERSION}: "
                "resume it with the ghee that wrote it"
            )
        if before["stages"] != record["stages"]:
            was, now = (", ".join(_said(*stage) for stage in said["stages"]) for said in (before, record))
            raise CheckpointError(f"run {run} has the stages {was}; this pipeline has {now}: they must be the same")
        if before["source"] != record["source"]:
            raise CheckpointError(
                f"the input is not what run {run} read: a file has changed, or the options of read(); "
                "rows of two versions are not mixed. Start a new run"
            )


def _said(name: str, kind: str, rebatch: int | None = None) -> str:
    return name if rebatch is None else f"{name} after .rebatch({rebatch})"


def start_of(plan: Plan, journal: Journal, folder: Path, state: Mapping[str, Any] | None = None) -> Start:
    """Where to go on: after each loop's last checkpoint, or after the one that `state` names; a sink after what it stored.

    A pipeline with a stage behind a loop begins anew: what the loop had given to it has no place to go back to.

    Raises CheckpointError where the checkpoint is not there.
    """
    if any(stage.loops_before for stage in plan.stages):
        return Start()
    loops = {stage.name: stage.index for stage in plan.stages if stage.kind == "loop"}
    chosen: dict[int, dict[str, Any]] = {}
    for record in journal.of_kind("checkpoint"):
        if state is None or state["stage"] != record["stage"] or state["checkpoint"] == record["number"]:
            chosen[loops[record["stage"]]] = record
    if state is not None:
        record = chosen.get(loops.get(state["stage"], -1), {})
        if record.get("number") != state["checkpoint"]:
            there = [str(r["number"]) for r in journal.of_kind("checkpoint") if r["stage"] == state["stage"]]
            raise CheckpointError(
                f"the journal of run {folder.name} has no checkpoint {state['checkpoint']} of stage {state['stage']!r}; "
                f"it has {', '.join(there) or 'none'}"
            )
    for index, record in chosen.items():
        if record["value"] and not Checkpoints(folder, index, record["stage"], record["number"]).has_value():
            raise CheckpointError(
                f"the value of checkpoint {record['number']} is not in {folder / 'checkpoints'} any more: the last ones are "
                "kept; resume the run by its id"
            )
    last, kept = _stored(plan, journal, folder.name)
    return Start(
        {index: Position.from_json(record["position"]) for index, record in (chosen | last).items()},
        {index: record["number"] for index, record in chosen.items()},
        {index: record["steps"] for index, record in chosen.items()},
        kept,
    )


def _stored(plan: Plan, journal: Journal, run: str) -> tuple[dict[int, dict[str, Any]], dict[int, Kept]]:
    """By a sink's index its last record and what it has stored, of the staging that it wrote to last."""
    sinks = {stage.name: stage for stage in plan.stages if stage.stores}
    last: dict[int, dict[str, Any]] = {}
    parts: dict[int, list[PartFile]] = {}
    for record in journal.of_kind("stored"):
        stage = sinks[record["stage"]]
        if last.get(stage.index, {}).get("staging") != record["staging"]:
            parts[stage.index] = []
        parts[stage.index] += [PartFile(**part) for part in record["parts"]]
        last[stage.index] = record
    for stage in sinks.values():
        if stage.index in last and last[stage.index]["sink"] != stage.payload.described:
            was, now = last[stage.index]["sink"], stage.payload.described
            raise CheckpointError(f"{stage.name!r} of run {run} has begun to write {was}, not {now}: they must be the same")
    return last, {index: Kept(record["staging"], tuple(parts[index])) for index, record in last.items()}
