"""A run on a cluster: what the user's process starts, and what happens in the driver's Pod."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle

from ghee import pickling
from ghee.driver.plan import Plan
from ghee.entry import Run, home, make_metrics, make_progress, print_line, run_here, trace_file
from ghee.errors import PipelineError
from ghee.launch.contract import Launcher
from ghee.launch.kubernetes import Kubernetes, KubernetesLauncher
from ghee.observe.report import Report
from ghee.pipeline import Pipeline
from ghee.remote import Outcome, RemoteRun, describe_error, lists_of, print_figures, submit

REPORT_SECONDS = 1.0
"""How often the driver of a run on a cluster tells its figures."""

WAITING_SECONDS = 5.0
"""How often a run on a cluster says what it waits for while it waits for Pods."""

LOG_BYTES = 1 << 20
"""What is brought home of each rank's log: its end."""


def run_on_cluster(
    pipeline: Pipeline,
    settings: Kubernetes,
    *,
    wait: bool,
    progress: bool | None,
    retries: int,
    resume: str | Mapping[str, Any] | None,
    metrics: int | str | Path | None,
    trace: str | Path | None,
    detach: bool,
) -> RemoteRun:
    """The figures come to this process, so the metrics are given out here; journal and trace lie in the Pods' `home`."""
    for name, value in (("resume", resume), ("trace", trace)):
        if value is not None and settings.home is None:
            raise PipelineError(
                f"{name}= on a cluster needs ghee.Kubernetes(home=...): a folder on a volume that all Pods mount (pods={{"
                '"volumes": [swimmy.claim(...)]}); without one, what a run has written goes with its Pods'
            )
    if detach and (trace is not None or metrics is not None):
        raise PipelineError("detach=True leaves nobody here who could write the trace or give out metrics")
    traced = trace_file(trace)
    told = make_metrics(metrics)
    shown = make_progress("on the cluster") if progress or (progress is None and sys.stderr.isatty()) else None

    def line(text: str) -> None:
        if shown is not None:
            shown.line("cluster", text)
        else:
            print(text, flush=True)

    options = {"retries": retries, "resume": resume, "trace": traced is not None}
    try:
        handle = submit(
            drive_in_pod, pipeline, settings, options, detach=detach, update=shown.update if shown else None, line=line,
            metrics=told, trace=traced,
        )  # fmt: skip
    except BaseException:
        if told is not None:
            told.close()
        raise
    if wait and not detach:
        try:
            while not handle.wait(WAITING_SECONDS):
                if waiting := handle.waiting:
                    line(f"waiting for the driver: {waiting}")
        except KeyboardInterrupt:
            handle.cancel()
            raise
        finally:
            if shown is not None:
                shown.close(handle.report)
        handle._end()
    return handle


def drive_in_pod(pipeline: bytes, settings: Kubernetes, options: dict[str, Any], ahead: dict[int, Any]) -> Outcome:
    """The driver of a run on a cluster, called in its Pod: the same as on one machine, but for the launcher.

    `ahead` are the Pods that were made together with its own, by stage.
    """
    found: Pipeline = cloudpickle.loads(pipeline)
    told, waited = 0.0, time.monotonic()
    made: list[KubernetesLauncher] = []

    def observe(report: Report) -> None:
        nonlocal told, waited
        if time.monotonic() - waited >= WAITING_SECONDS:
            waited = time.monotonic()
            for waiting in made[-1].waiting_for():
                print(f"waiting for {waiting}", flush=True)
        if time.monotonic() - told >= REPORT_SECONDS:
            told = time.monotonic()
            print_figures(report)

    def launcher(plan: Plan, folder: Path) -> Launcher:
        resources = {stage.index: (stage.resources, stage.one_world) for stage in plan.stages}
        made.append(KubernetesLauncher(settings, resources, folder / "logs", print_line, ahead))
        return made[-1]

    run_id = os.environ.get("SWIMMY_RUN", "")
    traced = home() / f"{run_id}.trace.json" if options["trace"] else None
    try:
        home().mkdir(parents=True, exist_ok=True)
        handle = run_here(
            found, "kubernetes", wait=False, progress=False, retries=options["retries"], resume=options["resume"],
            trace=traced, observe=observe, launcher=launcher,
        )  # fmt: skip
    except Exception as error:
        return Outcome(run_id, Report(run_id), describe_error(error))
    handle.wait()
    outcome = _outcome(handle, found, made)
    if traced is not None and traced.exists():
        outcome = replace(outcome, trace=traced.read_bytes())
        traced.unlink()
    return outcome


def _outcome(handle: Run, pipeline: Pipeline, made: list[KubernetesLauncher]) -> Outcome:
    """What goes home from the driver's Pod."""
    logs = {name: text[-LOG_BYTES:] for name, text in handle.logs().items()}
    try:
        results = {name: [pickling.dumps(result) for result in of] for name, of in handle.results.items()}
        failures = {name: describe_error(error) for name, error in handle.failures.items()}
    except Exception as error:
        return Outcome(handle.id, handle.report, describe_error(error), logs=logs)
    lists = {name: pickling.dumps(written) for name, written in lists_of(pipeline).items()}
    requests = dict(sum((Counter(launcher.requests()) for launcher in made), Counter()))
    return Outcome(handle.id, handle.report, None, results, failures, lists, logs, requests, made[-1].starts())
