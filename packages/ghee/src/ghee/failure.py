"""A failure on its way from a rank to the user: its own type, the user's line, the place, the remote traceback."""

from __future__ import annotations

import linecache
import os
import pickle
import re
import sysconfig
import traceback
from dataclasses import dataclass, replace
from types import TracebackType

from ghee import pickling
from ghee.errors import RankError, RemoteTraceback

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_CYTHON = (".pyx", ".pxi", ".pxd")
"""Sources of compiled modules, whose frames name a file that is not there."""
_INSTALLED = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")})


@dataclass(frozen=True)
class Failure:
    """What happened in a rank. `error` is the pickled exception, None if not even its type pickles."""

    type_name: str
    message: str
    line: str
    where: str
    traceback: str
    error: bytes | None


def capture(error: BaseException, where: str) -> Failure:
    """Describe an exception that is being handled; `where` names stage, rank and batch."""
    trace = _without_ours(error.__traceback__)
    text = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    return Failure(type(error).__name__, _message(error), users_line(trace), where, text, _pickle(error))


def restore(failure: Failure) -> BaseException:
    """The exception to raise: the user's own type, with a note and the remote traceback as its cause."""
    error: BaseException | None = None
    if failure.error is not None:
        try:
            error = pickle.loads(failure.error)
        except Exception:  # its class is of a module that only the rank has
            error = None
    if error is None:
        error = RankError(f"{failure.type_name}: {failure.message}")
    error.__traceback__ = None
    error.__cause__ = RemoteTraceback(failure.traceback)
    error.add_note(f"{failure.line}\n{failure.where}" if failure.line else failure.where)
    return error


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the user's own class: what it raises must not hide the error that is told
        return f"(its __str__ failed) {error.args!r}"


def _pickle(error: BaseException) -> bytes | None:
    if not isinstance(error, Exception):  # raised by the driver, SystemExit would end the user's program without a word
        return pickle.dumps(
            RankError(f"the function raised {type(error).__name__}({_message(error)}), which ends nothing here")
        )
    for portable in (error, _Rebuilt(error)):
        try:
            data: bytes = pickling.dumps(portable)
            if isinstance(pickle.loads(data), type(error)):
                return data
        except Exception:  # the next way, or else it is told by its name
            continue
    return None


class _Rebuilt:
    """An exception that does not survive pickling (its `__init__` wants other arguments than `args`, or something in it
    does not pickle): it arrives with its type, arguments and attributes, without `__init__` having been called.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __reduce__(self) -> tuple[object, ...]:
        attributes = {name: _portable(value) for name, value in vars(self._error).items()}
        return _rebuild, (type(self._error), tuple(_portable(part) for part in self._error.args), attributes)


def _rebuild(kind: type[Exception], args: tuple[object, ...], attributes: dict[str, object]) -> Exception:
    error: Exception = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(attributes)
    return error


def _portable(value: object) -> object:
    try:
        pickle.loads(pickling.dumps(value))
    except Exception:  # pickling may raise anything; its text is what can be told
        return repr(value)
    return value


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """Skip the frames of ghee that lead to the user's function."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS) and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def with_source(failure: Failure) -> Failure:
    """The same with the text of the user's line: a rank on a cluster has no file to read it from, the user has."""
    found = re.fullmatch(r"(.+):(\d+) in \S+", failure.line)
    source = linecache.getline(found[1], int(found[2])).strip() if found else ""
    return replace(failure, line=f"{failure.line}: {source}") if source else failure


def is_installed(file: str) -> bool:
    """Whether a file belongs to the standard library, an installed package or ghee."""
    return file.startswith((_OURS, *_INSTALLED, "<frozen")) or "site-packages" in file


def users_line(trace: TracebackType | None) -> str:
    """The innermost line that is neither ours nor an installed package's: `file:line in function: source`."""
    best: traceback.FrameSummary | None = None
    for frame in traceback.extract_tb(trace):
        if not is_installed(frame.filename) and not frame.filename.endswith(_CYTHON):
            best = frame
    if best is None:
        return ""
    source = best.line or linecache.getline(best.filename, best.lineno or 0).strip()
    return f"{best.filename}:{best.lineno} in {best.name}" + (f": {source}" if source else "")
