"""Words that every part shares: units, limits, error classes and a few arithmetic helpers. Standard library only."""

import os
import sys
from collections.abc import Sequence
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

KB = 1024
MB = 1024 * KB
GB = 1024 * MB
TB = 1024 * GB

DEFAULT_MAX_RETRY_COUNT = 5
DEFAULT_MAX_FAIL_COUNT = 3
MAX_ROW_GROUP_SIZE = 10 * 1024 * 1024
MAX_ROW_GROUP_BYTES = 2 * GB
MAX_NUM_ROW_GROUPS = 256
MAX_PARQUET_FILE_BYTES = 8 * GB
DEFAULT_ROW_GROUP_SIZE = 122880
DEFAULT_ROW_GROUP_BYTES = DEFAULT_ROW_GROUP_SIZE * 4 * KB
DEFAULT_BATCH_SIZE = 122880
RAND_SEED_BYTE_LEN = 128
DATA_PARTITION_COLUMN_NAME = "__data_partition__"
PARQUET_METADATA_KEY_PREFIX = "SMALLPOND:"
INPUT_VIEW_PREFIX = "__input"
GENERATED_COLUMNS = ("filename", "file_row_number")


class SmallpondError(Exception):
    """Base of every error that this package raises on purpose."""


class InjectedFault(SmallpondError):
    """Raised by Task.inject_fault when a job asks for random faults."""


class OutOfMemory(SmallpondError):
    """An attempt took more memory than it was granted."""


class NonzeroExitCode(SmallpondError):
    """A process that a task started, or the child that ran it, ended with a code other than 0."""


class TaskFailed(SmallpondError):
    """What is left on rank 0 of an exception that user code raised in a child: type name, message, traceback text."""


class MissingExtra(SmallpondError, ImportError):
    """A feature needs an optional package that is not installed; the message says how to install it."""


class BadInput(SmallpondError):
    """Base of errors that come from what the user gave: trying again can't help, so no attempt is repeated."""


class InvalidArgument(BadInput, ValueError):
    """An argument is out of range or of the wrong type."""


class WrongType(InvalidArgument, TypeError):
    """An argument is of the wrong type, or there is none of that name."""


class InputNotFound(BadInput, FileNotFoundError):
    """An input file does not exist or a pattern matches nothing."""


class CorruptInput(BadInput, ValueError):
    """An input file can't be read as what it is said to be."""


class SchemaMismatch(BadInput, ValueError):
    """Schemas of files, batches or a declared schema don't fit each other."""


class ColumnNotFound(BadInput, LookupError):
    """A column is named that the data doesn't have."""


class WrongReturnType(BadInput, TypeError):
    """A function of the user's returned something else than what it has to."""


class InvalidQuery(BadInput, ValueError):
    """DuckDB refused an SQL statement; the message shows it."""


class UnknownColumn(InvalidQuery, ColumnNotFound):
    """SQL names a column that its input doesn't have; the message lists those that there are."""


class UnpairedPartitions(BadInput, ValueError, AssertionError):
    """Partitions of a node's inputs can't be paired. (Also an AssertionError: scripts written for smallpond catch that.)"""


class CannotPickle(BadInput, TypeError):
    """A task, or a function in it, can't be pickled."""


class ResourcesUnavailable(BadInput, ValueError):
    """A task asks for more than any rank has."""


class OutputExists(BadInput, FileExistsError):
    """The output path holds files that this job did not write."""


class OutputUnusable(BadInput, OSError):
    """No files can be made at the output path."""


class DataRootUnusable(SmallpondError, OSError):
    """The data root is missing, read-only or full."""

    def __str__(self) -> str:
        return str(self.args[-1]) if self.args else ""  # without the number of the error before it


class JobOwned(SmallpondError, RuntimeError):
    """Another live process runs a job with the same id."""


class JobFailed(SmallpondError, RuntimeError):
    """The job ended without its result; the message tells the task, its place in the script and what it died of."""


STOPPED_EXIT_CODE = 75
"""Exit code of a script whose job was asked to stop before it was done, or lost a node: EX_TEMPFAIL of sysexits.h, try again later."""


class JobStopped(SystemExit):
    """The job was asked to stop (SIGUSR1) and has done so in order: the script ends, and its job can be taken up where it was."""

    def __init__(self, reason: str) -> None:
        super().__init__(STOPPED_EXIT_CODE)
        self.reason = reason


def pytest_running() -> bool:
    """Whether this process runs under pytest."""
    return "PYTEST_CURRENT_TEST" in os.environ or "pytest" in sys.modules


def clamp_value(val: int, minval: int, maxval: int) -> int:
    """`val`, or the nearer end of [minval, maxval]."""
    return max(minval, min(val, maxval))


def clamp_row_group_size(val: int, minval: int = DEFAULT_ROW_GROUP_SIZE, maxval: int = MAX_ROW_GROUP_SIZE) -> int:
    """A number of rows a row group, held within the limits."""
    return clamp_value(val, minval, maxval)


def clamp_row_group_bytes(val: int, minval: int = DEFAULT_ROW_GROUP_BYTES, maxval: int = MAX_ROW_GROUP_BYTES) -> int:
    """A number of bytes a row group, held within the limits."""
    return clamp_value(val, minval, maxval)


def first_value_in_dict(d: dict[K, V]) -> V | None:
    """The first value, or None of an empty dict."""
    return next(iter(d.values()), None)


def get_nth_partition(items: Sequence[V], n: int, npartitions: int) -> Sequence[V]:
    """The n-th of `npartitions` contiguous parts, whose lengths differ by at most 1 (longer ones first).

    Raises:
        InvalidArgument: there is no n-th part.
    """
    _check_npartitions(npartitions)
    if not 0 <= n < npartitions:
        raise InvalidArgument(f"of {npartitions} partitions there is no number {n}: they are 0 to {npartitions - 1}")
    size, longer = divmod(len(items), npartitions)
    begin = n * size + min(n, longer)
    return items[begin : begin + size + (1 if n < longer else 0)]


def split_into_rows(items: Sequence[V], npartitions: int) -> list[Sequence[V]]:
    """`npartitions` contiguous parts whose lengths differ by at most 1."""
    _check_npartitions(npartitions)
    return [get_nth_partition(items, n, npartitions) for n in range(npartitions)]


def split_into_cols(items: Sequence[V], npartitions: int) -> list[list[V]]:
    """`npartitions` parts; item i goes to part i modulo npartitions."""
    _check_npartitions(npartitions)
    return [list(items[n::npartitions]) for n in range(npartitions)]


def _check_npartitions(npartitions: int) -> None:
    if npartitions < 1:
        raise InvalidArgument(f"the number of partitions must be at least 1, not {npartitions}")


def next_power_of_two(x: int) -> int:
    """The smallest power of two that is at least `x` (1 for x <= 1)."""
    return 1 if x <= 1 else 1 << (x - 1).bit_length()


def round_up(x: int, align_size: int = MB) -> int:
    """The smallest multiple of `align_size` that is at least `x`."""
    return -(-x // align_size) * align_size
