"""The command `ghee`: run a pipeline that stands in a file, or show it.

    ghee run train.py:pipeline --set epochs=3 --set preprocess.replicas=4
    ghee explain train.py:pipeline
    ghee resume 20261124-101500-a1b2c3
    ghee run train.py:pipeline --on kubernetes --image registry/team/train:1.2 --detach
    ghee ps | ghee attach ghee-a1b2c3 | ghee cancel ghee-a1b2c3

Exit codes: 0 the run ended well; 1 it failed; 2 the command or the pipeline is wrong, nothing was started; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from ghee import failure
from ghee.errors import CheckpointError, PipelineError, RemoteTraceback
from ghee.pipeline import Pipeline
from ghee.pipeline_file import find_pipeline, stage_options

if TYPE_CHECKING:
    from ghee.entry import Run
    from ghee.launch.kubernetes import Kubernetes
    from ghee.remote import RemoteRun

RUN_FAILED, WRONG, INTERRUPTED = 1, 2, 130

_PIPELINE_HELP = (
    "a file or an importable module, and the name in it of a pipeline or of a function that returns one; "
    "such as train.py:pipeline"
)
_SET_HELP = (
    "name=value is an argument of the function that returns the pipeline; stage.option=value replaces an option of a "
    "stage, such as preprocess.replicas=4 or train.memory=2Gi. May be given several times"
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point; ends the process with one of the exit codes above."""
    sys.exit(run_command(arguments))


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    began = False
    try:
        if parsed.command == "resume":
            began = True
            return _resume(parsed)
        if parsed.command in _ON_CLUSTER:
            began = True
            return _ON_CLUSTER[parsed.command](parsed)
        pipeline = find_pipeline(parsed.pipeline, parsed.set)
        if parsed.command == "explain":
            _explain(pipeline, parsed)
            return 0
        began = True
        return _run(pipeline, parsed)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "ghee: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (Exception, SystemExit) as error:
        if parsed.traceback:
            traceback.print_exception(error)
        else:
            print(describe(error), file=sys.stderr)
        wrong = isinstance(error, PipelineError | CheckpointError) and not isinstance(error.__cause__, RemoteTraceback)
        return RUN_FAILED if began and not wrong else WRONG


def _run(pipeline: Pipeline, parsed: argparse.Namespace) -> int:
    from ghee.entry import run

    on = _settings(parsed) if parsed.on == "kubernetes" else parsed.on
    handle = run(pipeline, on=on, progress=parsed.progress, metrics=parsed.metrics, trace=parsed.trace, detach=parsed.detach)
    if parsed.detach:
        print(f"run {handle.id} goes on by itself: ghee attach {handle.id} follows it, ghee cancel {handle.id} ends it")
        return 0
    return _show(handle)


def _explain(pipeline: Pipeline, parsed: argparse.Namespace) -> None:
    if parsed.on != "kubernetes":
        print(pipeline)
        return
    from ghee.remote import manifests

    print(manifests(pipeline, _settings(parsed)))


def _settings(parsed: argparse.Namespace) -> Kubernetes:
    from ghee.launch.kubernetes import Kubernetes

    image = getattr(parsed, "image", None)
    return Kubernetes(image=image, namespace=parsed.namespace, context=parsed.context, kubeconfig=parsed.kubeconfig)


def _attach(parsed: argparse.Namespace) -> int:
    from ghee.remote import attach

    return _show(attach(parsed.run, _settings(parsed), line=print))


def _cancel(parsed: argparse.Namespace) -> int:
    from ghee.entry import home

    if (home() / "runs" / parsed.run / "journal").is_file():
        return _end_here(parsed)
    from ghee.launch.kubernetes import cancel_driver

    cancel_driver(parsed.run, _settings(parsed))
    print(f"run {parsed.run} is cancelled")
    return 0


def _end_here(parsed: argparse.Namespace) -> int:
    """A run of this machine: a stream is stopped in order, others end at once."""
    from ghee import stopping
    from ghee.driver.journal import Journal
    from ghee.entry import folder_of

    folder = folder_of(parsed.run)
    stopping.ask(folder, stopping.NOW if parsed.now else stopping.IN_ORDER)
    stopping.wait(folder)
    journal = Journal(folder / "journal")
    ends = journal.of_kind("end")
    journal.close()
    how = {"finished": "has stopped in order", "cancelled": "is cancelled"}
    said = ends[-1]["how"] if ends else "was killed"
    print(f"run {parsed.run} {how.get(said, said)}")
    return 0 if said in how else RUN_FAILED


def _ps(parsed: argparse.Namespace) -> int:
    from ghee.launch.kubernetes import list_drivers

    for found in list_drivers(_settings(parsed)):
        state = next((name for name in ("active", "succeeded", "failed") if found[name]), "waiting")
        print(f"{found['id']}  {found['created']}  {state}")
    return 0


_ON_CLUSTER = {"attach": _attach, "cancel": _cancel, "ps": _ps}


def _resume(parsed: argparse.Namespace) -> int:
    from ghee.entry import resume

    return _show(resume(
        parsed.run, on=parsed.on, options=stage_options(parsed.set), progress=parsed.progress, metrics=parsed.metrics,
        trace=parsed.trace,
    ))  # fmt: skip


def _show(handle: Run | RemoteRun) -> int:
    print(handle.report)
    for stage, results in handle.results.items():
        if results[0] is not None:
            print(f"{stage} returned {results[0]!r}")
    return RUN_FAILED if handle.failures else 0


def describe(error: BaseException) -> str:
    """An error for its user: his own line first, then what happened and where. No traceback."""
    notes = list(getattr(error, "__notes__", ()))
    line = ""
    if isinstance(error.__cause__, RemoteTraceback) and notes:
        line, _, where = notes.pop().rpartition("\n")
        notes.append(where if where.startswith("in ") else f"in {where}")
    elif isinstance(error, SyntaxError):
        line = f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"
    else:
        line = failure.users_line(error.__traceback__)
    kind = type(error)
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    plain = kind.__module__ in ("builtins", "__main__", "ghee.errors")
    name = kind.__name__ if plain else f"{kind.__module__}.{kind.__name__}"
    lines = [line, f"{name}: {said}" if said else name, *notes]
    if isinstance(error.__cause__, RemoteTraceback):
        lines.append("(--traceback shows the rank's traceback)")
    return "\n".join(part for part in lines if part)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ghee", description="Streaming distributed processing: batches from storage to stage to stage.",
        epilog="exit codes: 0 well; 1 the run failed; 2 the command or the pipeline is wrong; 130 Ctrl-C",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"ghee {importlib.metadata.version('ghee')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs = commands.add_parser("run", help="run a pipeline and print its report")
    explains = commands.add_parser("explain", help="print a pipeline as a tree with its resources; nothing is run")
    resumes = commands.add_parser("resume", help="go on with a run that was killed, cancelled or has failed")
    resumes.add_argument("run", metavar="RUN", help="its id, as the run has printed it; its folder is in ~/.cache/ghee/runs")
    runs.add_argument("--detach", action="store_true", help="on a cluster: start it and leave it alone")
    explains.add_argument("--on", choices=("local", "kubernetes"), default="local",
                          help="kubernetes: print the manifests of the Jobs that a run would create")  # fmt: skip
    follows = commands.add_parser("attach", help="follow a detached run on a cluster")
    cancels = commands.add_parser(
        "cancel", help="end a run: a stream of this machine in order, others at once; deletes Pods"
    )
    cancels.add_argument("--now", action="store_true", help="on this machine: do not bring a stream to its end in order")
    lists = commands.add_parser("ps", help="list the runs on a cluster")
    for command in (follows, cancels):
        command.add_argument("run", metavar="RUN", help="its id, as it has printed it or as ghee ps lists it")
    for command in (runs, explains):
        command.add_argument("--image", help="on a cluster: the image of the driver and of every stage that names none")
    for command in (runs, explains, follows, cancels, lists):
        for option in ("namespace", "context", "kubeconfig"):
            command.add_argument(f"--{option}", help="on a cluster: as kubectl's (default: what kubectl uses)")
    for command in (follows, cancels, lists):
        command.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    for command in (runs, explains):
        command.add_argument("pipeline", metavar="FILE:PIPELINE", help=_PIPELINE_HELP)
    for command in (runs, explains, resumes):
        command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=_SET_HELP)
        command.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    for command in (runs, resumes):
        command.add_argument(
            "--on", choices=("local", "inline", "kubernetes") if command is runs else ("local", "inline"), default="local",
            help="local: MPI processes on this machine (default); inline: threads, for a debugger; kubernetes: Pods",
        )  # fmt: skip
        command.add_argument("--progress", action=argparse.BooleanOptionalAction, default=None,
                             help="show what happens while it runs (default: on a terminal)")  # fmt: skip
        command.add_argument("--metrics", metavar="PORT|FILE",
                             help="figures for Prometheus while it runs: at http://127.0.0.1:PORT/metrics, at HOST:PORT, "
                             "or in a file that is written every second")  # fmt: skip
        command.add_argument("--trace", metavar="FILE",
                             help="a timeline of every batch in Chrome's trace format, for ui.perfetto.dev")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
