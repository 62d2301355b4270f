"""Every error of swimmy.

::

    SwimmyError
    ├── SpecError                   what was asked for is wrong; all problems at once (also a ValueError)
    ├── ClusterUnreachable          the API server does not answer
    ├── PermissionMissing           RBAC or an admission rule refused a request
    ├── QuotaExceeded               the namespace's quota has no room
    ├── NotPlaced                   Pods that did not start
    │   ├── Unschedulable           no machine of the cluster can take the Pod
    │   ├── ImagePullFailed         the image's name is bad, or it cannot be fetched
    │   ├── ContainerConfigError    a Secret, ConfigMap or volume is missing
    │   └── CommandMissing          the image has no such program
    ├── PodLost                     Pods that were taken away (retryable)
    │   ├── Evicted · Preempted · NodeLost · Deleted
    │   └── DeadlineExceeded        the run's own time limit (not retryable)
    ├── AgentError
    │   ├── AgentSilent             the Pod runs, its agent does not answer
    │   ├── AgentKilled             the agent's process was killed, and the Pod with it
    │   ├── VersionMismatch         Python, swimmy or cloudpickle differ between here and the image
    │   └── LeaseLost               the agents gave up because nobody renewed their lease
    ├── LaunchError                 mpiexec failed before the ranks ran
    │   └── WorldMismatch           the MPI world that came up is not the one asked for
    ├── RankFailed                  a rank raised, exited or was killed by a signal
    │   ├── ImportFailed            a library that the function needs is missing in the image
    │   └── OutOfMemory             a rank or the whole Pod went over its memory limit
    ├── RunGone                     the run no longer exists
    └── Cancelled                   somebody cancelled the run

An error's text is one sentence with what happened, where, and what to do; ``pod``, ``rank``, ``reason`` and ``retryable``
carry the same for programs, ``log`` the last lines of that rank or Pod.
"""

from __future__ import annotations

from collections.abc import Sequence


class SwimmyError(Exception):
    """What all errors of this package are."""

    retryable = False

    def __init__(
        self,
        message: str,
        *,
        pod: str | None = None,
        rank: int | None = None,
        reason: str | None = None,
        log: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.pod = pod
        self.rank = rank
        self.reason = reason
        self.log = tuple(log)

    def __str__(self) -> str:
        if not self.log:
            return self.message
        return self.message + "\n  last lines of its log:\n    " + "\n    ".join(self.log)


class SpecError(SwimmyError, ValueError):
    """What was asked for is wrong; raised before anything is created."""


class ClusterUnreachable(SwimmyError):
    """The API server does not answer, or is too busy to. ``retry_after``: seconds that it asks to wait."""

    retryable = True
    retry_after: float | None = None


class PermissionMissing(SwimmyError):
    """RBAC, Pod security or another admission rule refused."""


class QuotaExceeded(SwimmyError):
    """The namespace's quota has no room for the Pods."""


class NotPlaced(SwimmyError):
    """Pods did not start."""


class Unschedulable(NotPlaced):
    """No machine of the cluster can take the Pod as it was asked for."""


class ImagePullFailed(NotPlaced):
    """The image's name is bad, or the image cannot be fetched."""


class ContainerConfigError(NotPlaced):
    """A Secret, ConfigMap or volume that the Pod names is missing."""


class CommandMissing(NotPlaced):
    """The image has no such program."""


class PodLost(SwimmyError):
    """A Pod was taken away while it was needed; the same run may succeed when it is tried again."""

    retryable = True


class Evicted(PodLost):
    """The kubelet or the eviction API removed the Pod."""


class Preempted(PodLost):
    """The scheduler removed the Pod in favour of one with a higher priority."""


class NodeLost(PodLost):
    """The machine of the Pod no longer answers."""


class Deleted(PodLost):
    """Somebody deleted the Pod or its Job."""


class DeadlineExceeded(PodLost):
    """The run's own time limit has passed."""

    retryable = False


class AgentError(SwimmyError):
    """swimmy's process in the Pod is not as it must be."""


class AgentSilent(AgentError):
    """The Pod runs, its agent does not answer."""

    retryable = True


class AgentKilled(AgentError):
    """The agent was killed by a signal, not by memory; its Pod ended with it."""

    retryable = True


class VersionMismatch(AgentError):
    """Python, swimmy or cloudpickle differ between this process and the image, so that pickled code could break."""


class LeaseLost(AgentError):
    """The agents ended the run because nobody renewed its lease."""

    retryable = True


class LaunchError(SwimmyError):
    """The MPI launcher failed before the function was called."""


class WorldMismatch(LaunchError):
    """The MPI world that came up is not the one that was asked for."""


class RankFailed(SwimmyError):
    """A rank raised, exited early or was killed by a signal. ``__cause__`` is the exception that was raised there, if
    any.
    """


class ImportFailed(RankFailed):
    """A library that the function needs is missing in the image."""


class OutOfMemory(RankFailed):
    """A rank, or the whole Pod, went over its memory limit."""


class RunGone(SwimmyError):
    """The run no longer exists on the cluster."""


class Cancelled(SwimmyError):
    """The run was cancelled."""


def shortly(error: BaseException) -> str:
    """What another library's error says, in one line."""
    reason = getattr(error, "reason", None) or error
    return str(reason).splitlines()[0][:300] if str(reason) else type(error).__name__
