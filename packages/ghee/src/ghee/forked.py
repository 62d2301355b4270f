"""A process that user code has forked from a rank is not the rank: it takes and gives no batches, and ends by itself."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from ghee.errors import TransferError


def check(pid: int, rank: object) -> None:
    """Raise TransferError in a process that was forked from process `pid`, in which the rank lives."""
    if os.getpid() != pid:
        raise TransferError(
            f"process {os.getpid()} was forked from {rank} (process {pid}) and asks for or gives a batch: only the rank "
            "itself can; take what the child needs before the fork, and end the child by sys.exit or os._exit"
        )


def leave(error: BaseException | None) -> NoReturn:
    """End a forked child, whose function has come to its end, as multiprocessing ends one: without the rank's clean-up.

    The code is that of `sys.exit`, 1 for an exception, 0 without one.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    elif error is not None:
        code = 1
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)
