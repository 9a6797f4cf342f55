"""What the scheduler core wants done. Imperatives; the loop carries them out in the given order and decides nothing."""

from dataclasses import dataclass

from smallpond_mpi.execution.model import Grant, Rank, TaskId, TaskRuntimeId


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Send the task to the rank. The grant may be one that an earlier attempt there still holds: then it waits behind that one (prefetch)."""

    rank: Rank
    attempt: TaskRuntimeId
    grant: Grant


@dataclass(frozen=True, slots=True)
class StopAttempt:
    rank: Rank
    attempt: TaskRuntimeId
    reason: str


@dataclass(frozen=True, slots=True)
class RunHere:
    """Run the task on rank 0 itself, now, and answer with LocalRunEnded."""

    id: TaskId


@dataclass(frozen=True, slots=True)
class AcceptAttempt:
    """This attempt's output is the task's output: journal it, hand its dataset on."""

    attempt: TaskRuntimeId


@dataclass(frozen=True, slots=True)
class DiscardAttempt:
    """This attempt's output is nobody's: remove it."""

    attempt: TaskRuntimeId


@dataclass(frozen=True, slots=True)
class StopRank:
    """This rank is given up (or not known): it must drop all it does and join anew."""

    rank: Rank
    reason: str


@dataclass(frozen=True, slots=True)
class FinishJob:
    """Everything submitted has come to an end. `failed` is the task that was given up first, None on success."""

    failed: TaskId | None
    reason: str


Command = StartAttempt | StopAttempt | RunHere | AcceptAttempt | DiscardAttempt | StopRank | FinishJob
