"""A run on a cluster, as the user's process sees it: what its driver, in a Pod, prints and returns."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from ghee import failure, pickling
from ghee.driver.plan import make_plan
from ghee.errors import CancelledError, GheeError, PipelineError, RemoteTraceback
from ghee.failure import Failure
from ghee.launch.kubernetes import DriverHandle, Kubernetes, attach_driver, explain, start_driver
from ghee.observe.report import RankReport, Report, StageReport
from ghee.pipeline import Pipeline
from ghee.resources import Resources

if TYPE_CHECKING:
    from ghee.observe.metrics import Metrics

_FIGURES = "\x1eghee-report "
"""How a line begins with which the driver's Pod tells its figures; all other lines are what ranks have printed."""


@dataclass(frozen=True)
class Outcome:
    """How a run in a Pod ended. `results` and `lists` (what was written to Python lists, by the end's name) are pickled.

    `requests` is what the driver asked of the API server, `starts` the seconds of each part of the start, by world.
    """

    run: str
    report: Report
    error: Failure | None = None
    results: dict[str, list[bytes]] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    lists: dict[str, bytes] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    starts: dict[str, dict[str, float]] = field(default_factory=dict)
    trace: bytes = b""


def describe_error(error: BaseException) -> Failure:
    """An exception of a run, ready to travel: with the user's line, the place and the remote traceback that it has."""
    notes = list(getattr(error, "__notes__", ()))
    if not isinstance(error.__cause__, RemoteTraceback) or not notes:
        return failure.capture(error, "in the driver's Pod")
    line, _, where = notes[-1].rpartition("\n")
    cause = str(error.__cause__)
    del error.__notes__
    error.__cause__ = None
    return replace(failure.capture(error, where), line=line, traceback=cause)


def print_figures(report: Report) -> None:
    """Tell the user's process how the run goes on."""
    small = replace(report, stages=[replace(stage, by_rank=[]) for stage in report.stages])
    print(_FIGURES + json.dumps(asdict(small)), flush=True)


def parse_figures(line: str) -> Report | None:
    """The report in a line of the driver's Pod, None if it is any other line."""
    if not line.startswith(_FIGURES):
        return None
    fields = json.loads(line.removeprefix(_FIGURES))
    stages = fields.pop("stages")
    return Report(**fields, stages=[
        StageReport(**{**stage, "by_rank": [RankReport(**rank) for rank in stage["by_rank"]]}) for stage in stages
    ])  # fmt: skip


class RemoteRun:
    """One execution of a pipeline on a cluster; used like `ghee.Run`.

    `result` waits for the end and raises what the run ended with; `report` may be asked for at any time.
    """

    def __init__(
        self, driver: DriverHandle, pipeline: Pipeline | None = None, update: Callable[[Report], None] | None = None,
        line: Callable[[str], None] | None = None, metrics: Metrics | None = None, trace: Path | None = None,
    ) -> None:  # fmt: skip
        """`update` is called with each report, `line` with what the ranks print; `trace` is where the timeline goes."""
        self._driver, self._handle, self._pipeline = driver, driver.swimmy, pipeline
        self._update, self._line = update, line
        self._metrics, self._trace = metrics, trace
        self._report = Report(self._handle.id)
        self._error: BaseException | None = None
        self._outcome: Outcome | None = None
        self._cancelled = False
        self._over = threading.Event()
        if metrics is not None:
            metrics.begin(lambda: self.report)
        self._thread = threading.Thread(target=self._follow, name=f"ghee run {self._handle.id}", daemon=True)
        self._thread.start()

    @property
    def id(self) -> str:
        """The run's id on the cluster: the name of its driver's Job."""
        return str(self._handle.id)

    @property
    def status(self) -> str:
        """One line: how far the driver's Pod is."""
        return str(self._handle.status())

    @property
    def metrics(self) -> str | None:
        """The URL or the file of the run's figures in Prometheus' format, if they were asked for."""
        return None if self._metrics is None else self._metrics.address

    @property
    def waiting(self) -> str | None:
        """What the driver's Pod waits for; None once it runs. What the stages' Pods wait for is printed by the driver."""
        return self.status if self._handle.state in ("submitted", "scheduling") else None

    @property
    def requests(self) -> dict[str, int]:
        """What this process, and in a run that has ended its driver, asked of the API server, by verb and kind."""
        of_driver = {} if self._outcome is None else self._outcome.requests
        return dict(Counter(self._handle.requests) + Counter(of_driver))

    @property
    def starts(self) -> dict[str, dict[str, float]]:
        """How many seconds the parts of each world's start took. Waits for the end."""
        return self._end().starts

    def _follow(self) -> None:
        try:
            for line in self._handle.logs():
                report = parse_figures(line.text)
                if report is not None:
                    self._report = report
                    if self._update is not None:
                        self._update(report)
                elif self._line is not None:
                    self._line(line.text)
            self._error = self._driver.error()
            if self._error is None:
                self._outcome = self._handle.result()[0]
                self._take(self._outcome)
            elif self._cancelled:
                self._error = CancelledError("the run was cancelled")
        finally:
            self._driver.close()
            if self._metrics is not None:
                self._metrics.close()
            self._over.set()

    def _take(self, outcome: Outcome) -> None:
        self._report = outcome.report
        if self._trace is not None and outcome.trace:
            try:
                self._trace.write_bytes(outcome.trace)
            except OSError as error:
                self._report.notes.append(f"the trace could not be written to {self._trace}: {error}")
        if outcome.error is not None:
            self._error = failure.restore(failure.with_source(outcome.error))
        for name, written in outcome.lists.items():
            target = self._targets().get(name)
            if target is not None:
                target.extend(cloudpickle.loads(written))

    def _targets(self) -> dict[str, list[Any]]:
        return {} if self._pipeline is None else lists_of(self._pipeline)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run has ended, for `timeout` seconds at most; returns whether it has. Raises nothing."""
        return self._over.wait(timeout)

    @property
    def results(self) -> dict[str, list[Any]]:
        """By name of each loop stage that has not failed: what its function returned, rank by rank. Waits for the end."""
        outcome = self._end()
        return {name: [cloudpickle.loads(of_rank) for of_rank in ranks] for name, ranks in outcome.results.items()}

    @property
    def failures(self) -> dict[str, BaseException]:
        """The branches that have failed while the others went on. Waits for the end."""
        return {name: failure.restore(failure.with_source(each)) for name, each in self._end().failures.items()}

    @property
    def result(self) -> Any:
        """What rank 0 of the last loop returned, or the list that was written to; of several a dict."""
        found: dict[str, Any] = {name: ranks[0] for name, ranks in self.results.items()}
        found |= self.failures
        found |= self._targets()
        return found if len(found) != 1 else next(iter(found.values()))

    @property
    def report(self) -> Report:
        """What was measured so far."""
        return self._report

    def logs(self, stage: str | None = None) -> dict[str, str]:
        """The end of what the ranks have printed, by "stage-rank"; of one stage if it is named. Waits for the end."""
        logs = self._end().logs
        return {name: text for name, text in logs.items() if stage is None or name.rpartition("-")[0] == stage}

    def cancel(self) -> None:
        """End the run now; waits until its objects are deleted. `result` then raises CancelledError."""
        self._cancelled = True
        self._handle.cancel()
        self.wait()

    def _end(self) -> Outcome:
        self.wait()
        self._thread.join()
        if self._error is not None:
            raise self._error.with_traceback(None)
        assert self._outcome is not None
        return self._outcome


def lists_of(pipeline: Pipeline) -> dict[str, list[Any]]:
    """The Python lists that a pipeline writes to, by the place of its end."""
    ends = enumerate(pipeline.ends)
    return {str(number): end.payload for number, end in ends if end.kind == "write" and isinstance(end.payload, list)}


def submit(
    drive: Callable[..., Outcome], pipeline: Pipeline, settings: Kubernetes, options: dict[str, Any], *, detach: bool,
    update: Callable[[Report], None] | None, line: Callable[[str], None] | None, metrics: Metrics | None = None,
    trace: Path | None = None,
) -> RemoteRun:  # fmt: skip
    """Start the run: `drive(pipeline, settings, options)` is called in the driver's Pod."""
    with _own_modules_by_value():
        blob = pickling.dumps(pipeline)
    driver = start_driver(drive, (blob, settings, options), settings, _stages(pipeline), detach=detach)
    return RemoteRun(driver, pipeline, update, line, metrics, trace)


def _stages(pipeline: Pipeline) -> list[tuple[int, str, Resources, bool]]:
    """The stages that have Pods; none where the pipeline cannot be planned here, since what reads its store may be
    installed in the image alone: the driver then starts the stages itself. Raises PipelineError for what is wrong with it.
    """
    try:
        plan = make_plan(pipeline)
    except PipelineError:
        raise
    except (GheeError, ImportError, OSError):
        return []
    return [(s.index, s.name, s.resources, s.one_world) for s in plan.stages if not s.hosted]


def attach(run: str, settings: Kubernetes, line: Callable[[str], None] | None = None) -> RemoteRun:
    """Follow a detached run again, from the machine that started it: its output from the first line, its results."""
    return RemoteRun(attach_driver(run, settings), line=line)


def manifests(pipeline: Pipeline, settings: Kubernetes) -> str:
    """The YAML of the Jobs that a run on a cluster would create."""
    plan = make_plan(pipeline)
    return explain([(s.name, s.resources, s.one_world) for s in plan.stages if not s.hosted], settings)


class _own_modules_by_value:
    """While it is entered, functions of modules that are not installed travel whole: no image has those files."""

    def __enter__(self) -> None:
        known = cloudpickle.list_registry_pickle_by_value()
        self._modules = [module for module in own_modules(sys.modules.values()) if module.__name__ not in known]
        for module in self._modules:
            cloudpickle.register_pickle_by_value(module)

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            cloudpickle.unregister_pickle_by_value(module)


def own_modules(modules: Iterable[Any]) -> list[Any]:
    """Of some modules, those that lie neither in the standard library nor in an installed package, nor are ours."""
    found = []
    for module in list(modules):
        file, name = getattr(module, "__file__", None), getattr(module, "__name__", "")
        if not file or not name or name == "__main__" or name.partition(".")[0] in ("ghee", "swimmy"):
            continue
        if not failure.is_installed(file):
            found.append(module)
    return found
