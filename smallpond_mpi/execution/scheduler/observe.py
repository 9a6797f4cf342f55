"""What the loop tells of a running job: progress while it runs, a summary at the end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from smallpond_mpi.execution.model import Capacity, Failure, Rank, TaskRuntimeId
from smallpond_mpi.execution.protocol import Ended
from smallpond_mpi.execution.task.base import Task


@dataclass(slots=True)
class Stage:
    """Counts of the tasks of one node."""

    name: str
    total: int = 0
    done: int = 0
    failed_attempts: int = 0


@dataclass(slots=True)
class Observer:
    """Keeps what is shown. Times are seconds of the loop's clock."""

    stages: dict[tuple[int, str], Stage] = field(default_factory=dict)

    @classmethod
    def for_terminal(cls, style: str, job_id: str, stream: TextIO) -> "Observer":
        """An observer that shows a job's progress on a stream."""
        return cls()

    def close(self, failure: str | None) -> None: ...

    def rank_joined(self, rank: Rank, host: str, capacity: Capacity) -> None: ...

    def submitted(self, run: Sequence[Task], taken_up: Sequence[Task], now: float) -> None: ...

    def accepted(self, task: Task, ended: Ended) -> None: ...

    def ran_here(self, task: Task, elapsed_secs: float) -> None: ...

    def attempt_failed(self, task: Task, attempt: TaskRuntimeId, failure: Failure) -> None: ...

    def tick(self, now: float) -> None: ...

    def finished(self, reason: str | None, now: float) -> None: ...
