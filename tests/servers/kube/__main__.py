"""``python -m servers.kube [COMMAND …]``: a cluster of this machine for as long as a command, or a shell, runs.

KUBECONFIG names the cluster for the command; it holds the image localhost/try:1, which is the environment that this runs
in: its Python is ``python=sys.executable`` of ``swimmy.Pods``, ``--python`` of ``swimmy doctor``.
"""

from __future__ import annotations

import os
import subprocess
import sys

from servers.kube import held, missing_tools


def main() -> int:
    """The command's exit code; 2 where a cluster cannot run here."""
    if missing := missing_tools():
        print("a test cluster cannot run here:\n  " + "\n  ".join(missing), file=sys.stderr)
        return 2
    command = sys.argv[1:] or [os.environ.get("SHELL", "/bin/sh")]
    with held.cluster() as kube:
        print(f"a cluster for as long as this runs; image {held.IMAGE}, its Python {sys.executable}", file=sys.stderr)
        environment = {**os.environ, "KUBECONFIG": str(kube.kubeconfig), held.VARIABLE: str(kube.state)}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
