"""From a pipeline to what is launched: checks it, joins reading with the first stage, numbers stages and ranks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ghee import pickling
from ghee.errors import PickleError, PipelineError
from ghee.pipeline import UNTIL_RETURN, Pipeline, Stage, children_of, names_of, stages_of
from ghee.protocol.credit import inbox_share, outbox_share
from ghee.protocol.edge import StageRules
from ghee.protocol.messages import Tail, WhenSlow
from ghee.resources import Auto, Resources

PREFETCH = 8
"""Batches that a map rank may hold: enough to hide the way there and back, few enough that a slow rank hoards none."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage as it is launched.

    `hosted`: it runs in a thread of the driver's process; `one_world`: all its replicas are one MPI world; `target`: what
    the user gave to `write`; `rebatch`: rows of each batch that it is given.
    """

    index: int
    kind: str
    name: str
    parent: int | None
    resources: Resources
    function: Callable[..., Any] | None
    payload: Any
    hosted: bool
    one_world: bool
    credit: int
    tail: Tail
    ordered: bool
    depth: int
    loops_before: int
    children: int
    target: Any = None
    when_slow: WhenSlow = WhenSlow.WAIT
    may_fail: bool = False
    rebatch: int | None = None
    drop_last: bool = False

    @property
    def size(self) -> int:
        """Ranks of the stage."""
        return 1 if self.hosted else self.resources.size

    @property
    def ranks_of_world(self) -> int:
        """Ranks of each of the stage's MPI worlds."""
        if self.hosted:
            return 1
        return self.size if self.one_world else self.resources.ranks

    @property
    def elastic(self) -> Auto | None:
        """Between which numbers its replicas follow what is needed."""
        return None if self.hosted else self.resources.auto

    @property
    def stores(self) -> bool:
        """Whether it is a sink that keeps what it has stored over the death of its run."""
        return self.kind == "write" and bool(getattr(self.payload, "stores", False))

    @property
    def rules(self) -> StageRules:
        """What the protocol needs to know."""
        most = PREFETCH if self.kind == "map" else 1 << 30
        return StageRules(
            self.index, self.kind, self.parent, self.size, inbox_share(self.credit), most,  # type: ignore[arg-type]
            self.ordered, self.tail, self.depth, self.loops_before, self.ranks_of_world,
            self.when_slow, self.may_fail, self.elastic.min if self.elastic else None, self.stores,
            by_split=bool(getattr(self.payload, "transactions", False)),
            rebatch=self.rebatch, drop_last=self.drop_last,
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is launched: the opened source, the opened sinks (as payloads), and the stages with stage 0 reading."""

    source: Any
    epochs: int
    stages: tuple[PlannedStage, ...]

    @property
    def endless(self) -> bool:
        """Whether the source has no end."""
        return bool(getattr(self.source, "endless", False))

    def cuts(self, stage: PlannedStage) -> bool:
        """Whether what the stage makes is cut anew by rows."""
        return any(child.parent == stage.index and child.rebatch is not None for child in self.stages)

    def room(self, stage: PlannedStage) -> int:
        """Bytes that the outbox of each of the stage's ranks takes. A batch lies there once for all branches."""
        children = [child for child in self.stages if child.parent == stage.index]
        return max((outbox_share(child.credit, child.size, stage.size) for child in children), default=1)

    def credit_after(self, stage: PlannedStage) -> int:
        """The smallest credit of a rank that the stage sends to, in bytes."""
        return min((child.credit for child in self.stages if child.parent == stage.index), default=1)


def make_plan(pipeline: Pipeline) -> Plan:
    """Check the pipeline whole and plan it. Raises PipelineError, PickleError, SourceError and SinkError."""
    from ghee.io.opening import open_sink, open_source

    if not isinstance(pipeline, Pipeline):
        raise PipelineError(f"expected a pipeline (ghee.read(...)...), got {pipeline!r}")
    stages = stages_of(pipeline)
    if pipeline.cut is not None:
        raise PipelineError(
            f"the pipeline ends in .rebatch({pipeline.cut.rows}), which is for the loop or sink after it: "
            "add .loop(function), or .write(...)"
        )
    _check(stages)
    root = stages[0]
    options = {key: value for key, value in root.options.items() if key != "epochs"}
    source = open_source(root.payload, **options)
    _check_has_an_end(root, pipeline.ends)
    if hasattr(source, "check_epochs"):
        source.check_epochs(root.epochs)
    names = names_of(stages)
    joined = _joined(root, stages, source.hosted)
    kept = [stage for stage in stages if stage is not joined]
    numbers = {stage: number for number, stage in enumerate(kept)}
    if joined is not None:
        numbers[joined] = 0
    planned = []
    trials = [stage for stage in pipeline.ends if stage.kind == "loop"]
    for stage in kept:
        working = joined if stage is root and joined is not None else stage
        payload: Any = None
        if stage is root:
            payload = source
        elif stage.kind == "write":
            payload = open_sink(stage.payload, **stage.options)
        parent = None if stage is root else numbers[stage.parent]  # type: ignore[index]
        planned.append(
            PlannedStage(
                index=numbers[stage],
                kind=stage.kind,
                name=names[working],
                parent=parent,
                resources=working.resources,
                function=working.function,
                payload=payload,
                hosted=bool(getattr(payload, "hosted", False)),
                one_world=stage.kind == "loop",
                credit=working.credit,
                tail=stage.tail,
                ordered=any(_is_before(stage, other) for other in kept if other.ordered),
                depth=_depth(stage, joined),
                loops_before=_loops_before(stage),
                children=len(children_of(working, stages)),
                target=stage.payload if stage.kind == "write" else None,
                when_slow=stage.when_slow,
                rebatch=stage.rebatch,
                drop_last=stage.drop_last,
                may_fail=stage in trials and len(trials) > 1 and not pipeline.stop_on_failure,
            )
        )
    for planned_stage in planned:
        if not planned_stage.hosted:
            _check_pickles(planned_stage)
    return Plan(source, root.epochs, tuple(planned))


def _check_has_an_end(root: Stage, ends: Sequence[Stage]) -> None:
    """Without a number of epochs it is the loops that end the run."""
    if root.epochs < UNTIL_RETURN:
        return
    for end in ends:
        if end.kind != "loop":
            raise PipelineError(
                "epochs=None reads on until the loops return, and a .write() never does: give read(epochs=) a number, or "
                "let every branch end in a .loop()"
            )


def _joined(root: Stage, stages: list[Stage], hosted: bool) -> Stage | None:
    """The map whose ranks read for themselves."""
    first = children_of(root, stages)
    join = len(first) == 1 and first[0].kind == "map" and not hosted and not root.own_ranks
    return first[0] if join else None


def _check(stages: list[Stage]) -> None:
    problems = []
    for stage in stages:
        children = children_of(stage, stages)
        if not children and stage.kind in ("read", "map"):
            problems.append(
                f"the pipeline ends in {stage.name!r}, whose batches go nowhere: "
                "add .loop(function), or .write(folder), .write(list) or .write(callback)"
            )
        plain = inspect.isfunction(stage.function) and not inspect.isgeneratorfunction(stage.function)
        if children and stage.kind == "loop" and plain:
            problems.append(f"{children[0].name!r} follows the loop {stage.name!r}, which never yields a batch to it")
        if stage.when_slow is not WhenSlow.WAIT:
            problems += _problems_of_slow(stage, stages)
        if stage.rebatch is not None and stage.options.get("transactions"):
            problems.append(
                f"{stage.name!r} has transactions=True, whose batches are each of one partition, and .rebatch() would mix "
                "them: leave one of them out"
            )
        if stage.ordered and _loops_before(stage):
            problems.append(f"{stage.name!r} is ordered, but comes after a loop, whose output has no order of the source")
    if problems:
        raise PipelineError("; ".join(problems))


def _problems_of_slow(stage: Stage, stages: list[Stage]) -> list[str]:
    said = f"{stage.name!r} has when_slow={stage.when_slow.value!r}"
    problems = []
    if stage.parent is None or len(children_of(stage.parent, stages)) == 1:
        problems.append(f"{said}, which needs another branch from the same stage; put them together with ghee.branches(...)")
    if stage.rebatch is not None:
        problems.append(f"{said}, which passes over whole batches, and .rebatch() cuts them: leave one of them out")
    if stage.when_slow is WhenSlow.REREAD and stage.ordered:
        problems.append(f'{said}, but is ordered: what is read again comes later; take ordered=False, or when_slow="wait"')
    if stage.when_slow is WhenSlow.REREAD and _loops_before(stage):
        problems.append(f'{said}, but comes after a loop, whose output cannot be made again; take "wait" or "skip"')
    return problems


def _is_before(stage: Stage, other: Stage) -> bool:
    """Whether a batch passes through `stage` on its way into `other`."""
    at: Stage | None = other
    while at is not None and at is not stage:
        at = at.parent
    return at is stage


def _depth(stage: Stage, joined: Stage | None) -> int:
    """How many functions a batch has passed through before the stage; reading itself counts as one."""
    depth, at = 0, stage.parent
    while at is not None:
        depth += at is not joined
        at = at.parent
    return depth


def _loops_before(stage: Stage) -> int:
    loops, at = 0, stage.parent
    while at is not None:
        loops += at.kind == "loop"
        at = at.parent
    return loops


def _check_pickles(stage: PlannedStage) -> None:
    payload = None if hasattr(stage.payload, "lay_down") else stage.payload  # a table pickles, and may be large
    for what, value in (("function", stage.function), ("source or target", payload)):
        try:
            pickling.dumps(value)
        except Exception as error:
            culprit = find_unpicklable(value)
            raise PickleError(
                f"the {what} of stage {stage.name!r} cannot be sent to its ranks: {culprit or error}; "
                "make it inside the function, or give a class that makes it in __init__"
            ) from error


def find_unpicklable(value: Any, path: str = "", depth: int = 0) -> str | None:
    """Name the object inside a function or object that keeps it from being pickled: "`lock` (a _thread.lock) in ..."."""
    for name, inner in _parts(value):
        try:
            pickling.dumps(inner)
        except Exception:  # pickling runs the user's code, which may raise anything
            deeper = find_unpicklable(inner, f"{path}{name}.", depth + 1) if depth < 4 else None
            kind = type(inner)
            return deeper or f"`{path}{name}` is a {kind.__module__}.{kind.__qualname__}, which cannot be pickled"
    return None


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, functools.partial):
        arguments = [(f"argument {number}", part) for number, part in enumerate(value.args)]
        return [("func", value.func), *arguments, *value.keywords.items()]
    if inspect.isfunction(value):
        found = inspect.getclosurevars(value)
        return [*found.nonlocals.items(), *found.globals.items(), *_defaults(value)]
    if isinstance(value, dict):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [(f"item {number}", part) for number, part in enumerate(value)]
    if inspect.ismethod(value):
        return [("__self__", value.__self__)]
    if isinstance(value, type):
        return [(name, part) for name, part in vars(value).items() if inspect.isfunction(part)]
    return list(getattr(value, "__dict__", {}).items())


def _defaults(function: Any) -> list[tuple[str, Any]]:
    return [
        (name, parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    ]
