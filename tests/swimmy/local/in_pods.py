"""Finds the processes of a Pod of the fixture's own cluster."""

from __future__ import annotations

from typing import Any


def agent_pid(kube: Any, run: str, index: int | str) -> str:
    script = (
        'for p in /proc/[0-9]*; do tr "\\0" "\\n" < $p/environ 2>/dev/null | grep -qx "SWIMMY_RUN=$0" || continue; '
        'tr "\\0" "\\n" < $p/environ | grep -qx "JOB_COMPLETION_INDEX=$1" || continue; '
        'tr "\\0" " " < $p/cmdline | grep -q "swimmy.agent" && echo ${p#/proc/} && exit; done; exit 1'
    )
    return str(kube.run_inside("sh", "-c", script, run, str(index))).strip()


def let_go(kube: Any, run: str, replica: int) -> None:
    """Sends SIGUSR1 to the rank itself: of the processes `swimmy.inside`, the one whose parent is one too."""
    script = (
        'for p in /proc/[0-9]*; do tr "\\0" "\\n" < $p/environ 2>/dev/null | grep -qx "SWIMMY_RUN=$0" || continue; '
        'tr "\\0" "\\n" < $p/environ | grep -qx "JOB_COMPLETION_INDEX=$1" || continue; '
        'tr "\\0" " " < $p/cmdline | grep -q "swimmy.inside" || continue; '
        'parent=$(awk "/^PPid/ {print \\$2}" $p/status); '
        'tr "\\0" " " < /proc/$parent/cmdline | grep -q "swimmy.inside" && kill -USR1 ${p#/proc/}; done; true'
    )
    kube.run_inside("sh", "-c", script, run, str(replica))
