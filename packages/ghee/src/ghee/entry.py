"""`ghee.run` and the handle of a run."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import cloudpickle

from ghee import pickling, stopping
from ghee.driver.driver import Driver
from ghee.driver.feed import unready
from ghee.driver.journal import Journal
from ghee.driver.plan import Plan, make_plan
from ghee.driver.resume import Start, start_of
from ghee.errors import CancelledError, CheckpointError, MachineError, PipelineError, TransactionError
from ghee.io.stores.patience import say
from ghee.launch.contract import Launcher
from ghee.launch.kubernetes import Kubernetes
from ghee.observe.report import Report
from ghee.observe.trace import TraceSettings, merge
from ghee.pipeline import Pipeline, override
from ghee.protocol.coordinator import RETRIES
from ghee.protocol.messages import RankId
from ghee.remote import RemoteRun
from ghee.resources import format_bytes

if TYPE_CHECKING:
    from ghee.observe.metrics import Metrics
    from ghee.observe.progress import Progress

KEPT_RUNS = 20
"""Folders of past runs that are kept (logs and reports)."""


class Run:
    """One execution of a pipeline.

    `result` waits for the end and raises what the run ended with; `report` may be asked for at any time.
    """

    def __init__(
        self, plan: Plan, attempt: Callable[[Start, list[str]], Driver], start: Start, folder: Path, journal: Journal,
        progress: Progress | None, restarts_left: int, metrics: Metrics | None = None, trace: Path | None = None,
    ) -> None:  # fmt: skip
        """`attempt` makes the driver of an attempt, given where it begins and why it was begun again.

        `trace` is where the timeline goes that the ranks have written.
        """
        self.id = folder.name
        self.folder = folder
        self._plan, self._attempt, self._journal, self._progress = plan, attempt, journal, progress
        self._metrics, self._trace = metrics, trace
        self._notes: list[str] = []
        self._restarts: list[str] = []
        self._restarts_left = self._restarts_most = restarts_left
        self._cancelled = self._stopped = False
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"ghee run {self.id}", daemon=True)
        self._driver = attempt(start, [])
        try:
            if metrics is not None:
                metrics.begin(lambda: self.report)
            self._thread.start()
        except BaseException:
            self._driver.launcher.close()
            raise

    def _run(self) -> None:
        """The thread: whatever happens in it, the run has ended when it has, and `result` raises why."""
        try:
            self._run_attempts()
        except BaseException as error:
            self._error = error
        finally:
            try:
                self._tidy_up()
            except Exception as error:  # what the functions have returned is worth more than a report of it
                self._notes.append(f"the run's folder {self.folder} could not be written at the end: {error}")
                print(f"ghee: {self._notes[-1]}", file=sys.stderr, flush=True)
            finally:
                self._over.set()

    def _run_attempts(self) -> None:
        while True:
            try:
                self._driver.run()
                return
            except BaseException as error:
                try:
                    goes_on = self._begin_again(error)
                except Exception as why:
                    why.add_note(f"the run could not be begun again, after this: {type(error).__name__}: {error}")
                    raise why from error
                if not goes_on:
                    raise

    def _tidy_up(self) -> None:
        error = self._error
        how = "finished" if error is None else "cancelled" if isinstance(error, CancelledError) else ""
        with contextlib.ExitStack() as ending:  # last first, and all of it
            ending.callback(lambda: (self.folder / "report.json").write_text(self.report.to_json()))
            if error is None:
                ending.callback(self._say_warnings)  # the last line
            if self._progress is not None:
                ending.callback(self._progress.close, self.report if error is None else None)
            ending.callback(self._end_observers)
            ending.callback(self._journal.close)
            ending.callback(self._journal.append, kind="end", how=how or f"failed: {type(error).__name__}")

    def _say_warnings(self) -> None:
        for warning in self.report.warnings:
            say(warning)

    def _end_observers(self) -> None:
        if self._trace is not None:
            try:
                self._notes += merge(self.folder / "trace", self._trace, self.id)
            except OSError as error:
                self._notes.append(f"the trace could not be written to {self._trace}: {error}")
        if self._metrics is not None:
            self._metrics.close()

    def _begin_again(self, error: BaseException) -> bool:
        """A rank whose work cannot be made again alone was killed: begin again at the last checkpoints, if that is sound.

        What a Python function was given as a sink, or what came out of an iterator, cannot be taken back.
        """
        given_away = any(stage.kind == "write" and stage.hosted for stage in self._plan.stages)
        if given_away or getattr(self._plan.source, "read_once", False):
            return False
        if not (self._driver.may_begin_again or isinstance(error, TransactionError)) or self._cancelled:
            return False
        if self._driver.got_on:  # what a stream may survive is counted anew where it has got on
            self._restarts_left = self._restarts_most
        if not self._restarts_left:
            return False
        self._restarts_left -= 1
        start = start_of(self._plan, self._journal, self.folder)
        self._restarts.append(f"{(str(error) or type(error).__name__).splitlines()[0]}; the run was begun again at {start}")
        self._journal.append(kind="restart", reason=self._restarts[-1])
        self._driver = self._attempt(start, self._restarts)
        if self._stopped:
            self._driver.drain()
        if self._cancelled:  # meanwhile, and the driver that was told has ended
            self._driver.cancel()
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run has ended, for `timeout` seconds at most; returns whether it has. Raises nothing."""
        return self._over.wait(timeout)  # not Thread.join: Python 3.11 takes a thread for ended whose join Ctrl-C broke off

    @property
    def results(self) -> dict[str, list[Any]]:
        """By name of each loop stage that has not failed: what its function returned, rank by rank. Waits for the end."""
        self._end()
        return {
            stage.name: [cloudpickle.loads(self._driver.results[RankId(stage.index, rank)]) for rank in range(stage.size)]
            for stage in self._plan.stages
            if stage.kind == "loop" and stage.index not in self._driver.failures
        }

    @property
    def failures(self) -> dict[str, BaseException]:
        """The branches that have failed while the others went on, with what they raised. Waits for the end."""
        self._end()
        return {self._plan.stages[index].name: error for index, error in self._driver.failures.items()}

    @property
    def result(self) -> Any:
        """What came of it: what rank 0 of the last loop returned, or what was written to. Waits for the end.

        Where the pipeline has several ends, a dict of these by the names of the last stages; in the place of a branch that
        has failed stands its exception.
        """
        results = self.results | {name: [error] for name, error in self.failures.items()}
        parents = {stage.parent for stage in self._plan.stages}
        ends = [stage for stage in self._plan.stages if stage.index not in parents]
        found = {end.name: results[end.name][0] if end.kind == "loop" else end.target for end in ends}
        return found if len(found) > 1 else next(iter(found.values()))

    @property
    def report(self) -> Report:
        """What was measured so far."""
        report = self._driver.report()
        report.notes = list(self._notes)
        return report

    @property
    def metrics(self) -> str | None:
        """The URL or the file of the run's figures in Prometheus' format, if they were asked for."""
        return None if self._metrics is None else self._metrics.address

    def logs(self, stage: str | None = None) -> dict[str, str]:
        """What the ranks have printed, by "stage-rank"; of one stage if it is named."""
        files = sorted((self.folder / "logs").glob(f"{stage or '*'}-*.log"))
        return {file.stem: file.read_text(errors="replace") for file in files if not file.stem.startswith("mpiexec-")}

    def stop(self) -> None:
        """End a stream in order: nothing more is read, what was read is brought to its end and committed. `wait` waits."""
        self._stopped = True
        self._driver.drain()

    def cancel(self) -> None:
        """End the run now; waits until all its processes are gone. `result` then raises CancelledError."""
        self._cancelled = True
        self._driver.cancel()
        self.wait()

    def _end(self) -> None:
        self.wait()
        self._thread.join()
        if self._error is not None:
            raise self._error.with_traceback(None)


def run(
    pipeline: Pipeline,
    on: Literal["local", "inline", "kubernetes"] | Kubernetes | Launcher = "local",
    *,
    wait: bool = True,
    progress: bool | None = None,
    retries: int = RETRIES,
    resume: str | Mapping[str, Any] | None = None,
    metrics: int | str | Path | None = None,
    trace: str | Path | None = None,
    detach: bool = False,
) -> Run | RemoteRun:
    """Run a pipeline: on this machine as MPI processes ("local") or as threads of this process ("inline"), or on a cluster
    ("kubernetes", where every stage names an image, or `ghee.Kubernetes(image=...)`).

    Waits for the end unless `wait=False`. `progress` shows what happens while it runs; by default where standard error
    is a terminal. `retries` is how often each replica of a reading or map stage is started again when it was killed:
    what was lost with it is made again from the source, and delivered once. When a rank of a loop or sink is killed, the
    run begins again at the loops' last checkpoints (`ghee.checkpoint`), as often. `resume` goes on with an earlier run,
    given by its id, or at the place of a `batches.state()`; numbers of replicas may differ from then, stages and input may
    not.

    `metrics` gives the run's figures out in Prometheus' format while it runs: at a port of the loopback interface (0: any
    that is free; `Run.metrics` is the URL), at "HOST:PORT", or in a file that is written every second. `trace` is a file
    for a timeline of every batch in Chrome's trace format; it is there when the run has ended, well or not. On a cluster
    `resume` and `trace` need `ghee.Kubernetes(home=...)` on a volume that all Pods mount.

    Raises PipelineError, SourceError or SinkError for what is wrong before anything starts; the exception of a user's
    function with its own type; RankKilledError and the other errors of `ghee.errors`. Ctrl-C stops every process of the
    run and raises KeyboardInterrupt.
    """
    if on == "kubernetes" or isinstance(on, Kubernetes):
        cluster = on if isinstance(on, Kubernetes) else Kubernetes()
        from ghee.on_cluster import run_on_cluster

        return run_on_cluster(
            pipeline, cluster, wait=wait, progress=progress, retries=retries, resume=resume, metrics=metrics, trace=trace,
            detach=detach,
        )  # fmt: skip
    if detach:
        raise PipelineError('detach=True leaves a run on a cluster alone: it goes with on="kubernetes" only')
    return run_here(pipeline, on, wait=wait, progress=progress, retries=retries, resume=resume, metrics=metrics, trace=trace)


def run_here(
    pipeline: Pipeline,
    on: str | Launcher,
    *,
    wait: bool,
    progress: bool | None,
    retries: int = RETRIES,
    resume: str | Mapping[str, Any] | None = None,
    metrics: int | str | Path | None = None,
    trace: str | Path | None = None,
    observe: Callable[[Report], None] | None = None,
    launcher: Callable[[Plan, Path], Launcher] | None = None,
) -> Run:
    """`observe` is called with the figures now and then; `launcher` makes that of a cluster, in the driver's Pod."""
    plan = make_plan(pipeline)
    if problems := unready(plan):
        raise PipelineError("; ".join(problems))
    traced = trace_file(trace)
    if resume is None:
        # On a cluster its id there is the one that the user knows.
        named = os.environ.get("SWIMMY_RUN") if launcher else None
        folder = _make_folder(named or time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3))
        _keep(pipeline, folder, getattr(getattr(plan.source, "table", None), "nbytes", 0))
        state = None
    else:
        state = None if isinstance(resume, str) else resume
        folder = folder_of(resume if isinstance(resume, str) else resume["run"])
    journal = Journal(folder / "journal")
    try:
        start = start_of(plan, journal, folder, state) if resume is not None else Start()
    except BaseException:
        journal.close()
        raise
    stopping.forget(folder)
    (folder / "report.json").unlink(missing_ok=True)  # a folder without one is not removed as an old run's
    shown = make_progress(folder.name) if progress or (progress is None and sys.stderr.isatty()) else None

    settings = None if traced is None else TraceSettings.begin(folder / "trace", sum(s.size for s in plan.stages))

    def attempt(start: Start, restarts: list[str]) -> Driver:
        chosen = launcher(plan, folder) if launcher else _launcher(on, folder, shown)
        try:
            return Driver(
                plan, chosen, folder.name, folder, retries=retries, observe=observe or (shown.update if shown else None),
                start=start, journal=journal, restarts=restarts, trace=settings,
            )  # fmt: skip
        except BaseException:
            chosen.close()
            raise

    told = make_metrics(metrics)
    try:
        handle = Run(plan, attempt, start, folder, journal, shown, retries if isinstance(on, str) else 0, told, traced)
    except BaseException:
        journal.close()
        if told is not None:
            told.close()
        raise
    if wait:
        try:
            while not handle.wait(3600):
                pass
        except KeyboardInterrupt:
            if not plan.endless or not _drained(handle):
                handle.cancel()
                raise _interrupted(handle) from None
        handle._end()
    return handle


def resume(
    run_id: str,
    on: Literal["local", "inline"] = "local",
    *,
    options: Mapping[str, Mapping[str, object]] | None = None,
    wait: bool = True,
    progress: bool | None = None,
    retries: int = RETRIES,
    metrics: int | str | Path | None = None,
    trace: str | Path | None = None,
) -> Run:
    """Go on with a run that was killed, cancelled or has failed: its pipeline as it was, from its last checkpoints.

    `options` replaces options of stages, such as {"preprocess": {"replicas": 4}}. Raises CheckpointError for a run that
    is not there, is running, has finished, or whose pipeline could not be kept (`ghee.run(pipeline, resume=id)` goes on
    with that one).
    """
    folder = folder_of(run_id)
    journal = Journal(folder / "journal")
    ends = journal.of_kind("end")
    journal.close()
    if ends and ends[-1]["how"] == "finished":
        raise CheckpointError(f"run {run_id} has finished; there is nothing left to do. Its report is {folder}/report.json")
    return run_here(
        override(_kept(folder), options or {}), on, wait=wait, progress=progress, retries=retries, resume=run_id,
        metrics=metrics, trace=trace,
    )  # fmt: skip


def folder_of(run_id: str) -> Path:
    """The folder of an earlier run. Raises CheckpointError, with the runs that there are."""
    runs = home() / "runs"
    folder = runs / run_id
    if not run_id or not (folder / "journal").is_file() or folder.parent != runs:
        there = sorted(path.parent.name for path in runs.glob("*/journal"))
        raise CheckpointError(f"there is no run {run_id!r} in {runs}; there are: {', '.join(there[-10:]) or 'none'}")
    return folder


def _drained(handle: Run) -> bool:
    """Bring a stream to its end in order; False where a second Ctrl-C comes before that."""
    print("ghee: stopping the stream; Ctrl-C again breaks it off", file=sys.stderr, flush=True)
    handle.stop()
    try:
        while not handle.wait(3600):
            pass
    except KeyboardInterrupt:
        return False
    return True


KEPT_TABLE_BYTES = 64 << 20
"""A pipeline that reads a larger table out of memory is not kept: its folder outlives the run."""


def _keep(pipeline: Pipeline, folder: Path, table_bytes: int) -> None:
    """Keep the pipeline for `resume`; what cannot be pickled, or is too large, says so there."""
    try:
        kept: bytes | str = f"it reads a table of {format_bytes(table_bytes)} out of memory"
        if table_bytes <= KEPT_TABLE_BYTES:
            kept = pickling.dumps(pipeline)
    except Exception as error:
        kept = str(error)
    (folder / "pipeline").write_bytes(pickle.dumps((sys.path, kept)))


def _kept(folder: Path) -> Pipeline:
    path, kept = pickle.loads((folder / "pipeline").read_bytes())
    if isinstance(kept, str):
        raise CheckpointError(
            f"the pipeline of run {folder.name} could not be kept ({kept}); "
            f"resume it in your program: ghee.run(pipeline, resume={folder.name!r})"
        )
    sys.path.extend(entry for entry in path if entry not in sys.path)
    pipeline: Pipeline = cloudpickle.loads(kept)
    return pipeline


def trace_file(trace: str | Path | None) -> Path | None:
    if trace is None:
        return None
    path = Path(trace).absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise PipelineError(
            f"trace={str(trace)!r}: expected a file in a folder that is there, such as trace='run.trace.json'"
        )
    return path


def make_metrics(where: int | str | Path | None) -> Metrics | None:
    if where is None:
        return None
    from ghee.observe.metrics import Metrics  # an HTTP server takes a while to import

    return Metrics(where)


def make_progress(run_id: str) -> Progress:
    from ghee.observe.progress import Progress  # rich takes a while to import, and ranks import this module too

    return Progress(run_id)


def _launcher(on: Any, folder: Path, shown: Progress | None) -> Launcher:
    if on == "inline":
        from ghee.launch.inline import InlineLauncher

        return InlineLauncher()
    if on == "local":
        from ghee.launch.local import LocalLauncher

        return LocalLauncher(folder / "logs", shown.line if shown else print_line)
    if isinstance(on, str):
        raise PipelineError(
            f'on={on!r}: allowed are "local" (MPI processes on this machine), "inline" (threads) and "kubernetes"'
        )
    launcher: Launcher = on
    return launcher


def print_line(source: str, line: str) -> None:
    """Show a line that a rank has printed."""
    print(f"[{source}] {line}", flush=True)


def home() -> Path:
    """Where the folders of runs are kept: $GHEE_HOME, or ~/.cache/ghee."""
    return Path(os.environ.get("GHEE_HOME") or Path.home() / ".cache" / "ghee")


def _make_folder(run_id: str) -> Path:
    runs = home() / "runs"
    folder = runs / run_id
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for private in (folder, folder / "logs"):
            private.mkdir(mode=0o700)
    except OSError as error:
        raise MachineError(
            f"the run's folder {folder} cannot be made ({error.strerror}): "
            "set GHEE_HOME to a folder that you can write to (by default it is .cache/ghee in your HOME)"
        ) from error
    ended = sorted(path.parent for path in runs.glob("*/report.json"))  # one without a report may still be running
    for old in ended[:-KEPT_RUNS]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _interrupted(handle: Run) -> KeyboardInterrupt:
    """One line instead of a traceback, for a Ctrl-C that nobody catches.

    No class of our own: the interpreter ends as after an interrupt for KeyboardInterrupt itself only.
    """
    error = KeyboardInterrupt(
        f"ghee: interrupted after {handle.report.seconds:.1f} s; every process of run {handle.id} is gone"
    )
    before = sys.excepthook

    def hook(kind: type[BaseException], raised: BaseException, trace: TracebackType | None) -> None:
        sys.excepthook = before
        if raised is error:
            print(raised, file=sys.stderr)
        else:
            before(kind, raised, trace)

    sys.excepthook = hook
    return error


__all__ = ["CancelledError", "Run", "run"]
