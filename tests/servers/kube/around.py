"""``python -m servers.kube.around COMMAND …``: one cluster for all the processes of a test run, and the run's exit code.

Where KUBECONFIG names a cluster, and where none can run here, the command runs as it is: its tests say what is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys

from servers.kube import held, missing_tools


def main() -> int:
    command = sys.argv[1:]
    if os.environ.get("KUBECONFIG") or missing_tools():
        return subprocess.run(command, check=False).returncode
    with held.cluster() as kube:
        return subprocess.run(command, env={**os.environ, held.VARIABLE: str(kube.state)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
