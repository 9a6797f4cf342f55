"""From planned tasks to what the scheduler core is told: which of them have to run at all, and their specs.

A job that is started again finds records of what earlier epochs accepted. A record counts if the task's fingerprint is the recorded one and
its inputs are the very outputs that it was computed from (`lineage`); and where somebody still needs the output, its files must be there.
Of a job that had succeeded, and died while it removed what only it needed, the records of what users were given count by the fingerprint alone.
"""

import hashlib
import os
import pickle
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field

from smallpond_mpi.execution.journal import Accepted, Restored
from smallpond_mpi.execution.model import Resources, SpecKind, TaskId, TaskSpec, WorkStatus
from smallpond_mpi.execution.scheduler.outputs import has_directory_of_its_own
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.deps import Dependencies
from smallpond_mpi.execution.task.fingerprint import Fingerprinter

MIN_EDGES_FOR_BARRIER = 64
"""A group of producers gets a barrier when producers x consumers would be more edges than this."""


@dataclass(slots=True)
class Intake:
    """What a submission comes down to."""

    tasks: list[Task]  # to be run, inputs first
    done: list[Task]  # taken up from an earlier epoch; their state is merged
    specs: list[TaskSpec]
    checkpoints: dict[TaskId, bytes] = field(default_factory=dict)


class Lineage:
    """Which outputs a task's output was computed from, as digests; asked again only for what has changed.

    The lineage of a task that a child ran is its accepted attempt; that of one which rank 0 ran itself follows from its inputs.
    """

    def __init__(self) -> None:
        self.fingerprints = Fingerprinter()
        self._of_task: dict[int, bytes] = {}
        self._accepted: set[bytes] = set()
        self._of_deps: dict[int, tuple[Dependencies, bytes]] = {}

    def fingerprint(self, task: Task) -> bytes:
        return self.fingerprints.of_task(task)

    def accept(self, task: Task, attempt: str) -> None:
        self._of_task[task.id] = attempt.encode()
        self._accepted.add(attempt.encode())

    def run_here(self, task: Task) -> None:
        # What is dealt out at random follows from the task's id, which another script may give to another task.
        drawn = str(task.id).encode() if getattr(task, "random_shuffle", False) else b""
        self._of_task[task.id] = b"here" + drawn + self.inputs(task) + self.fingerprint(task)

    def is_used(self, record: Accepted) -> bool:
        """Whether the recorded output is that of a task of this run of the script."""
        return str(record.attempt).encode() in self._accepted

    def inputs(self, task: Task) -> bytes:
        """Digest of the lineage of a task's inputs; shared inputs are digested once."""
        deps = task._deps
        if not deps.tasks:
            return b""
        known = self._of_deps.get(id(deps))
        if known is None:
            hasher = hashlib.blake2b(digest_size=16)
            for dep in deps.tasks:
                part = self._of_task.get(dep.id, b"?")
                hasher.update(len(part).to_bytes(4, "little") + part)
            known = deps, hasher.digest()
            self._of_deps[id(deps)] = known
        return known[1]

    def forget(self, deps_of: Iterable[Task]) -> None:
        """Digests of these tasks' inputs are to be taken anew."""
        for task in deps_of:
            self._of_deps.pop(id(task._deps), None)


def inputs_first(targets: Iterable[Task]) -> list[Task]:
    """Everything that the targets need, each after its inputs; tasks that are done end the search, what they were made from does not count."""
    order: list[Task] = []
    seen: set[int] = set()
    groups: set[int] = set()
    stack: list[tuple[Task, bool]] = [(task, False) for task in reversed(list(targets))]
    while stack:
        task, expanded = stack.pop()
        if expanded:
            order.append(task)
            continue
        if task.id in seen:
            continue
        seen.add(task.id)
        stack.append((task, True))
        if task.is_done:
            continue
        if id(task._deps) not in groups:
            groups.add(id(task._deps))
            stack.extend((dep, False) for dep in reversed(task._deps.tasks) if dep.id not in seen)
    return order


def take_in(
    targets: Sequence[Task],
    restored: Restored,
    lineage: Lineage,
    new_id: Callable[[], TaskId],
    take_up: Callable[[Task, Accepted], None],
    files_are_there: Callable[[bytes], bool],
) -> Intake:
    """Decide what has to run for the targets.

    `take_up` brings a record into its task; `files_are_there` looks for the files that a recorded state names.
    """
    order = inputs_first(targets)
    pending = [task for task in order if task.status is not WorkStatus.SUCCEED]
    records = _records_that_count(pending, restored, lineage)
    given = _records_of_what_was_given(pending, records, restored, lineage)
    needed, stale = _needed_and_stale(targets, pending, records | given, given.keys(), files_are_there)
    checkpoints = _checkpoints_that_count(pending, needed & stale, restored, lineage)
    # Lineages were taken as if every record counted: those of tasks that run again come anew when they are accepted.
    lineage.forget(pending)
    done: list[Task] = []
    run: list[Task] = []
    for task in pending:
        if task.id not in needed:
            continue  # if somebody needs it later it is looked at anew: nobody has looked for its files
        if task.id in stale or task.runs_here:
            run.append(task)
        else:
            done.append(task)
            take_up(task, given.get(task.id) or records[task.id])
    return Intake(run, done, _specs(run, new_id), checkpoints)


def _records_that_count(pending: list[Task], restored: Restored, lineage: Lineage) -> dict[int, Accepted]:
    records: dict[int, Accepted] = {}
    for task in pending:
        fingerprint = lineage.fingerprint(task)
        if task.runs_here:
            lineage.run_here(task)
            continue
        record = restored.accepted.get(fingerprint)
        if record is not None and record.inputs == lineage.inputs(task):
            records[task.id] = record
            lineage.accept(task, str(record.attempt))
    return records


def _records_of_what_was_given(
    pending: list[Task], records: dict[int, Accepted], restored: Restored, lineage: Lineage
) -> dict[int, Accepted]:
    """Of a job that had succeeded. What it was computed from may be gone, or made anew to be looked at: to write it again would add to it."""
    if not restored.finished:
        return {}
    given: dict[int, Accepted] = {}
    for task in pending:
        record = restored.finished.get(lineage.fingerprint(task))
        if record is not None and task.id not in records and _is_given(task, record):
            given[task.id] = record
            lineage.accept(task, str(record.attempt))
    return given


def _is_given(task: Task, record: Accepted) -> bool:
    """Whether the output lies where the user said; that of a task without files of its own refers to those of others."""
    return getattr(task, "publishes", False) or (
        has_directory_of_its_own(task) and bool(pickle.loads(record.state).get("_output_files"))
    )


def _checkpoints_that_count(
    pending: list[Task], stale: set[int], restored: Restored, lineage: Lineage
) -> dict[TaskId, bytes]:
    """How far attempts of earlier epochs got, for tasks whose inputs are still the same outputs."""
    if not restored.checkpoints:
        return {}
    found: dict[TaskId, bytes] = {}
    for task in pending:
        checkpoint = restored.checkpoints.get(lineage.fingerprint(task)) if task.id in stale else None
        if (
            checkpoint is None
            or checkpoint.inputs != lineage.inputs(task)
            or any(dep.id in stale for dep in task._deps.tasks)
        ):
            continue
        found[task.id] = checkpoint.state
    return found


def _needed_and_stale(
    targets: Sequence[Task],
    pending: list[Task],
    records: dict[int, Accepted],
    given: Set[int],
    files_are_there: Callable[[bytes], bool],
) -> tuple[set[int], set[int]]:
    """Ids of the tasks whose output is needed, and of those that can't be taken up: no record or no files, and all below them, but for `given`."""
    if not records:
        pending_ids: set[int] = {task.id for task in pending}
        return pending_ids, pending_ids
    lost: set[int] = set()  # recorded, but the files are gone
    checked: set[int] = set()
    while True:
        stale = _stale_tasks(pending, records, given, lost)
        needed = _needed_tasks(targets, pending, stale)
        missing = {
            task_id
            for task_id in needed - stale - checked
            if task_id in records and not files_are_there(records[task_id].state)
        }
        checked |= needed - stale
        if not missing:
            return needed, stale
        lost |= missing


def _stale_tasks(pending: list[Task], records: dict[int, Accepted], given: Set[int], lost: set[int]) -> set[int]:
    """What can't be taken up: there is no record, the files are gone, or an input can't be and it isn't `given`."""
    stale: set[int] = set()
    of_group: dict[int, bool] = {}  # consumers of the same inputs share the answer
    for task in pending:  # inputs first: staleness goes down in one pass
        group = id(task._deps)
        if group not in of_group:
            of_group[group] = any(dep.id in stale for dep in task._deps.tasks)
        is_below = of_group[group] and task.id not in given
        if is_below or task.id in lost or (task.id not in records and not task.runs_here):
            stale.add(task.id)
    return stale


def _needed_tasks(targets: Sequence[Task], pending: list[Task], stale: set[int]) -> set[int]:
    """The targets, what leaves a result where the user said, and the inputs of what has to run for them."""
    needed: set[int] = set()
    groups: set[int] = set()
    pending_ids = {task.id for task in pending}
    stack = [task for task in targets if task.id in pending_ids]
    stack += [task for task in pending if has_directory_of_its_own(task)]
    while stack:
        task = stack.pop()
        if task.id in needed:
            continue
        needed.add(task.id)
        # What rank 0 runs itself has no record: it runs again if somebody needs it, and so it needs its inputs.
        if (task.id in stale or task.runs_here) and id(task._deps) not in groups:
            groups.add(id(task._deps))
            stack.extend(dep for dep in task._deps.tasks if dep.id in pending_ids)
    return needed


def files_of_state_are_there(state: bytes) -> bool:
    """Whether every file that a recorded state names is there with its recorded size."""
    files: list[tuple[str, int]] = pickle.loads(state).get("_output_files", [])
    try:
        return all(os.stat(path).st_size == size for path, size in files)
    except OSError:
        return False


def _specs(tasks: list[Task], new_id: Callable[[], TaskId]) -> list[TaskSpec]:
    """Specs of tasks that have to run, with a barrier between many producers and many consumers."""
    run = {task.id for task in tasks}
    specs: list[TaskSpec] = []
    dep_ids: dict[int, tuple[TaskId, ...]] = {}
    resources: dict[tuple[int, float, int | None], Resources] = {}
    for task in tasks:
        deps = task._deps
        ids = dep_ids.get(id(deps))
        if ids is None:
            ids = tuple(dict.fromkeys(dep.id for dep in deps.tasks if dep.id in run))
            if len(ids) > 1 and len(ids) * len(deps.dependants) > MIN_EDGES_FOR_BARRIER:
                barrier = new_id()
                specs.append(TaskSpec(barrier, ids, stage=task.node_id, kind=SpecKind.BARRIER))
                ids = (barrier,)
            dep_ids[id(deps)] = ids
        asked = (task.cpu_limit, task.gpu_limit, task.memory_limit)
        specs.append(
            TaskSpec(
                task.id,
                ids,
                resources.setdefault(asked, Resources(*asked)),
                task.node_id,
                _kind_of(task),
                0,
                task.allow_speculative_exec,
            )
        )
    return specs


def _kind_of(task: Task) -> SpecKind:
    if task.runs_here:
        return SpecKind.HERE
    return SpecKind.SCHEDULER_CHILD if task.exec_on_scheduler else SpecKind.CHILD
