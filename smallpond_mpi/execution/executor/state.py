"""What the executor core keeps: attempts, children, and the CPUs and GPUs that they wait for and hold. Pure; moves are the core's."""

from collections import deque
from enum import Enum, unique

from smallpond_mpi.execution.executor.commands import Lane
from smallpond_mpi.execution.model import FailureKind, Grant
from smallpond_mpi.execution.protocol import RunTask

SHARE_EPSILON = 1e-6
OWN_LANE = -1
"""The resource of grants without CPUs and GPUs: one at a time."""

Fate = tuple[FailureKind, str, str]
"""Why an attempt ended about which its child can say nothing: kind, type name, message."""


@unique
class ChildState(Enum):
    """Where a child stands."""

    FORKING = "forking"  # from ForkChild until ChildReady
    IDLE = "idle"  # warm, holds nothing
    BUSY = "busy"  # the head of its line runs
    DUMPING = "dumping"  # out of time, writes its traceback; killed at the deadline
    DYING = "dying"  # killed or leaving; holds its lane until ChildDied


class Attempt:
    """An attempt that is here: `child` is None while it waits; `gone` marks one that queues still hold by mistake."""

    __slots__ = (
        "arrived_at",
        "child",
        "gone",
        "granted_at",
        "lane",
        "resources",
        "run",
        "sent_at",
        "single",
        "stopping",
    )

    def __init__(self, run: RunTask, lane: Lane, resources: tuple[tuple[int, float], ...], now: float) -> None:
        self.run = run
        self.lane = lane
        self.resources = resources
        self.single = run.fresh or bool(lane.gpus)
        self.arrived_at = now
        self.granted_at = now
        self.sent_at = now
        self.child: Child | None = None
        self.stopping = False
        self.gone = False


class Child:
    """A child process: the attempts that it was given, in order, and what it holds. `used` and `peak` are bytes since the head of its line began."""

    __slots__ = (
        "began_at",
        "deadline",
        "doomed",
        "fate",
        "held",
        "id",
        "lane",
        "line",
        "peak",
        "single",
        "state",
        "used",
    )

    def __init__(self, id: int, attempt: Attempt) -> None:
        self.id = id
        self.lane = attempt.lane
        self.single = attempt.single
        self.state = ChildState.FORKING
        self.line: deque[Attempt] = deque()
        self.held: tuple[tuple[int, float], ...] = ()
        self.began_at = 0.0
        self.deadline: float | None = None
        self.fate: Fate | None = None
        self.doomed: Attempt | None = None  # the attempt that the fate is meant for
        self.used = 0
        self.peak = 0

    @property
    def granted_bytes(self) -> int:
        """Memory of what it runs."""
        return self.line[0].run.grant.memory_bytes


class Resource:
    """A CPU, a GPU or the lane without CPUs. `holder` is the child that has it, if only one can."""

    __slots__ = ("free", "holder", "queue")

    def __init__(self) -> None:
        self.free = 1.0
        self.holder: Child | None = None
        self.queue: deque[Attempt] = deque()

    def head(self) -> Attempt | None:
        queue = self.queue
        while queue and queue[0].gone:
            queue.popleft()
        return queue[0] if queue else None


def gpu_key(index: int) -> int:
    return -2 - index


def resources_of(grant: Grant) -> tuple[tuple[int, float], ...]:
    if len(grant.cpus) == 1 and not grant.gpus:
        return ((grant.cpus[0], 1.0),)
    keys = [(cpu, 1.0) for cpu in grant.cpus] + [(gpu_key(index), quota) for index, quota in grant.gpus]
    return tuple(keys) or ((OWN_LANE, 1.0),)
