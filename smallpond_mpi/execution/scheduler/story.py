"""The error that the user sees when a task was given up: what is wrong first, then which task, which line of the script, where it ran, what it printed."""

import os
from collections.abc import Iterator, Sequence

from smallpond_mpi import common
from smallpond_mpi.common import BadInput, CorruptInput, DataRootUnusable, JobFailed, SmallpondError
from smallpond_mpi.execution.failures import exception_of
from smallpond_mpi.execution.model import Failure
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.source import DataSourceTask
from smallpond_mpi.logical.origin import asked_at, of_partitions, read_at, read_text

OUR_FRAME = f'  File "{os.path.dirname(os.path.abspath(common.__file__))}{os.sep}'


def error_of(task: Task, failures: Sequence[Failure], reason: str, log_path: str = "") -> SmallpondError:
    """What to raise on rank 0 for a task that was given up for `reason`, after these failures.

    `log_path` is the log of the rank of the last one. What came from the user's input or from the data root is raised as what it is;
    everything else is JobFailed.
    """
    if not failures:
        return JobFailed(f"{described(task)} was given up: {reason}")
    last = failures[-1]
    own = exception_of(last)
    kept = isinstance(own, (BadInput, DataRootUnusable))
    text, origin = _with_origin(task, own, last.message)
    lines = [text if kept else f"{last.type_name}: {text}".removesuffix(": "), _outcome(task, failures)]
    lines += [f"  {origin}"] if origin else []
    if not kept:
        if len(failures) == 1 and reason and last.message not in reason and reason not in last.message:
            lines.append(f"given up: {reason}")
        lines.append(last.traceback.rstrip())
    if last.log_tail.strip():
        lines.append(f"the end of what it printed ({log_path}):\n{_without_our_frames(last.log_tail)}")
    text = "\n".join(filter(None, lines))
    return type(own)(text) if kept else JobFailed(text)


def check_early(task: Task) -> None:
    """What can be known to be wrong with a task before anything of the plan runs; the error says which line of the script made it."""
    try:
        task.check_before_run()
    except BadInput as error:
        raise type(error)(f"{error}\n  found before anything was run, for {described(task)}") from None


def described(task: Task) -> str:
    """A task, its part of the data, its place in the script."""
    where = f" of {task.location}" if task.location else ""
    return f"{task.key} ({', '.join(map(str, task.partition_infos))}){where}"


def _outcome(task: Task, failures: Sequence[Failure]) -> str:
    last = failures[-1]
    on = f" on rank {last.rank} ({last.host})" if last.rank >= 0 else ""
    times = f"failed {len(failures)} times, at last" if len(failures) > 1 else "failed"
    return f"  {described(task)} {times}{on}"


def _with_origin(task: Task, error: SmallpondError, message: str) -> tuple[str, str]:
    """What is wrong, and a sentence on the other lines of the script that it comes from, if there are any."""
    if isinstance(error, BadInput):
        inputs = list(_viewed(task))
        sources = [(dep.location, dep.source) for dep in inputs if isinstance(dep, DataSourceTask)]
        lines = read_at(message, sources, isinstance(error, CorruptInput))
        if lines:
            return message, read_text(lines, task.location)
        text = of_partitions(message)
        if text != message:
            made = {dep.location: None for dep in inputs if dep.self_contained_output and dep.location}
            return text, f"they are made at {' and '.join(made)}" if made else ""
    return message, asked_at(task.location, message)


def _viewed(task: Task) -> Iterator[Task]:
    """The tasks whose files a task reads: its inputs, or what those refer to."""
    seen: set[int] = set()
    stack = [task]
    while stack:
        for dep in stack.pop()._deps.tasks:
            if dep.id not in seen:
                seen.add(dep.id)
                yield dep
                if not dep.self_contained_output:
                    stack.append(dep)


def _without_our_frames(log_tail: str) -> str:
    """What a task printed, less the frames of this package in the dump of a task that was ended: the user's own tell where it was."""
    return "".join(line for line in log_tail.splitlines(keepends=True) if not line.startswith(OUR_FRAME)).rstrip()
