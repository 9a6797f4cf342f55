"""What the death of a child says of the attempt that it was running. Pure."""

import os
import signal

from smallpond_mpi.common import MB
from smallpond_mpi.execution.executor.state import Attempt, Child, ChildState, Fate
from smallpond_mpi.execution.model import FailureKind

CREDIT_SECS = 10.0
"""How long after the first of several deaths by the OOM killer the others are told at the latest: a large process takes a while to go."""


class OomKills:
    """Which deaths by SIGKILL are the OOM killer's. The kernel only counts whom it took, and may have taken several before the first death is told.

    Kills that no child's death is told for were those of other processes of the cgroup: they don't count for long.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._unexplained = 0
        self._until = 0.0

    def took_one(self, count: int, now: float) -> bool:
        """Whether a child that died by a SIGKILL was taken; `count` is the kernel's, read after its death."""
        if now > self._until:
            self._unexplained = 0
        if count > self._count:
            self._unexplained += count - self._count
            self._until = now + CREDIT_SECS
        self._count = count
        if not self._unexplained:
            return False
        self._unexplained -= 1
        return True


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
