"""A rank's process: `mpiexec -n k python -m ghee.launch.process BOOTSTRAP STAGE-NAME STAGE FIRST LIFE [HOST]`.

HOST is the address at which it listens where bytes are carried by TCP.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import threading
from pathlib import Path

from ghee.launch.bootstrap import Bootstrap, make_store
from ghee.launch.mpi import UnlinkAfterImport
from ghee.protocol.messages import RankId
from ghee.ranks.runner import run_rank
from ghee.transfer.member import Member
from ghee.transfer.zeromq import ZmqEndpoint

SWITCH_SECONDS = 0.0005
"""How long the user's thread may keep the interpreter from the transfer thread (Python's default is 5 ms)."""


def main(path: str, name: str, stage: str, first: str, life: str, host: str = "127.0.0.1") -> None:
    """Be one rank until the driver says stop."""
    bootstrap: Bootstrap = pickle.loads(Path(path).read_bytes())
    number, size = int(os.environ.get("PMI_RANK", "0")), int(os.environ.get("PMI_SIZE", "1"))
    rank = RankId(int(stage), int(first) + number, int(life))
    _end_with_the_driver(bootstrap)
    _redirect_output(f"{bootstrap.folder}/output-{rank.stage}-{rank.index}-{rank.life}")
    sys.path[:] = bootstrap.path
    sys.meta_path.insert(0, UnlinkAfterImport())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    sys.setswitchinterval(SWITCH_SECONDS)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bind = f"tcp://{host}:*"
    if bootstrap.carrier == "shm":
        bind = f"ipc://{bootstrap.folder}/rank-{rank.stage}-{rank.index}-{rank.life}"
    member = Member(rank, name, ZmqEndpoint(bind, bootstrap.keys), make_store(bootstrap.carrier), bootstrap.driver)
    try:
        run_rank(member, number, size)
    finally:
        member.close()
    _leave_quickly()


def _leave_quickly() -> None:
    """Spare the interpreter's end what takes the longest in it: to look for cycles among all that was ever imported.

    What the function has left in cycles goes now, with its finalizers; what stands in modules is cleared as ever.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def _end_with_the_driver(bootstrap: Bootstrap) -> None:
    """End the whole world, and remove the run's folder, as soon as the driver's process is gone."""
    try:
        descriptor = os.pidfd_open(bootstrap.driver_pid)
    except ProcessLookupError:
        descriptor = -1

    def wait() -> None:
        if descriptor >= 0:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()
        shutil.rmtree(bootstrap.folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, name="ghee driver watch", daemon=True).start()


def _redirect_output(pipe: str) -> None:
    descriptor = os.open(pipe, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


if __name__ == "__main__":
    main(*sys.argv[1:])
