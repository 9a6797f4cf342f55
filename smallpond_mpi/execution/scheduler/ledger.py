"""Which attempts' outputs count: in the journal, in the planned tasks, and on disk. The core decides, here it is carried out.

take_in     what an earlier epoch accepted is taken up, what has to run is known
accept      an attempt's output is its task's: its state is merged, its record written
discard     it is nobody's: its directory goes; sweep does so for attempts that died after they left one
"""

import pickle
from collections.abc import Callable, Iterable, Sequence

from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.journal import Accepted, Checkpointed, Journal, Restored
from smallpond_mpi.execution.model import TaskId, TaskRuntimeId
from smallpond_mpi.execution.payload import MAX_INLINE_BYTES, merge_state
from smallpond_mpi.execution.scheduler.intake import Intake, Lineage, files_of_state_are_there, take_in
from smallpond_mpi.execution.scheduler.outputs import NamedOutputs
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.publish import remove_staging
from smallpond_mpi.faults import fault_point


class Ledger:
    """Of one job. `restored` is what its earlier epochs left; `clock` tells when the journal is due to be synced."""

    def __init__(self, ctx: RuntimeContext, journal: Journal, restored: Restored, clock: Callable[[], float]) -> None:
        self._ctx = ctx
        self._journal = journal
        self._restored = restored
        self._clock = clock
        self._lineage = Lineage()
        self._outputs = NamedOutputs(str(ctx.job_id))
        self._checkpoints: dict[TaskId, bytes] = {}
        # Where attempts wrote beside the user's own output paths: to be swept at the end.
        self.user_staging_roots: set[str] = set()
        self.sink_stagings: set[str] = set()

    def take_in(self, targets: Sequence[Task]) -> Intake:
        """What has to run for these targets."""
        intake = take_in(
            targets, self._restored, self._lineage, self._ctx.new_task_id, self._take_up, files_of_state_are_there
        )
        self._checkpoints.update(intake.checkpoints)
        return intake

    def expect(self, tasks: Iterable[Task]) -> None:
        """These tasks will be run: what died attempts of theirs left at their places goes."""
        self._outputs.expect(tasks)
        self.sweep()

    def flush(self) -> None:
        """What is noted is in the journal's file, and synced now and then."""
        self._journal.flush(self._clock())

    def sync(self) -> None:
        """What is noted outlives a crash of the machine."""
        self._journal.sync(self._clock())

    def checkpoint_of(self, task_id: TaskId) -> bytes | None:
        """How far attempts of a task came."""
        return self._checkpoints.get(task_id)

    def checkpoint(self, task: Task, state: bytes) -> None:
        """An attempt of a task came so far."""
        self._checkpoints[task.id] = state
        if len(state) <= MAX_INLINE_BYTES:
            self._journal.append(Checkpointed(self._lineage.fingerprint(task), self._lineage.inputs(task), state))

    def accept(self, task: Task, attempt: TaskRuntimeId, state: bytes) -> None:
        """An attempt's output is the task's. Written down before anything is built on it."""
        merge_state(task, state)
        self._lineage.accept(task, str(attempt))
        self._outputs.keep(task, str(attempt))
        self._journal.append(Accepted(self._lineage.fingerprint(task), self._lineage.inputs(task), attempt, state))
        self._checkpoints.pop(attempt.id, None)
        self._is_of(task, attempt)

    def _take_up(self, task: Task, record: Accepted) -> None:
        """Bring what an earlier epoch recorded into its task, and into this epoch's journal."""
        merge_state(task, record.state)
        self._outputs.keep(task, str(record.attempt))
        self._journal.append(record)
        self._is_of(task, record.attempt)

    def _is_of(self, task: Task, attempt: TaskRuntimeId) -> None:
        task.retry_count, task.sched_epoch = attempt.retry, attempt.epoch
        if task.staging_root is not None:
            self.user_staging_roots.add(task.staging_root)
        self.sink_stagings.update(getattr(task, "stagings_of_job", ()))
        self._remove_obsolete(task)

    def _remove_obsolete(self, task: Task) -> None:
        """What a sink published is no longer needed in staging, once the journal can't forget that it was."""
        obsolete: Sequence[str] = getattr(task, "obsolete_paths", ())
        if not obsolete:
            return
        self.sync()
        fault_point("publish.accepted")
        for path in obsolete:
            remove_staging(path, levels_above=2)
        fault_point("publish.cleaned")

    def ran_here(self, task: Task) -> None:
        """Rank 0 ran a task itself: nothing of it is written down, it is run again at a restart."""
        self._lineage.run_here(task)

    def discard(self, attempt: TaskRuntimeId, state: bytes) -> None:
        """Remove the output of an attempt that is nobody's."""
        files = [path for path, _ in pickle.loads(state).get("_output_files", ())]
        self._outputs.remove(files, str(attempt), self._ctx.staging_root)

    def sweep(self) -> None:
        """Remove named results that are nobody's. Those recorded earlier may be of tasks that the script has not come to yet."""
        self._outputs.sweep(map(str, self._restored.attempts))

    def remove_what_is_stale(self) -> None:
        """After success: named results of attempts that this run of the script had no use for (a node was changed, say)."""
        for records in (self._restored.accepted, self._restored.finished):
            for record in records.values():
                if not self._lineage.is_used(record):
                    self.discard(record.attempt, record.state)
        self._outputs.sweep()
