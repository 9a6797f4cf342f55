"""Counts what happens to a job, for those who watch: progress while it runs, a summary at the end, the scheduler's log.

    loop --submitted, accepted, attempt_failed, rank_lost, ...--> Observer --Progress--> View      while it runs, when one is due
                                                                     |-----Summary--> the stream  once, at the end
                                                                     '-----lines----> EventLog

What is kept grows with the number of nodes and ranks, never with that of tasks. `accepted` is called 10,000 times a second and more: it adds
numbers and nothing else; everything derived is derived when somebody looks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import heappush, heapreplace
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Final, Protocol, TextIO

from smallpond_mpi.common import GB
from smallpond_mpi.execution.model import Capacity, Failure, FailureKind, Rank, TaskRuntimeId
from smallpond_mpi.execution.protocol import Ended
from smallpond_mpi.execution.scheduler.core import StageCounts
from smallpond_mpi.execution.scheduler.eventlog import EventLog
from smallpond_mpi.execution.scheduler.progress import (
    Progress,
    Remaining,
    StageProgress,
    View,
    secs_left,
    secs_left_of,
    view_for,
)
from smallpond_mpi.execution.scheduler.summary import (
    RankLoss,
    SlowTask,
    Summary,
    bytes_text,
    count,
    lines_of,
    secs_text,
)
from smallpond_mpi.execution.scheduler.tally import NEVER, Stage, partitions_of
from smallpond_mpi.execution.task.base import Task

MAX_SLOWEST: Final = 10
LOG_SECS: Final = 5.0
LISTENER_SECS: Final = 0.1


class CoreCounts(Protocol):
    """What the scheduler's core knows better than whoever hears of ends alone."""

    @property
    def n_retries(self) -> int: ...

    @property
    def n_twins(self) -> int: ...

    def stage_counts(self) -> Mapping[int, StageCounts]: ...


class Observer:
    """Keeps what is shown. `now` is always of the loop's clock, in seconds.

    Args:
        view: shows progress; None: nobody looks. stream: gets the summary; None: nobody. log: gets what happens to ranks and attempts.
    """

    def __init__(
        self, job_id: str = "", *, view: View | None = None, stream: TextIO | None = None, log: EventLog | None = None
    ) -> None:
        self._job_id = job_id
        self._view = view
        self._stream = stream
        self._log = log
        self._core: CoreCounts | None = None
        self._stages: dict[int, Stage] = {}
        self._ranks: dict[Rank, tuple[str, int]] = {}  # that are here: host and CPUs
        self._cpus = 0
        self._most = (0, 0)  # ranks and CPUs that were here at once
        self._ranks_lost: list[RankLoss] = []
        self._failures: dict[FailureKind, int] = {}
        self._failed_secs = self._here_secs = self._wall_secs = 0.0
        self._bytes_published = 0
        self._slowest: list[tuple[float, int, SlowTask]] = []  # a heap
        self._slow_secs = -1.0  # what a task must have taken to be one of the slowest
        self._n_noted = 0
        self._now = 0.0
        self._began_at: float | None = None  # the current run
        self._listener: Callable[[bool], None] | None = None
        self._due = self._view_due = self._log_due = self._listener_due = NEVER
        self._is_closed = False

    @classmethod
    def for_terminal(
        cls,
        style: str,
        job_id: str,
        stream: TextIO,
        env: Mapping[str, str],
        log_path: str | None = None,
        file_level: int = DEBUG,
    ) -> "Observer":
        """An observer that shows a job's progress and its summary on a stream, in a style of Config.progress."""
        return cls(
            job_id,
            view=view_for(style, stream, env),
            stream=None if style == "none" else stream,
            log=EventLog(log_path, file_level) if log_path else None,
        )

    def watch(self, core: CoreCounts) -> None:
        """Ask this core what is running."""
        self._core = core

    def notify(self, listener: Callable[[bool], None]) -> None:
        """Call this whenever something has changed, not too often, with whether the run has ended."""
        self._listener = listener

    def _call_soon(self) -> None:
        if self._listener is not None and self._began_at is not None:
            self._listener_due = self._due = self._now

    # what happens

    def rank_joined(self, rank: Rank, host: str, capacity: Capacity) -> None:
        self.rank_lost(rank, "it joined anew")
        self._ranks[rank] = host, len(capacity.cpus)
        self._cpus += len(capacity.cpus)
        self._most = max(self._most, (len(self._ranks), self._cpus))
        gpus = f", {count(len(capacity.gpus), 'GPU')}" if capacity.gpus else ""
        memory = f"{capacity.memory_bytes / GB:.1f} GB"
        self._say(f"rank {rank} joined: {host}, {count(len(capacity.cpus), 'CPU')}{gpus}, {memory}")
        self._call_soon()

    def rank_lost(self, rank: Rank, reason: str) -> None:
        """It is gone, or was given up; once for each time that it had joined."""
        known = self._ranks.pop(rank, None)
        if known is None:
            return
        self._cpus -= known[1]
        self._ranks_lost.append(RankLoss(rank, known[0], reason))
        self._say(f"rank {rank} lost: {known[0]}: {reason}", WARNING)
        self._call_soon()

    def submitted(self, run: Sequence[Task], taken_up: Sequence[Task], now: float) -> None:
        """A run begins, if there is anything to run; what is taken up was done in an earlier epoch."""
        self._now = now
        for task in taken_up:
            if not task.runs_here:
                stage = self._stage_of(task, False)
                stage.total += 1
                stage.done += 1
                stage.taken_up += 1
        for task in run:
            is_here = task.runs_here
            stage = self._stage_of(task, is_here)
            if not is_here:
                stage.total += 1
        self._say(f"{count(len(run), 'task')} submitted, {len(taken_up):,} taken up from an earlier run")
        if run:
            self._began_at = now
            self._view_due = self._view.begin(now) if self._view is not None else NEVER
            self._log_due = now + LOG_SECS if self._log is not None else NEVER
            self._listener_due = now if self._listener is not None else NEVER
            self._due = min(self._view_due, self._log_due, self._listener_due)
        else:
            self._end_run()

    def _end_run(self) -> None:
        self._began_at = None
        for stage in self._stages.values():
            stage.end_run()

    def _stage_of(self, task: Task, is_here: bool) -> Stage:
        stage = self._stages.get(task.node_id)
        if stage is None:
            stage = self._stages[task.node_id] = Stage(task)
        elif not is_here and stage.of is not type(task):
            stage.describe(task)
        return stage

    def accepted(self, task: Task, ended: Ended) -> None:
        stage = self._stages[task.node_id]
        stage.done += 1
        stage.queue_secs += ended.queued_secs
        stage.start_secs += ended.start_secs
        elapsed_secs = ended.elapsed_secs
        stage.exec_secs += elapsed_secs
        now = self._now
        began_at = now - elapsed_secs
        if began_at < stage.began_at:
            stage.began_at = began_at
        stage.ended_at = now
        attrs = task.__dict__
        metrics = attrs.get("_perf_metrics")
        if metrics:
            stage.add_metrics(metrics)
        files = attrs.get("_output_files")
        if files:
            self._add_files(stage, task, files)
        if elapsed_secs > self._slow_secs:
            self._note_slow(task, ended)

    def _add_files(self, stage: Stage, task: Task, files: Iterable[tuple[str, int]]) -> None:
        size = 0
        for _, file_bytes in files:
            size += file_bytes
        if not stage.is_sink:
            stage.bytes_written = size + (stage.bytes_written or 0)
        elif getattr(task, "publishes", False):  # the others only gather, most of them by links
            self._bytes_published += size

    def _note_slow(self, task: Task, ended: Ended) -> None:
        alone = Stage(task)
        alone.queue_secs, alone.start_secs, alone.exec_secs = ended.queued_secs, ended.start_secs, ended.elapsed_secs
        alone.add_metrics(task.perf_metrics)
        slow = SlowTask(
            task.key, partitions_of(task), task.location, task.exec_id or "", ended.elapsed_secs, alone.time
        )
        self._n_noted += 1
        entry = (ended.elapsed_secs, self._n_noted, slow)
        if len(self._slowest) < MAX_SLOWEST:
            heappush(self._slowest, entry)
        else:
            heapreplace(self._slowest, entry)
        if len(self._slowest) == MAX_SLOWEST:
            self._slow_secs = self._slowest[0][0]

    def ran_here(self, task: Task, elapsed_secs: float) -> None:
        self._stages[task.node_id].here += 1
        self._here_secs += elapsed_secs

    def attempt_failed(self, task: Task, attempt: TaskRuntimeId, failure: Failure, elapsed_secs: float = 0.0) -> None:
        """It ended without success. What was stopped on purpose is no failure."""
        if failure.kind is FailureKind.STOPPED:
            return
        self._stages[task.node_id].failed_attempts += 1
        self._failures[failure.kind] = self._failures.get(failure.kind, 0) + 1
        self._failed_secs += elapsed_secs
        if self._log is not None:
            where = f" on rank {failure.rank} ({failure.host})" if failure.rank >= 0 else ""
            self._say(
                f"attempt {attempt} of {task.key} {partitions_of(task)}{where} failed after {secs_text(elapsed_secs)}: "
                f"{failure.kind.value}: {failure.type_name}: {failure.message}",
                WARNING,
            )

    def tick(self, now: float) -> None:
        """The loop has made a turn."""
        self._now = now
        if now >= self._due:
            self._on_due(now)

    def finished(self, reason: str | None, now: float) -> None:
        """The run is over; the script goes on. `reason` is empty on success, None if the run was broken off."""
        self._now = now
        self._due = NEVER
        if self._began_at is None:
            return
        if self._listener is not None:
            self._listener(True)
        self._wall_secs += now - self._began_at
        self._say(f"{self._counts_text()}; the run {'was broken off' if reason is None else reason or 'succeeded'}")
        if self._log is not None:
            self._log.flush()
        self._end_run()
        if self._view is not None:
            with self._as_long_as_somebody_reads():
                self._view.end(now)

    def close(self, failure: str | None) -> None:
        """The session ends: show the summary, once."""
        if self._is_closed:
            return
        self._is_closed = True
        self.finished(failure, self._now)
        summary = self.summary(failure)
        if self._log is not None:
            self._say(f"the job ends: {failure}" if failure is not None else "the job ends", ERROR if failure else INFO)
            if not summary.is_empty:
                for line in lines_of(summary):
                    self._say(line)
            self._log.flush()
        if self._stream is not None and not summary.is_empty:
            with self._as_long_as_somebody_reads():
                self._stream.write("".join(f"{line}\n" for line in lines_of(summary)))
                self._stream.flush()

    # what is shown

    def _on_due(self, now: float) -> None:
        if now >= self._view_due and self._view is not None:
            with self._as_long_as_somebody_reads():
                self._view_due = self._view.show(self.progress(now), now)
        if now >= self._log_due and self._log is not None:
            self._say(self._counts_text(), DEBUG)
            self._log.flush()
            self._log_due = now + LOG_SECS
        if now >= self._listener_due and self._listener is not None:
            self._listener(False)
            self._listener_due = now + LISTENER_SECS
        self._due = min(self._view_due, self._log_due, self._listener_due)

    @contextmanager
    def _as_long_as_somebody_reads(self) -> Iterator[None]:
        """A stream that was closed, or whose reader has gone, ends what is shown: the job goes on."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not (self._stream is not None and self._stream.closed):
                raise
            self._say(f"nothing more is shown: {error}")
            self._view = self._stream = None
            self._view_due = NEVER

    def progress(self, now: float) -> Progress:
        """Where the current run stands; between runs that is nowhere."""
        counts = self._core.stage_counts() if self._core is not None and self._began_at is not None else {}
        cpus = max(1, self._cpus)
        shown: list[StageProgress] = []
        left: list[Remaining] = []
        for stage in self._stages.values():
            if stage.total == stage.before:
                continue
            known = counts.get(stage.node_id)
            running = 0 if known is None else known.running
            remaining = stage.remaining(running)
            left.append(remaining)
            shown.append(
                StageProgress(
                    stage.kind,
                    stage.location,
                    stage.total - stage.before,
                    stage.done - stage.before,
                    running,
                    stage.failed_attempts,
                    stage.rows_out,
                    stage.bytes_written,
                    secs_left_of(remaining, cpus),
                )
            )
        elapsed_secs = now - self._began_at if self._began_at is not None else 0.0
        return Progress(elapsed_secs, tuple(shown), secs_left(left, cpus))

    def summary(self, failure: str | None = None) -> Summary:
        """What was done so far, as plain data."""
        stages = tuple(stage.summary() for stage in self._stages.values())
        running_secs = self._now - self._began_at if self._began_at is not None else 0.0
        return Summary(
            job_id=self._job_id,
            failure=failure,
            wall_secs=self._wall_secs + running_secs,
            ranks=self._most[0],
            cpus=self._most[1],
            stages=stages,
            here_secs=self._here_secs,
            bytes_shuffled=sum(stage.bytes_written or 0 for stage in self._stages.values() if stage.is_shuffle),
            bytes_published=self._bytes_published,
            slowest=tuple(slow for _, _, slow in sorted(self._slowest, key=lambda entry: (-entry[0], entry[1]))),
            failures=dict(self._failures),
            failed_secs=self._failed_secs,
            requeued=0 if self._core is None else self._core.n_retries,
            twins=0 if self._core is None else self._core.n_twins,
            ranks_lost=tuple(self._ranks_lost),
        )

    def _counts_text(self) -> str:
        done = sum(stage.done for stage in self._stages.values())
        total = sum(stage.total for stage in self._stages.values())
        written = sum(stage.bytes_written or 0 for stage in self._stages.values())
        failed = sum(self._failures.values())
        return (
            f"{done:,} of {count(total, 'task')} done, {bytes_text(written)} written, {count(failed, 'attempt')} failed"
        )

    def _say(self, text: str, level: int = INFO) -> None:
        if self._log is not None:
            self._log.say(text, level)
