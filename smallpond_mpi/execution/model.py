"""The nouns of the engine: ids, statuses, what a rank has, what an attempt is given, how it can fail.

Plain values only. The scheduler decides on these; it never sees a Task, a file or a message.
"""

from dataclasses import dataclass
from enum import Enum, unique
from typing import NewType

Rank = NewType("Rank", int)
"""An MPI process. Rank 0 schedules; it owns an executor too, reached over the local transport under the same number."""

SCHEDULER_RANK = Rank(0)


class TaskId(int):
    """Number of a task within its job, from 1; prints as six digits."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{int(self):06d}"

    def __repr__(self) -> str:
        return f"TaskId({int(self)})"

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)


@dataclass(frozen=True, slots=True, order=True)
class TaskRuntimeId:
    """One attempt: task, epoch of the scheduler that started it, and which attempt it is (from 0)."""

    id: TaskId
    epoch: int
    retry: int

    def __str__(self) -> str:
        return f"{self.id}.{self.epoch}.{self.retry}"

    def __reduce__(self) -> tuple[type["TaskRuntimeId"], tuple[TaskId, int, int]]:
        return TaskRuntimeId, (self.id, self.epoch, self.retry)


@unique
class WorkStatus(Enum):
    """Where a task stands. The numbers are part of the contract."""

    INCOMPLETE = 1
    SUCCEED = 2
    FAILED = 3
    CRASHED = 4
    EXEC_FAILED = 5


@dataclass(frozen=True, slots=True)
class GpuSlot:
    """A GPU that a rank may use: the opaque token for CUDA_VISIBLE_DEVICES, and the NUMA node it hangs on if known."""

    token: str
    numa_node: int | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the executor of a rank may hand out. `numa_nodes` is aligned with `cpus` (logical CPU numbers)."""

    cpus: tuple[int, ...]
    memory_bytes: int
    gpus: tuple[GpuSlot, ...] = ()
    numa_nodes: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task asks for. `memory_bytes` of None: its share by CPUs of the rank it runs on."""

    cpus: int = 1
    gpus: float = 0.0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What an attempt was given: exactly these CPUs, these shares of GPUs (index in Capacity.gpus, quota), this memory."""

    cpus: tuple[int, ...]
    memory_bytes: int
    gpus: tuple[tuple[int, float], ...] = ()
    numa_node: int | None = None

    def __reduce__(
        self,
    ) -> tuple[type["Grant"], tuple[object, ...]]:  # one a message: 3 times as fast as the dataclass's own
        return Grant, (self.cpus, self.memory_bytes, self.gpus, self.numa_node)


@unique
class SpecKind(Enum):
    """Who does the work of a task."""

    CHILD = "child"  # a child of whatever rank has room
    SCHEDULER_CHILD = "scheduler child"  # a child of rank 0's own executor
    HERE = "here"  # rank 0 itself: our own kinds that touch no file and no user code
    BARRIER = "barrier"  # nobody: done when its dependencies are


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """The scheduler's view of a task (or of a barrier).

    `stage` groups siblings whose durations are alike (the id of the logical node); a lower `priority` starts first.
    """

    id: TaskId
    deps: tuple[TaskId, ...] = ()
    resources: Resources = Resources()
    stage: int = 0
    kind: SpecKind = SpecKind.CHILD
    priority: int = 0
    speculate: bool = True


@unique
class FailureKind(Enum):
    """Why an attempt ended without success; the retry policy decides on this alone."""

    EXCEPTION = "exception"  # user code raised, or run() returned false
    BAD_INPUT = "bad input"  # trying again can't help
    OUT_OF_MEMORY = "out of memory"
    SIGNAL = "signal"  # the child was killed or crashed
    EXIT_CODE = "exit code"  # the child left by itself in mid-task
    TIMEOUT = "timeout"
    INJECTED = "injected fault"
    NOT_STARTED = "not started"  # the executor could not even start it (no child, unknown grant)
    LOST = "lost"  # its rank is gone: never counted against the task
    STOPPED = "stopped"  # ended on purpose: never counted


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as it crosses processes: data only, never a live exception of a user's class."""

    kind: FailureKind
    type_name: str
    message: str
    traceback: str = ""
    log_tail: str = ""
    host: str = ""
    rank: int = -1
