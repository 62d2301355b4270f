"""Run at the start of every Python process that the tests start: SIGUSR2 has it write the stacks of all its threads.

In C, by faulthandler: it works too where the main thread does not come back from a call, or another holds the interpreter.
"""

import faulthandler
import os
import signal

if "SUITE_STACKS" in os.environ:
    try:
        file = open(os.path.join(os.environ["SUITE_STACKS"], str(os.getpid())), "w")  # noqa: SIM115
        faulthandler.register(signal.SIGUSR2, file, all_threads=True)
    except OSError:  # the session is over, or the folder is another user's
        pass
