"""Every error that ghee raises, in one tree.

    GheeError
    ├── PipelineError (also ValueError)      the description is wrong; found before anything starts
    │   ├── ResourceError                    cpus, memory, gpus, replicas that mean nothing
    │   └── PickleError                      a function that cannot travel; names the object inside it
    ├── SourceError                          what is to be read is missing, corrupt, or of another schema
    │   ├── SourceNotFoundError (also FileNotFoundError)
    │   ├── SourceCorruptError
    │   └── SchemaError
    ├── SinkError                            what is to be written cannot be written
    │   ├── SinkExistsError (also FileExistsError)
    │   └── TransactionError                 a broker gave up a transaction: the run begins again where it was committed
    ├── BatchError (also TypeError)          a function returned what is no batch
    ├── RankError                            a rank's process ended or could not start
    │   ├── RankKilledError                  a signal, named; out of memory is said where it is known
    │   └── RankStartError                   the process did not come up (a module is missing, MPI failed)
    ├── TransferError                        a process of the run has sent what no process of it may send: a bug of ours
    ├── LedgerError                          rows read, dropped and delivered do not balance: a bug of ours, never silent
    ├── MachineError                         this machine cannot run it (a /dev/shm that is too small, no mpiexec)
    └── CancelledError                       the run was cancelled (Ctrl-C, Run.cancel)

What a user's function raises keeps its own type: it is raised again by `ghee.run` with a note that names the user's
line, the stage, the rank and the batch, and with the remote traceback as its `__cause__`.
"""

from __future__ import annotations


class GheeError(Exception):
    """Base of every error of ghee."""


class PipelineError(GheeError, ValueError):
    """The pipeline's description is wrong; found before anything was started."""


class ResourceError(PipelineError):
    """A resource (cpus, memory, gpus, replicas, ...) that means nothing."""


class PickleError(PipelineError):
    """A function cannot be sent to the ranks; the message names the object inside it."""


class SourceError(GheeError):
    """What is to be read cannot be read."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """A path does not exist, or a pattern matches nothing."""


class SourceCorruptError(SourceError):
    """A file is not what its format says; the message names file and reason."""


class SchemaError(SourceError):
    """A file's schema differs from the source's; the message names file, column and both types."""


class SinkError(GheeError):
    """The output cannot be written."""


class SinkExistsError(SinkError, FileExistsError):
    """The output is there already and was not to be replaced."""


class TransactionError(SinkError):
    """A transaction was given up and nothing of it is seen: the run begins again at what was committed, a few times."""


class BatchError(GheeError, TypeError):
    """A function returned something that is no batch, or not in the way its stage allows."""


class RankError(GheeError):
    """A rank's process ended or failed outside the user's function."""


class RankKilledError(RankError):
    """A rank was killed by a signal; the message names rank, signal and likely causes."""


class RankStartError(RankError):
    """A rank's process did not come up."""


class TransferError(GheeError):
    """A process of the run has sent what none may send. This is a bug in ghee, or in who holds the run's key."""


class LedgerError(GheeError):
    """Rows do not balance. This is a bug in ghee: the run fails rather than lose rows in silence."""


class MachineError(GheeError):
    """This machine cannot run the pipeline; the message says what to change."""


class CheckpointError(GheeError):
    """A checkpoint cannot be made, or a run cannot go on from one."""


class CancelledError(GheeError):
    """The run was cancelled before its end."""


class RemoteTraceback(Exception):
    """The traceback of the rank, as text; the `__cause__` of an error raised again by the driver."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text
