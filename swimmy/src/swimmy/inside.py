"""One rank: connects to its agent, waits for the word, calls the function. ``python -m swimmy.inside`` is what mpiexec
starts.

The process forks at once. The child becomes the rank; the parent only waits for it and reports how it ended, which no one
else could: a rank's parent would be MPI's proxy, which tells nobody that, say, rank 3 was killed by signal 9.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

SOCKET = "SWIMMY_AGENT"
_PR_SET_PDEATHSIG = 1
_world: tuple[int, int] | None = None


def rank() -> int:
    """This process's number in its world, from 0; 0 outside a run."""
    return _world[0] if _world else 0


def size() -> int:
    """How many ranks this process's world has; 1 outside a run."""
    return _world[1] if _world else 1


def _early_rank() -> int:
    """What the launcher says before MPI is up: it labels what a rank prints while it is still importing."""
    for name in ("SWIMMY_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    raise SystemExit(
        "swimmy.inside is started by swimmy's agent: none of SWIMMY_RANK, PMI_RANK, OMPI_COMM_WORLD_RANK is set"
    )


def _connect(kind: str, number: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(os.environ[SOCKET])
    _send(connection, {"connection": kind, "rank": number})
    return connection


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def main() -> None:
    number = _early_rank()
    control = _connect("control", number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent = os.getpid()
    child = os.fork()
    if child:
        _watch(child, control)
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # When memory runs out the kernel is to take the rank, not the agent, which can still say what happened.
    Path("/proc/self/oom_score_adj").write_text("1000")
    _become(number, control)


def _watch(child: int, control: socket.socket) -> None:
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, lambda received, _: _pass_on(child, received))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    try:
        _send(control, {"report": "exit", "code": code})
    except OSError:  # the agent has gone: nobody is left to hear it
        pass
    control.close()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def _pass_on(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except ProcessLookupError:  # it was told as well, and was quicker
        pass


def _become(number: int, control: socket.socket) -> None:
    log = _connect("log", number)
    sys.stdout.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    log.close()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    try:
        _serve(control)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not through atexit either: the others do not know that this rank will not come to MPI_Finalize.
        os._exit(end.code if isinstance(end.code, int) else 1 if end.code else 0)
    except BaseException as error:
        _send(control, describe(error))
        sys.stdout.flush()
        sys.stderr.flush()
        # Not through atexit: MPI_Finalize would wait for ranks that wait for this one.
        os._exit(1)
    sys.stdout.flush()


def _join_world() -> tuple[int, int]:
    if os.environ["SWIMMY_MPI"] == "none":
        return int(os.environ["SWIMMY_RANK"]), int(os.environ["SWIMMY_SIZE"])
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return world.Get_rank(), world.Get_size()


def _serve(control: socket.socket) -> None:
    global _world
    _world = _join_world()
    _send(
        control,
        {"report": "join", "rank": _world[0], "size": _world[1], "host": socket.gethostname(), "pid": os.getpid()},
    )
    line = control.makefile("r").readline()
    if not line:
        return  # the agent ended the world before it began
    word = json.loads(line)
    import cloudpickle

    with open(word["payload"], "rb") as file:
        function, args, kwargs = cloudpickle.load(file)
    result = function(*args, **kwargs)
    path = Path(word["result"])
    from swimmy import pickling

    path.write_bytes(pickling.dumps(result))
    _send(control, {"report": "done", "path": str(path), "bytes": path.stat().st_size})


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as a report: text for people, and the pickled exception where it can be pickled and is small."""
    import base64
    import pickle

    from swimmy import pickling

    text = "".join(traceback.format_exception(error))
    pickled = b""
    try:
        pickled = pickling.dumps(error)
        pickle.loads(pickled)
    except Exception:  # an exception may hold anything: its text is what must arrive
        pickled = b""
    return {
        "report": "failed",
        "type": type(error).__name__,
        "text": str(error)[:2000],
        "module": error.name if isinstance(error, ImportError) else None,
        "traceback": text[-20_000:],
        "pickled": base64.b64encode(pickled).decode() if len(pickled) < 24_000 else "",
    }


if __name__ == "__main__":
    # Run as a module this file would be two modules, and rank() would look at the wrong one.
    from swimmy import inside as itself  # noqa: PLW0406

    itself.main()
