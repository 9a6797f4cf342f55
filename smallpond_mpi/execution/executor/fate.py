"""What the death of a child says of the attempt that it was running. Pure."""

import os
import signal

from smallpond_mpi.common import MB
from smallpond_mpi.execution.executor.state import Attempt, Child, ChildState, Fate
from smallpond_mpi.execution.model import FailureKind


def fate_of_dead(child: Child, attempt: Attempt, status: int, by_oom_killer: bool) -> Fate:
    """Why the attempt at the head of a dead child's line ended. `status` is that of waitpid."""
    if child.doomed is attempt and child.fate is not None:
        return child.fate
    if child.state is ChildState.FORKING:
        message = f"its child process could not be started ({describe_status(status)})"
        return FailureKind.NOT_STARTED, "NotStarted", message
    if child.state is ChildState.DYING:
        message = "its child process was killed because of the attempt before it, just when this one began"
        return FailureKind.LOST, "Lost", message
    if os.WIFSIGNALED(status):
        if by_oom_killer and os.WTERMSIG(status) == signal.SIGKILL:
            message = f"the kernel's OOM killer took it; it had {attempt.run.grant.memory_bytes // MB} MiB granted"
            return FailureKind.OUT_OF_MEMORY, "OutOfMemory", message
        return FailureKind.SIGNAL, "NonzeroExitCode", f"its child process was {describe_status(status)}"
    message = f"its child process {describe_status(status)} in the middle of the task"
    return FailureKind.EXIT_CODE, "NonzeroExitCode", message


def describe_status(status: int) -> str:
    """A waitpid status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"left with exit code {os.waitstatus_to_exitcode(status)}"
