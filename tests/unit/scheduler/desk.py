"""A core that a test talks to by hand."""

from smallpond_mpi.execution.model import Capacity, FailureKind, Rank, TaskId, TaskRuntimeId, TaskSpec
from smallpond_mpi.execution.scheduler.commands import Command, StartAttempt
from smallpond_mpi.execution.scheduler.core import Policy, SchedulerCore
from smallpond_mpi.execution.scheduler.events import AttemptEnded, Event, JobSubmitted, RankJoined, RankLost, TimePassed
from smallpond_mpi.testing import rank


class Desk:
    """Gives a core events and checks it after each."""

    def __init__(self, policy: Policy) -> None:
        self.core = SchedulerCore(epoch=0, policy=policy)
        self.now = 0.0
        self.starts: dict[TaskId, StartAttempt] = {}

    def __call__(self, event: Event) -> list[Command]:
        out = self.core.handle(event, self.now)
        self.core.check()
        self.starts.update((start.attempt.id, start) for start in out if isinstance(start, StartAttempt))
        return out

    def joins(self, number: int, capacity: Capacity | None = None) -> list[Command]:
        return self(RankJoined(Rank(number), f"node{number}", rank(1) if capacity is None else capacity))

    def lost(self, number: int) -> list[Command]:
        return self(RankLost(Rank(number), "its node is down"))

    def submits(self, *specs: TaskSpec, done: tuple[int, ...] = ()) -> list[Command]:
        return self(JobSubmitted(specs, tuple(TaskId(id) for id in done)))

    def ends(
        self, task: int, failure: FailureKind | None = None, secs: float = 1.0, peak_bytes: int = 0
    ) -> list[Command]:
        """The latest attempt of the task comes back."""
        start = self.starts[TaskId(task)]
        reason = "it was told to" if failure else ""
        return self(AttemptEnded(start.rank, start.attempt, failure, secs, peak_bytes, reason))

    def granted(self, task: int) -> int:
        """The memory of the task's latest attempt."""
        return self.starts[TaskId(task)].grant.memory_bytes

    def waits(self, secs: float) -> list[Command]:
        """Time passes; the core is called at each deadline that it names."""
        end = self.now + secs
        out: list[Command] = []
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            out += self(TimePassed())
        self.now = end
        return out

    def where(self, task: int) -> int:
        return self.starts[TaskId(task)].rank

    def attempt(self, task: int) -> TaskRuntimeId:
        return self.starts[TaskId(task)].attempt
