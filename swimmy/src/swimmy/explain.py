"""What the leader found wrong -> the error that is raised here. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle

from swimmy import errors
from swimmy.reasons import code_in_words
from swimmy.spec import Pods

# Causes that need no look at the Pods: nothing that the cluster says could explain them better.
STRONG = frozenset({"exception", "import", "memory", "version", "world"})


def size_in_words(count: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def remote_exception(pickled: str) -> BaseException | None:
    """The exception that was raised in a rank; None where it could not be pickled, or does not load here."""
    if not pickled:
        return None
    try:
        found = cloudpickle.loads(base64.b64decode(pickled))
    except Exception:  # its module may be missing here; the text says what it was
        return None
    return found if isinstance(found, BaseException) else None


def explained(entry: Mapping[str, Any], pods: Pods, names: Mapping[int, str], log: Sequence[str]) -> errors.SwimmyError:
    """The error for the leader's ``cause``; ``names`` maps a Pod's index to its name."""
    cause, index, rank = entry["cause"], entry["index"], entry["rank"]
    pod = names.get(index, f"index {index}")
    where = f"rank {rank} on Pod {pod}" if rank is not None else f"Pod {pod}"
    known: dict[str, Any] = {"pod": pod, "rank": rank, "reason": cause}
    if cause == "exception":
        error = errors.RankFailed(
            f"{where} raised {entry['type']}: {entry['text']}\n\n{entry['traceback'].rstrip()}", **known
        )
        error.__cause__ = remote_exception(entry["pickled"])
        return error
    if cause == "import":
        return errors.ImportFailed(
            f"{where} cannot import {entry['module']!r}: {entry['text']}. Install it in image {pods.image!r}, or pass "
            "its module with modules=",
            **known, log=log,
        )  # fmt: skip
    if cause == "memory":
        return errors.OutOfMemory(
            f"{where} was killed for memory: the Pod's processes peaked at {size_in_words(entry['peak'])} of its limit of "
            f"{size_in_words(entry['limit'])}; raise memory=, or start fewer ranks per Pod", **known, log=log,
        )  # fmt: skip
    if cause == "version":
        return errors.VersionMismatch(
            f"code pickled here may not run on Pod {pod}: {entry['text']}. Use one image for all Pods, with the "
            "versions from here",
            **known,
        )
    if cause == "world":
        return errors.WorldMismatch(f"the MPI world is not the one asked for: {entry['text']}", **known, log=log)
    if cause == "silent":
        return errors.AgentSilent(
            f"the agent in Pod {pod} has not answered the leading agent for {entry['seconds']:.0f} s; can the Pods "
            "reach each other?",
            **known,
        )
    if cause == "launch":
        code = "" if entry["code"] is None else f" (the launcher ended {code_in_words(entry['code'])})"
        failed = errors.LaunchError(
            f"the ranks could not be started from Pod {pod}{code}: {entry['text'] or 'it has said nothing'}",
            **known,
            log=log,
        )
        failed.retryable = entry["code"] is not None and entry["code"] < 0  # the launcher was killed
        return failed
    return errors.RankFailed(f"{where} ended {code_in_words(entry['code'])} before it was done", **known, log=log)
