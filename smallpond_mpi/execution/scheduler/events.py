"""What can happen to the scheduler. Facts, in the past tense; the loop makes them, only the core reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

from smallpond_mpi.execution.model import Capacity, FailureKind, Rank, TaskId, TaskRuntimeId, TaskSpec


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """More tasks. Dependencies must have been submitted before or be in `specs`; those done in an earlier epoch are in `done`."""

    specs: Sequence[TaskSpec]
    done: Sequence[TaskId] = ()


@dataclass(frozen=True, slots=True)
class RankJoined:
    rank: Rank
    host: str
    capacity: Capacity


@dataclass(frozen=True, slots=True)
class RankReported:
    """A sign of life."""

    rank: Rank


@dataclass(frozen=True, slots=True)
class RankLost:
    rank: Rank
    reason: str
    has_left: bool = False  # in order: what ran there is not suspected of its death


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt came back from a rank; `failure` is None on success."""

    rank: Rank
    attempt: TaskRuntimeId
    failure: FailureKind | None
    elapsed_secs: float
    peak_memory_bytes: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """A running attempt told how far it is: it makes progress."""

    attempt: TaskRuntimeId


@dataclass(frozen=True, slots=True)
class LocalRunEnded:
    """A RunHere is over. The loop handles it at once, so nothing can come in between."""

    id: TaskId
    failure: FailureKind | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The deadline that the core named has come."""


@dataclass(frozen=True, slots=True)
class PollingResumed:
    """Nobody listened for a while (rank 0 ran the user's script) and everything that had come is now handled: silence starts anew."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Start nothing new; at `deadline` (same clock as handle's now; None: at once) stop what still runs."""

    reason: str
    deadline: float | None = None


Event = (
    JobSubmitted
    | RankJoined
    | RankReported
    | RankLost
    | AttemptEnded
    | Checkpointed
    | LocalRunEnded
    | TimePassed
    | PollingResumed
    | StopRequested
)
