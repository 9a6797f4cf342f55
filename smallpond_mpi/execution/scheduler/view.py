"""What a running job looks like from outside: the read-only Scheduler that state observers are given.

Everything is looked up when it is asked for, in the scheduler's own thread: nothing here is a copy that could be stale, nothing changes the job.
"""

import time
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, unique
from typing import TYPE_CHECKING, Any

from smallpond_mpi.execution.model import SCHEDULER_RANK, Rank, TaskId
from smallpond_mpi.execution.scheduler.core import RankView
from smallpond_mpi.execution.scheduler.graph import TaskState

if TYPE_CHECKING:
    from smallpond_mpi.execution.scheduler.loop import SchedulerLoop
    from smallpond_mpi.execution.task.base import Task
    from smallpond_mpi.execution.task.plan import ExecutionPlan


@unique
class ExecutorState(Enum):
    """How an executor stands. The numbers are part of the contract."""

    GOOD = 1
    FAIL = 2  # lost, or silent for so long that its tasks were given to others
    RESOURCE_LOW = 3  # late, or paused because task after task crashed there: it gets no new tasks for now
    STOPPING = 4  # a task failed there (stop_executor_on_failure): it finishes what it runs
    STOPPED = 5


@dataclass(frozen=True, slots=True)
class ExecutorView:
    """An executor at one moment. `running` are the tasks that its children run, or that wait behind those."""

    id: str
    rank: Rank
    host: str
    state: ExecutorState
    running: "tuple[Task, ...]"

    @property
    def busy(self) -> bool:
        """Whether it was given any task that is not over."""
        return bool(self.running)


class Scheduler:
    """A job that runs, or has run. All properties are of the moment at which they are asked for."""

    StateCallback = typing.Callable[["Scheduler"], Any]

    class StateObserver:
        """Looks at a running job: at its start and end, when ranks come and go, and about ten times a second in between.

        Args:
            callback: called with the Scheduler; subclasses may override `update` instead. What it raises ends the job.
        """

        def __init__(self, callback: "Callable[[Scheduler], Any] | None" = None) -> None:
            self.callback = callback
            self.enabled = True

        def update(self, scheduler: "Scheduler") -> None:
            """Look at the job."""
            if self.callback is not None:
                self.callback(scheduler)

    def __init__(
        self,
        exec_plan: "ExecutionPlan",
        loop: "SchedulerLoop",
        observers: "Iterable[Scheduler.StateObserver]" = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.exec_plan = exec_plan
        self.ctx = exec_plan.ctx
        self._loop = loop
        self._observers = list(observers)
        self._clock = clock
        self._began_at = clock()
        self._ended_at: float | None = None

    def has_changed(self, has_ended: bool) -> None:
        """The loop's word that there is something new to see."""
        if has_ended and self._ended_at is None:
            self._ended_at = self._clock()
        self.notify_state_observers()

    def add_state_observer(self, observer: "Scheduler.StateObserver") -> None:
        """Have one more look from now on."""
        self._observers.append(observer)

    def notify_state_observers(self, force_notify: bool = False) -> None:
        """Have all observers look that are enabled; with `force_notify` the others too."""
        for observer in list(self._observers):
            if observer.enabled or force_notify:
                observer.update(self)

    # the whole

    @property
    def elapsed_time(self) -> float:
        """Seconds since the start, up to the end."""
        return (self._clock() if self._ended_at is None else self._ended_at) - self._began_at

    @property
    def success(self) -> bool:
        """Whether the job has ended with its result."""
        return self.exec_plan.successful

    @property
    def progress(self) -> float:
        """Share of the tasks that have succeeded, 0 to 1."""
        tasks = self.tasks.values()
        return sum(task.is_done for task in tasks) / len(tasks)

    # tasks

    @property
    def tasks(self) -> "dict[str, Task]":
        """All tasks by key."""
        return self.exec_plan.tasks

    def _in(self, *states: TaskState) -> "list[Task]":
        state_of = self._loop.core.state_of
        return [task for task in self.tasks.values() if not task.is_done and state_of(task.id) in states]

    @property
    def running_works(self) -> "list[Task]":
        """Tasks that have an attempt under way."""
        return self._in(TaskState.RUNNING)

    @property
    def num_running_works(self) -> int:
        """How many tasks have an attempt under way."""
        return len(self.running_works)

    @property
    def num_local_running_works(self) -> int:
        """How many of them rank 0 runs."""
        return sum(len(executor.running) for executor in self.local_executors)

    @property
    def num_pending_tasks(self) -> int:
        """How many tasks have not ended and don't run."""
        return len(self._in(TaskState.ABSENT, TaskState.WAITING, TaskState.READY))

    @property
    def pending_nontrivial_tasks(self) -> "list[Task]":
        """Those of them that do more than rearrange metadata on rank 0."""
        pending = self._in(TaskState.ABSENT, TaskState.WAITING, TaskState.READY)
        return [task for task in pending if not task.exec_on_scheduler]

    @property
    def num_pending_nontrivial_tasks(self) -> int:
        """How many these are."""
        return len(self.pending_nontrivial_tasks)

    @property
    def succeeded_task_ids(self) -> set[TaskId]:
        """Ids of tasks whose output is there."""
        return {task.id for task in self.tasks.values() if task.is_done}

    @property
    def abandoned_tasks(self) -> "list[Task]":
        """Tasks that were given up: the job fails with them."""
        return self._in(TaskState.GIVEN_UP)

    # executors

    def _executors(self, of: Callable[[ExecutorView], bool] = lambda view: True) -> list[ExecutorView]:
        by_id = {task.id: task for task in self.tasks.values()}
        views = [_executor_of(view, by_id) for view in self._loop.core.rank_views()]
        return [view for view in views if of(view)]

    def _of_state(self, *states: ExecutorState) -> list[ExecutorView]:
        return self._executors(lambda view: view.state in states)

    @property
    def local_executors(self) -> list[ExecutorView]:
        """Rank 0's own."""
        return self._executors(lambda view: view.rank == SCHEDULER_RANK)

    @property
    def remote_executors(self) -> list[ExecutorView]:
        """Those of all other ranks that ever joined."""
        return self._executors(lambda view: view.rank != SCHEDULER_RANK)

    @property
    def working_executors(self) -> list[ExecutorView]:
        """Those that have tasks."""
        return self._executors(lambda view: view.busy)

    @property
    def alive_executors(self) -> list[ExecutorView]:
        """Those that are not lost."""
        return self._executors(lambda view: view.state is not ExecutorState.FAIL)

    @property
    def good_executors(self) -> list[ExecutorView]:
        """Those that get new tasks."""
        return self._of_state(ExecutorState.GOOD)

    @property
    def failed_executors(self) -> list[ExecutorView]:
        """Those that are lost."""
        return self._of_state(ExecutorState.FAIL)

    @property
    def stopping_executors(self) -> list[ExecutorView]:
        """Those that finish what they run and get nothing more."""
        return self._of_state(ExecutorState.STOPPING)

    @property
    def stopped_executors(self) -> list[ExecutorView]:
        """Those that get nothing more and run nothing."""
        return self._of_state(ExecutorState.STOPPED)

    @property
    def low_resource_executors(self) -> list[ExecutorView]:
        """Those that get nothing for now: late, or paused after crashes."""
        return self._of_state(ExecutorState.RESOURCE_LOW)


def _executor_of(view: RankView, tasks: "dict[TaskId, Task]") -> ExecutorView:
    if view.is_gone:
        state = ExecutorState.FAIL
    elif view.is_stopped:
        state = ExecutorState.STOPPING if view.tasks else ExecutorState.STOPPED
    else:
        state = ExecutorState.GOOD if view.is_open else ExecutorState.RESOURCE_LOW
    running = tuple(tasks[task] for task in view.tasks if task in tasks)
    return ExecutorView(f"{view.host}.{view.number}", view.number, view.host, state, running)
