"""The errors of cumin. The type says whose fault it is and what to do.

CuminError
├── RecipeError                  the caller's: what was asked for cannot be built; nothing was run
│   ├── QueryError               the SQL does not parse, is not one SELECT, or does not bind; names the position
│   ├── ParameterError           a parameter is missing, unused or of a type that has no literal
│   ├── InputError               a table is not declared, not found, unreadable, or its token would be too weak
│   ├── DeterminismError         the result may vary from run to run; names each position and the remedy
│   └── ConfigError              a dataset file, a store address or an option is wrong
├── KeyNotUniqueError            a key that was declared unique is not: the query's order is not total
├── InputMovedError              an input changed while the query ran: nothing was published; build again
├── NotPartitionLocalError       the declared look-back is too short: a partition depends on more than it says
├── NonDeterministicBuildError   one build id, two contents: both are kept, the id is in quarantine
├── EngineError                  the engine failed while running the query
└── StoreError                   the store cannot be read or written
    ├── NotFoundError            no such build, name, label or content
    ├── CorruptError             a manifest or a data file is not what its hash says
    └── StoreFormatError         the store was written by a newer cumin
"""

from collections.abc import Iterable


class CuminError(Exception):
    """The root of every error that cumin raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


class RecipeError(CuminError):
    """What was asked for cannot be built as it stands; nothing was run. Lists all problems at once."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class QueryError(RecipeError):
    """The SQL does not parse, is not one SELECT, or does not bind."""


class ParameterError(RecipeError):
    """A parameter is missing, unused, or has no literal."""


class InputError(RecipeError):
    """A table is not declared, not found, unreadable, or can only be named by a token that is too weak."""


class DeterminismError(RecipeError):
    """The result of the query may vary from run to run."""

    exit_code = 3


class ConfigError(RecipeError):
    """A dataset file, a store address or an option is wrong."""


class KeyNotUniqueError(CuminError):
    """Rows that were declared unique by their key are not."""

    exit_code = 3


class InputMovedError(CuminError):
    """An input changed while the query ran. Nothing was published; build again."""

    exit_code = 4


class NotPartitionLocalError(CuminError):
    """A partition depends on more input partitions than its look-back names."""

    exit_code = 3


class NonDeterministicBuildError(CuminError):
    """One build id has two contents. Both are kept."""

    exit_code = 5


class EngineError(CuminError):
    """The engine failed while running the query."""


class StoreError(CuminError):
    """The store cannot be read or written."""

    exit_code = 6


class NotFoundError(StoreError):
    """No such build, name, label or content in this store."""


class CorruptError(StoreError):
    """A manifest or a data file is not what its hash says."""

    exit_code = 7


class StoreFormatError(StoreError):
    """The store was written by a newer cumin."""
