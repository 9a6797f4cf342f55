"""What can happen to an executor, besides the messages of rank 0 (`protocol`). Facts, in the past tense; the loop makes them."""

from dataclasses import dataclass

from smallpond_mpi.execution.executor.pipe import Reply
from smallpond_mpi.execution.model import TaskRuntimeId
from smallpond_mpi.execution.protocol import Heard, Reset, RunTask, Shutdown, StopTask, Welcome


@dataclass(frozen=True, slots=True)
class ChildReady:
    child: int


@dataclass(frozen=True, slots=True)
class ChildRefused:
    """The child could not set itself up (the traceback says why) and is leaving."""

    child: int
    traceback: str


@dataclass(frozen=True, slots=True)
class ChildReplied:
    child: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class WorkRecalled:
    """These attempts, the last ones sent to the child, were taken back before it began them."""

    child: int
    attempts: tuple[TaskRuntimeId, ...]


@dataclass(frozen=True, slots=True)
class ChildDied:
    """Everything that the child had said before is handled, its processes are gone. `status` as waitpid has it."""

    child: int
    status: int
    by_oom_killer: bool = False


@dataclass(frozen=True, slots=True)
class ServerDied:
    """The fork server is gone and all children with it; another one is being started."""

    reason: str


@dataclass(frozen=True, slots=True)
class MemorySampled:
    """What a child and its descendants have taken since the fork."""

    child: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The deadline that the core named has come."""


Event = (
    Welcome
    | RunTask
    | StopTask
    | Heard
    | Reset
    | Shutdown
    | ChildReady
    | ChildRefused
    | ChildReplied
    | WorkRecalled
    | ChildDied
    | ServerDied
    | MemorySampled
    | TimePassed
)
