"""Why a task is not running, or what it did, in sentences. It reads the core and changes nothing."""

from typing import TYPE_CHECKING

from smallpond_mpi.execution.model import TaskId
from smallpond_mpi.execution.scheduler.graph import TaskState

if TYPE_CHECKING:
    from smallpond_mpi.execution.scheduler.core import SchedulerCore


def explain(core: "SchedulerCore", task: TaskId) -> str:
    """One or more sentences about a task."""
    return f"task {TaskId(task)} is {TaskState(core.graph.state[task]).name}"
