"""Pipelines as data: what is read, which functions run on which resources, where the results go. Nothing runs here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from ghee.errors import PipelineError
from ghee.protocol.messages import Tail, WhenSlow
from ghee.resources import Auto, Resources, format_bytes, parse_bytes, parse_resources
from ghee.signatures import problem_of

Kind = Literal["read", "map", "loop", "write"]

DEFAULT_CREDIT = 96 << 20
"""Bytes that may be under way to a rank unless its stage says otherwise: half in its inbox, half in the outboxes before it.

It is what moves while a batch's three messages go round, at the speed of shared memory: with two thirds of it, batches of
1 MB are some 10 % slower, with more no faster (benchmarks/transport_profile.py --choices)."""

UNTIL_RETURN = 1 << 53
"""The number of epochs that stands for epochs=None: more than any run reads."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A task at its place in a pipeline. `parent` is None for the source.

    `payload` is the source that `read` was given or the target that `write` was given; `options` are theirs.
    """

    kind: Kind
    name: str
    parent: Stage | None
    resources: Resources
    function: Callable[..., Any] | None = None
    payload: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    credit: int = DEFAULT_CREDIT
    tail: Tail = Tail.DROP
    ordered: bool = False
    own_ranks: bool = True
    when_slow: WhenSlow = WhenSlow.WAIT
    rebatch: int | None = None
    drop_last: bool = False

    @property
    def epochs(self) -> int:
        """The source's passes."""
        epochs = self.root.options["epochs"]
        return UNTIL_RETURN if epochs is None else int(epochs)

    @property
    def root(self) -> Stage:
        """The source."""
        return self if self.parent is None else self.parent.root


class Cut(NamedTuple):
    """How the batches before a stage are cut anew: see `Pipeline.rebatch`."""

    rows: int
    drop_last: bool = False


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A source with stages after it, perhaps in several branches. Made by `ghee.read`; run by `ghee.run`.

    Every method returns a new pipeline; this one stays as it is, so that several can grow from one beginning.
    """

    ends: tuple[Stage, ...]
    stop_on_failure: bool = False
    cut: Cut | None = None
    """What `rebatch` said, until the stage that it is for."""

    def rebatch(self, rows: int, *, drop_last: bool = False) -> Pipeline:
        """Batches of exactly `rows` rows for the loop or sink that follows, whatever the stage before makes.

        Only the last batch of an epoch has fewer; with `drop_last` that one is not delivered, and the report counts its rows
        as dropped. So the ranks of a loop get rows that differ by one batch at most, also after a map that filters, or where
        a source's rows cannot be counted. What is cut are Arrow batches and tables, arrays, tensors, frames, lists, and
        dicts and tuples of them; a function that gives anything else fails with a BatchError that names the type.

        Example:
            ghee.read("logs/*.jsonl").map(parse, replicas=4).rebatch(512).loop(train, replicas=2)
        """
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise PipelineError(f"rebatch({rows!r}): expected a whole number of rows, at least 1")
        if not isinstance(drop_last, bool):
            raise PipelineError(f"rebatch(drop_last={drop_last!r}): allowed are True and False")
        if self._end("rebatch").kind == "write":
            raise PipelineError("nothing can follow a stage that writes; put .rebatch() before .write()")
        if self.cut is not None:
            raise PipelineError(f".rebatch({self.cut.rows}) is followed by .rebatch({rows}): leave one of them out")
        return replace(self, cut=Cut(rows, drop_last))

    def map(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        replicas: int | Auto = 1,
        ranks: int = 1,
        cpus: float | str = 1,
        memory: int | str | None = None,
        gpus: int = 0,
        image: str | None = None,
        credit: int | str = DEFAULT_CREDIT,
    ) -> Pipeline:
        """Call `function` once for each batch; it returns a batch, several (a generator), or None (dropped, counted).

        A class is built once in each rank and its instances are called for each batch: load a model once, predict often.
        A method `close` of a class or callable object is called at the end. Each replica is an MPI world of its own, of
        `ranks` ranks; `replicas=ghee.auto(min, max)` has as many as are needed. `credit` is in bytes: what may lie before
        each rank, half of it in its inbox and half in its senders' outboxes.
        """
        resources = parse_resources(replicas=replicas, ranks=ranks, cpus=cpus, memory=memory, gpus=gpus, image=image)
        _callable("map", function)
        return self._grow(
            Stage("map", _name(name, function), self._end("map"), resources, function, credit=parse_bytes(credit))
        )

    def loop(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        replicas: int = 1,
        ranks: int = 1,
        cpus: float | str = 1,
        memory: int | str | None = None,
        gpus: int = 0,
        image: str | None = None,
        credit: int | str = DEFAULT_CREDIT,
        tail: Literal["drop", "pad", "repeat", "error"] = "drop",
        ordered: bool = False,
        when_slow: Literal["wait", "skip", "reread"] = "wait",
    ) -> Pipeline:
        """Call `function` once in each rank with the stream of batches (`ghee.Batches`); it may yield batches on.

        All replicas together are one MPI world, and all its ranks get the same number of batches in every epoch. What
        does not divide is dropped and counted (`tail="drop"`), filled up with batches of no rows ("pad"), with copies
        ("repeat"), or fails the run ("error"). `ordered` delivers in the order of the source, the same in every run with
        one seed; otherwise the batch that is ready first comes first.

        Beside other branches, `when_slow` says what becomes of a batch that all the others have taken and this loop has no
        room for: the others wait for it ("wait"), it goes past and is counted as skipped ("skip"), or it goes past and is
        read and preprocessed again for this loop alone ("reread").
        """
        resources = parse_resources(
            replicas=replicas, ranks=ranks, cpus=cpus, memory=memory, gpus=gpus, image=image, fixed=_LOOP_IS_FIXED
        )
        _callable("loop", function)
        try:
            rule = Tail(tail)
        except ValueError:
            raise PipelineError(f'tail={tail!r}: allowed are "drop", "pad", "repeat" and "error"') from None
        try:
            slow = WhenSlow(when_slow)
        except ValueError:
            raise PipelineError(f'when_slow={when_slow!r}: allowed are "wait", "skip" and "reread"') from None
        stage = Stage(
            "loop", _name(name, function), self._end("loop"), resources, function,
            credit=parse_bytes(credit), tail=rule, ordered=ordered, when_slow=slow,
        )  # fmt: skip
        return self._grow(stage)

    def write(
        self,
        target: Any,
        *,
        name: str = "write",
        mode: Literal["error", "overwrite", "append"] = "error",
        format: str | None = None,
        partition_by: str | list[str] | None = None,
        rows_per_file: int | None = None,
        file_size: int | str | None = None,
        filesystem: Any = None,
        storage_options: Mapping[str, Any] | None = None,
        patience: float | None = None,
        key: str | Callable[[Mapping[str, Any]], Any] | None = None,
        partition: str | Callable[[Mapping[str, Any]], Any] | None = None,
        encode: str | Callable[[Mapping[str, Any]], Any] | None = None,
        transactions: bool | None = None,
        settings: Mapping[str, Any] | None = None,
        replicas: int = 1,
        cpus: float | str = 1,
        memory: int | str | None = None,
        image: str | None = None,
    ) -> Pipeline:
        """Write the batches to a folder (Parquet by default) or a topic, append them to a list, or give them to a callback.

        Files appear whole or not at all, when the run has ended well; `_ghee.json` beside them carries the row counts.
        `key`, `partition`, `encode`, `transactions` and `settings` are for kafka://broker/topic (docs/kafka.md).
        """
        resources = parse_resources(replicas=replicas, cpus=cpus, memory=memory, image=image, fixed=_WRITE_IS_FIXED)
        options = {
            "mode": mode, "format": format, "partition_by": partition_by,
            "rows_per_file": rows_per_file, "file_size": file_size, "filesystem": filesystem,
            "storage_options": storage_options,
            "patience": patience, "key": key, "partition": partition, "encode": encode,
            "transactions": transactions, "settings": settings,
        }  # fmt: skip
        options = {name: value for name, value in options.items() if value is not None}
        return self._grow(Stage("write", name, self._end("write"), resources, payload=target, options=options))

    def _end(self, method: str) -> Stage:
        if len(self.ends) != 1:
            names = ", ".join(stage.name for stage in self.ends)
            raise PipelineError(f".{method}() needs one end to go on from, this pipeline has several branches: {names}")
        return self.ends[0]

    def _grow(self, stage: Stage) -> Pipeline:
        assert stage.parent is not None
        if stage.parent.kind == "write":
            raise PipelineError(f"nothing can follow {stage.parent.name!r}, which writes; grow a branch before it instead")
        if self.cut is None:
            return replace(self, ends=(stage,))
        if stage.kind == "map":
            raise PipelineError(
                f".rebatch({self.cut.rows}) comes before the map {stage.name!r}, and can only come before a loop or a sink: "
                "what a map makes must follow from one batch of the source, or it could not be made again when a rank is "
                "killed; put .rebatch() after the maps, and give read() the batch_size that they are to work on"
            )
        return replace(self, ends=(replace(stage, rebatch=self.cut.rows, drop_last=self.cut.drop_last),), cut=None)

    def __str__(self) -> str:
        return explain(self)


def read(
    source: Any,
    *,
    columns: list[str] | None = None,
    filter: Any = None,
    batch_size: int = 4096,
    epochs: int | None = 1,
    shuffle: int | None = None,
    shuffle_buffer: int | None = None,
    limit: int | None = None,
    drop_last: bool = False,
    format: str | None = None,
    filesystem: Any = None,
    schema: Any = None,
    storage_options: Mapping[str, Any] | None = None,
    patience: float | None = None,
    start: Any = None,
    until: Any = None,
    group: str | None = None,
    decode: Literal["json", "arrow"] | Callable[[bytes], Any] | None = None,
    poison: str | None = None,
    settings: Mapping[str, Any] | None = None,
    replicas: int | Auto | None = None,
    cpus: float | str = 1,
    memory: int | str | None = None,
    image: str | None = None,
) -> Pipeline:
    """Begin a pipeline: a file, folder, glob or URL of Parquet, CSV, JSON lines or Arrow files, a table, or any iterable.

    A table is one of pyarrow, pandas, polars (whatever gives an Arrow stream) or a dict of numpy arrays, and is cut like
    files; an iterable gives batches as they are.

    `batch_size` is in rows: of every batch but an epoch's last where rows are known before they are read (Parquet and Arrow
    files without a filter, and with `limit`); else of every batch but the last of a split. With `drop_last` an epoch's
    short batch is read and not given to anything, and the report counts its rows as dropped. `epochs` passes are made;
    None goes on until the loops return, for training by steps.
    `shuffle` is a seed: in each epoch pieces of all files are mixed anew, and rows within `shuffle_buffer` rows (65536 or
    16 batches, but at most 256 MiB), which each reading rank holds; what comes out does not depend on the number of ranks.
    `limit` is in rows for each epoch. The ranks of the first stage read what they work on;
    `replicas` gives the reading a stage of its own. `schema` (pyarrow.Schema) gives types to CSV and JSON.
    `storage_options` are the store's own (docs/storage.md); `patience` is for how many seconds a store may be away before
    the run fails.

    For topics, `kafka://host:port/topic`: `start` and `until` are "earliest", "latest", a datetime, or offsets by partition;
    without `until` the stream has no end. `group` shares the partitions with others of that consumer group and commits what
    was acknowledged. `decode` makes columns of a message's value: "json", "arrow", or a function of its bytes that returns a
    dict. `poison` says what becomes of a message that cannot be decoded: "fail", "skip", or a topic that keeps it.
    `settings` are librdkafka's (TLS, SASL).
    """
    problems = [
        f"{name}={value!r}: expected a whole number of at least 1"
        for name, value in (("batch_size", batch_size), ("epochs", epochs))
        if (isinstance(value, bool) or not isinstance(value, int) or value < 1) and (name, value) != ("epochs", None)
    ]
    if problems:
        raise PipelineError("; ".join(problems))
    if not isinstance(drop_last, bool):
        raise PipelineError(f"read(drop_last={drop_last!r}): allowed are True and False")
    resources = parse_resources(replicas=1 if replicas is None else replicas, cpus=cpus, memory=memory, image=image)
    options = {
        "columns": columns, "filter": filter, "batch_size": batch_size, "shuffle": shuffle,
        "shuffle_buffer": shuffle_buffer, "limit": limit, "drop_last": drop_last or None,
        "format": format, "filesystem": filesystem, "schema": schema,
        "storage_options": storage_options, "patience": patience,
        "start": start, "until": until, "group": group, "decode": decode, "poison": poison, "settings": settings,
    }  # fmt: skip
    options = {key: value for key, value in options.items() if value is not None}
    stage = Stage(
        "read",
        "read",
        None,
        resources,
        payload=source,
        options={**options, "epochs": epochs},
        own_ranks=replicas is not None,
    )
    return Pipeline((stage,))


def branches(*pipelines: Pipeline, stop_on_failure: bool = False) -> Pipeline:
    """Put together pipelines that grow from one beginning: it runs once, and every branch sees every batch.

    Where several branches end in a loop, one that fails does not stop the others, unless `stop_on_failure`: the run goes on,
    and its `result` has the exception in the place of that loop's result. It fails with the first when all have failed.

    Example:
        ready = ghee.read("ratings/").map(preprocess, replicas=4)
        ghee.run(ghee.branches(*(ready.loop(trial(lr), name=f"lr={lr}") for lr in (0.1, 0.01))))
    """
    if open_ones := [pipeline.cut for pipeline in pipelines if pipeline.cut is not None]:
        raise PipelineError(f".rebatch({open_ones[0].rows}) is for the loop or sink after it: put one there in its branch")
    ends = tuple(dict.fromkeys(end for pipeline in pipelines for end in pipeline.ends))
    if len({id(end.root) for end in ends}) != 1:
        raise PipelineError("branches must grow from the same ghee.read(...): keep it in a variable and go on from there")
    return Pipeline(ends, stop_on_failure)


def stages_of(pipeline: Pipeline) -> list[Stage]:
    """All stages, the source first, each after its parent."""
    found: dict[Stage, None] = {}

    def visit(stage: Stage) -> None:
        if stage.parent is not None:
            visit(stage.parent)
        found.setdefault(stage)

    for end in pipeline.ends:
        visit(end)
    return list(found)


def children_of(stage: Stage, stages: Iterable[Stage]) -> list[Stage]:
    """The stages that follow a stage."""
    return [other for other in stages if other.parent is stage]


def names_of(stages: Iterable[Stage]) -> dict[Stage, str]:
    """The stages' names, each once: the second of a name becomes "name-2"."""
    names: dict[Stage, str] = {}
    for stage in stages:
        name, number = stage.name, 2
        while name in names.values():
            name, number = f"{stage.name}-{number}", number + 1
        names[stage] = name
    return names


_LOOP_IS_FIXED = "the ranks of a loop are one MPI world, which cannot grow or shrink; ghee.auto is for map stages"
_WRITE_IS_FIXED = "each rank of a sink writes files of its own until the end; ghee.auto is for map stages"
_RESOURCES = ("replicas", "ranks", "cpus", "memory", "gpus", "image")
_OVERRIDES = {
    "read": (
        "batch_size",
        "epochs",
        "limit",
        "shuffle",
        "shuffle_buffer",
        "start",
        "until",
        "group",
        "poison",
        "replicas",
        "cpus",
        "memory",
        "image",
    ),
    "map": (*_RESOURCES, "credit"),
    "loop": (*_RESOURCES, "credit", "tail", "ordered", "when_slow"),
    "write": ("mode", "rows_per_file", "file_size", "replicas", "cpus", "memory", "image"),
}


def override(pipeline: Pipeline, changes: Mapping[str, Mapping[str, Any]]) -> Pipeline:
    """The pipeline with other options for some of its stages: {"preprocess": {"replicas": 4, "memory": "2Gi"}}.

    Stages are called by their names as `ghee explain` prints them, the source "read". Raises PipelineError (ResourceError)
    that lists every stage and option that does not exist, and every value that means nothing.
    """
    stages = stages_of(pipeline)
    names = names_of(stages)
    unknown = [name for name in changes if name not in names.values()]
    problems = [f"there is no stage {name!r}; the stages are {', '.join(names.values())}" for name in unknown]
    new: dict[Stage, Stage] = {}
    for stage in stages:
        options = dict(changes.get(names[stage], {}))
        allowed = _OVERRIDES[stage.kind]
        wrong = [option for option in options if option not in allowed]
        problems += [f"stage {names[stage]!r} has no option {option!r}; it has {', '.join(allowed)}" for option in wrong]
        try:
            new[stage] = _with_options(stage, {key: value for key, value in options.items() if key in allowed})
        except PipelineError as error:
            problems.append(f"stage {names[stage]!r}: {error}")
            new[stage] = stage
        if stage.parent is not None:
            new[stage] = replace(new[stage], parent=new[stage.parent])
    if problems:
        raise PipelineError("; ".join(problems))
    return replace(pipeline, ends=tuple(new[end] for end in pipeline.ends))


def _with_options(stage: Stage, options: dict[str, Any]) -> Stage:
    """A stage made again by the method that made it, so that every value is checked as it was there."""
    if not options:
        return stage
    resources = {name: getattr(stage.resources, name) for name in _RESOURCES} | {"replicas": stage.resources.asked}
    if stage.kind == "read":
        given = resources if stage.own_ranks else {**resources, "replicas": None}
        kept = {name: given[name] for name in ("replicas", "cpus", "memory", "image")}
        return read(stage.payload, **{**stage.options, **kept, **options}).ends[0]
    cut = None if stage.rebatch is None else Cut(stage.rebatch, stage.drop_last)
    before = Pipeline((stage.parent,), cut=cut)  # type: ignore[arg-type]  # every stage but a source has one
    if stage.kind == "write":
        kept = {name: resources[name] for name in ("replicas", "cpus", "memory", "image")}
        return before.write(stage.payload, name=stage.name, **{**stage.options, **kept, **options}).ends[0]
    kept = {**resources, "name": stage.name, "credit": stage.credit}
    if stage.kind == "map":
        return before.map(stage.function, **{**kept, **options}).ends[0]  # type: ignore[arg-type]
    kept |= {"tail": stage.tail.value, "ordered": stage.ordered, "when_slow": stage.when_slow.value}
    return before.loop(stage.function, **{**kept, **options}).ends[0]  # type: ignore[arg-type]


def explain(pipeline: Pipeline) -> str:
    """The pipeline as a tree with its resources, without running it."""
    stages = stages_of(pipeline)
    names = names_of(stages)
    lines: list[str] = []

    def line(stage: Stage) -> str:
        if stage.kind == "read":
            secret = ("settings", "storage_options")  # they may hold passwords
            shown = {key: value for key, value in stage.options.items() if key not in secret}
            options = ", ".join(f"{key}={value!r}" for key, value in shown.items())
            where = f"; {stage.resources}" if stage.own_ranks else ""
            return f"read {_short(stage.payload)}  ({options}{where})"
        anew = "" if stage.rebatch is None else f", rebatch={stage.rebatch}{', drop_last' if stage.drop_last else ''}"
        if stage.kind == "write":
            return f"{names[stage]} → {_short(stage.payload)}  ({stage.resources}{anew})"
        extra = "" if stage.kind == "map" else f", tail={stage.tail.value}{', ordered' if stage.ordered else ''}{anew}"
        return f"{stage.kind} {names[stage]}  ({stage.resources}, credit={format_bytes(stage.credit)}{extra})"

    def visit(stage: Stage, prefix: str, last: bool, top: bool) -> None:
        lines.append(line(stage) if top else f"{prefix}{'└─ ' if last else '├─ '}{line(stage)}")
        below = children_of(stage, stages)
        for number, child in enumerate(below):
            visit(child, "" if top else prefix + ("   " if last else "│  "), number == len(below) - 1, False)

    visit(stages[0], "", True, True)
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = f"a {type(value).__name__}" if not callable(value) else f"callback {getattr(value, '__name__', '')}"
    return text if not isinstance(value, list) or not value or not isinstance(value[0], str) else ", ".join(value)


def _callable(method: str, function: object) -> None:
    if not callable(function):
        raise PipelineError(f".{method}() expects a function, a generator function or a class, got {function!r}")
    if problem := problem_of(method, function):
        raise PipelineError(problem)


def _name(name: str | None, function: Any) -> str:
    if name is not None:
        return name
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isfunction(function) or isinstance(function, type)):
        function = type(function)
    return str(function.__name__).replace("<lambda>", "lambda")
