"""Decides what runs where, when again, and which attempt counts. Events in, commands out; no clock, no IO, no randomness.

It only turns events into moves: `graph` knows what is ready, `queues` who is next, `fleet` what fits where, `retry` what a failure means,
`speculation` what siblings teach, `placing` starts, `patience` waits. Deadlines are looked at in TimePassed alone, so that a loop which
had not polled for a while can hand in what had come in the meantime, then PollingResumed, before any silence is judged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from smallpond_mpi.execution.model import FailureKind, Rank, SpecKind, TaskId
from smallpond_mpi.execution.scheduler import events as ev
from smallpond_mpi.execution.scheduler.board import Board
from smallpond_mpi.execution.scheduler.commands import AcceptAttempt, Command, DiscardAttempt, StopRank
from smallpond_mpi.execution.scheduler.explain import explain
from smallpond_mpi.execution.scheduler.fleet import GONE, JOINED, LATE, Attempt, RankState
from smallpond_mpi.execution.scheduler.graph import (
    ABSENT,
    DONE,
    DROPPED,
    GIVEN_UP,
    READY,
    RUNNING,
    WAITING,
    InvariantBroken,
    TaskState,
)
from smallpond_mpi.execution.scheduler.patience import (
    end_job,
    fail,
    give_up,
    lose_rank,
    stop,
    stop_rank,
    suspect,
    trust,
    watch_silence,
    watch_stage,
)
from smallpond_mpi.execution.scheduler.placing import fill, go_on
from smallpond_mpi.execution.scheduler.policy import Policy
from smallpond_mpi.execution.scheduler.retry import COUNTED, SUSPICIOUS

DEFAULT_POLICY = Policy()

__all__ = ["InvariantBroken", "Policy", "RankCounts", "RankView", "SchedulerCore", "StageCounts"]


@dataclass(frozen=True, slots=True)
class StageCounts:
    """How many tasks of a stage are where. `failed` are given up or dropped."""

    waiting: int
    ready: int
    running: int
    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class RankCounts:
    """How many ranks stand how with the scheduler."""

    joined: int
    late: int
    gone: int


@dataclass(frozen=True, slots=True)
class RankView:
    """A rank at one moment, and the tasks of its attempts."""

    number: Rank
    host: str
    is_open: bool  # may get new work
    is_stopped: bool
    is_gone: bool
    tasks: tuple[TaskId, ...]


class SchedulerCore:
    """The scheduler of one epoch."""

    def __init__(self, *, epoch: int, policy: Policy = DEFAULT_POLICY) -> None:
        self.policy = policy
        self._board = Board(epoch, policy)
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.AttemptEnded: self._attempt_ended,
            ev.RankReported: self._rank_reported,
            ev.LocalRunEnded: self._local_run_ended,
            ev.Checkpointed: self._checkpointed,
            ev.TimePassed: self._time_passed,
            ev.JobSubmitted: self._job_submitted,
            ev.RankJoined: self._rank_joined,
            ev.RankLost: self._rank_lost,
            ev.PollingResumed: self._polling_resumed,
            ev.StopRequested: self._stop_requested,
        }

    def handle(self, event: ev.Event, now: float) -> list[Command]:
        """Take in one fact; returns what is to be done about it, in order."""
        board = self._board
        board.now = now
        out = board.out = []
        self._handlers[type(event)](event)
        fill(board)
        if board.is_open and (board.n_unfinished == 0 or (board.stop_reason is not None and not self._is_running())):
            end_job(board, None, board.stop_reason or "")
            fill(board)
        return out

    def next_deadline(self) -> float | None:
        """When TimePassed is wanted at the latest (it may turn out that there was nothing to do)."""
        return self._board.next_alarm()

    # submissions

    def _job_submitted(self, event: ev.JobSubmitted) -> None:
        board = self._board
        graph, specs = board.graph, event.specs
        board.grow(max(max((int(spec.id) for spec in specs), default=0), max(event.done, default=0)))
        board.is_open = True
        for spec in specs:
            board.add(spec)
        for restored in event.done:
            self._restored(restored)
        free: list[int] = []
        orphan = 0
        for spec in specs:
            task = int(spec.id)
            if graph.state[task] == DONE:
                continue
            if graph.connect(task) == 0:
                free.append(task)
            elif not orphan and self._missing_input(task):
                orphan = task
        if orphan:
            give_up(board, orphan, f"its input {self._missing_input(orphan):06d} was not made")
            return
        board.make_ready(free)

    def _restored(self, task: int) -> None:
        """The journal had this task's output."""
        board = self._board
        state = board.graph.state[task]
        if state == ABSENT:
            board.graph.add(task, board.stage(0).number, ())
        elif state != DONE:
            board.n_unfinished -= 1
        if state != DONE:
            board.graph.move(task, DONE)

    def _missing_input(self, task: int) -> int:
        """An input that nobody will make, or 0."""
        graph = self._board.graph
        return next((dep for dep in graph.deps(task) if graph.state[dep] in (ABSENT, GIVEN_UP, DROPPED)), 0)

    def _local_run_ended(self, event: ev.LocalRunEnded) -> None:
        board, task = self._board, int(event.id)
        if board.graph.state[task] != RUNNING or board.queue_of(task).kind is not SpecKind.HERE:
            return  # the job had failed before it ran
        if event.failure is None:
            board.done(task)
        else:
            fail(board, task, event.failure, event.reason, None, 0)

    # attempts

    def _attempt_ended(self, event: ev.AttemptEnded) -> None:
        board = self._board
        rank = self._hear(event.rank)
        attempt = board.find(event.attempt, rank) if rank is not None else None
        if rank is None or attempt is None:
            if event.failure is None:
                board.out.append(DiscardAttempt(event.attempt))
            return
        board.detach(attempt)
        if event.failure is None:
            if attempt.is_stopping:
                board.out.append(DiscardAttempt(event.attempt))
            else:
                self._accept(attempt, event)
            if rank.is_doubted:
                trust(board, rank)
        elif not attempt.is_stopping:
            if event.failure in SUSPICIOUS:
                suspect(board, rank, attempt.task)
            fail(board, attempt.task, event.failure, event.reason, rank, attempt.lane.grant.memory_bytes)
            if board.policy.stop_executor_on_failure and event.failure in COUNTED:
                stop_rank(board, rank)
        go_on(board, attempt.lane)

    def _accept(self, attempt: Attempt, event: ev.AttemptEnded) -> None:
        board, task = self._board, attempt.task
        board.out.append(AcceptAttempt(event.attempt))
        stage = board.stage_of(task)
        board.learn(stage, attempt, event.elapsed_secs, event.peak_memory_bytes)
        if board.live[task] is not None:
            for other in board.attempts(task):
                if not other.is_stopping:
                    stop(board, other, f"{event.attempt} was first")
        board.done(task)
        if not stage.is_watched and stage.running:
            watch_stage(board, stage)

    def _checkpointed(self, event: ev.Checkpointed) -> None:
        if event.attempt.epoch != self._board.epoch:
            return
        for attempt in self._board.attempts(event.attempt.id):
            if attempt.retry == event.attempt.retry:
                self._hear(attempt.lane.rank.number)
                attempt.since = self._board.now

    # ranks

    def _hear(self, number: Rank) -> RankState | None:
        """A sign of life; None of a rank that does not count, which is told so."""
        board = self._board
        rank = board.fleet.rank(number)
        if rank is not None and rank.is_open:
            rank.heard_at = board.now
            return rank
        if rank is not None and rank.status is not GONE:
            rank.heard_at = board.now
            if rank.status is LATE:
                board.fleet.set_status(rank, JOINED)
                board.offers.append(rank)
            return rank
        if number not in board.fenced:  # once: a second Reset under way would undo what the rank began after the first
            board.fenced[number] = None
            board.out.append(StopRank(number, "it has not joined" if rank is None else "it had been given up"))
        return None

    def _rank_reported(self, event: ev.RankReported) -> None:
        self._hear(event.rank)

    def _rank_joined(self, event: ev.RankJoined) -> None:
        board = self._board
        known = board.fleet.rank(event.rank)
        if known is not None and known.status is not GONE:
            lose_rank(board, known, "it joined anew")
        board.fenced.pop(event.rank, None)
        rank = board.fleet.join(event.rank, event.host, event.capacity, board.now)
        board.offers.append(rank)
        watch_silence(board, rank)

    def _rank_lost(self, event: ev.RankLost) -> None:
        rank = self._board.fleet.rank(event.rank)
        self._board.fenced.pop(event.rank, None)  # what it was told before may never have reached it
        if rank is not None and rank.status is not GONE:
            kind = FailureKind.STOPPED if event.has_left else FailureKind.LOST
            lose_rank(self._board, rank, event.reason, kind)

    # time

    def _polling_resumed(self, event: ev.PollingResumed) -> None:
        self._board.resumed_at = self._board.now

    def _time_passed(self, event: ev.TimePassed) -> None:
        self._board.ring()

    def _stop_requested(self, event: ev.StopRequested) -> None:
        board = self._board
        if not board.is_open:
            return
        if event.deadline is None or event.deadline <= board.now:
            end_job(board, None, event.reason)
            return
        board.stop_reason = event.reason
        board.stop_at = event.deadline
        board.set_alarm(event.deadline, _look_at_stop_deadline, None)

    def _is_running(self) -> bool:
        return any(counts[RUNNING] for counts in self._board.graph.counts)

    # looking in

    def explain(self, task: TaskId) -> str:
        """Why it is not running, or what it did."""
        return explain(self._board, task)

    def check(self) -> None:
        """Raise InvariantBroken if the state contradicts itself. For tests: linear in everything."""
        self._board.check()

    def stage_counts(self) -> dict[int, StageCounts]:
        """Per stage, in the order they were submitted."""
        board = self._board
        return {
            stage.id: StageCounts(
                counts[WAITING], counts[READY], counts[RUNNING], counts[DONE], counts[GIVEN_UP] + counts[DROPPED]
            )
            for stage, counts in zip(board.stages, board.graph.counts, strict=True)
        }

    def rank_counts(self) -> RankCounts:
        """Ranks that have ever joined, by how they stand now."""
        counts = self._board.fleet.counts
        return RankCounts(counts[JOINED], counts[LATE], counts[GONE])

    def rank_status(self, rank: Rank) -> str | None:
        """joined, late or gone; None of a rank that never joined."""
        state = self._board.fleet.rank(rank)
        return None if state is None else state.status.value

    def state_of(self, task: TaskId) -> TaskState:
        """Where a task is."""
        state = self._board.graph.state
        return TaskState(state[task]) if 0 < task < len(state) else TaskState.ABSENT

    def rank_views(self) -> list[RankView]:
        """All ranks that ever joined, in the order in which they joined first."""
        return [
            RankView(
                rank.number,
                rank.host,
                rank.is_open,
                rank.is_stopped,
                rank.status is GONE,
                tuple(TaskId(attempt.task) for lane in rank.lanes for attempt in lane.attempts),
            )
            for rank in self._board.fleet.ranks.values()
        ]

    def fail_count(self, task: TaskId) -> int:
        """How many attempts of the task have failed (lost, stopped and not started ones don't count)."""
        trouble = self._board.troubles.get(task)
        return 0 if trouble is None else trouble.fails

    def raised_limit(self, task: TaskId) -> int | None:
        """The bytes that its limit was raised to, for want of memory; None if it never was."""
        trouble = self._board.troubles.get(task)
        return None if trouble is None else trouble.memory_bytes

    @property
    def n_retries(self) -> int:
        """How often a task went back into a queue."""
        return self._board.n_retries

    @property
    def n_twins(self) -> int:
        """How many speculative attempts were started."""
        return self._board.n_twins

    @property
    def n_running_attempts(self) -> int:
        """Attempts that ranks have been told to start and have not said to be over, stopped ones included."""
        return len(self._board.all_attempts())

    def is_idle(self, rank: Rank) -> bool:
        """Whether a rank is there and nothing of it is granted."""
        state = self._board.fleet.rank(rank)
        return state is not None and state.status is JOINED and state.slots.is_idle()

    @property
    def n_unfinished(self) -> int:
        """Tasks submitted that have not come to an end."""
        return self._board.n_unfinished


def _look_at_stop_deadline(board: Board, _: None) -> None:
    if board.is_open and board.stop_reason is not None and board.stop_at <= board.now:
        end_job(board, None, board.stop_reason)
