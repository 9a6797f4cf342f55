"""Rank 0's loop: the only IO of the scheduler.

    transports --frames--> messages --events--> SchedulerCore --commands--> messages --frames--> transports
                                                     |
                                  RunHere, and the ledger: journal, planned tasks, outputs

One thread, one turn after the other: poll, handle everything that came, send what the turn produced (one frame a rank), write the journal.
It decides nothing: what a command says is done, in order.
"""

import gc
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import assert_never

from smallpond_mpi.common import CannotPickle, JobFailed, JobStopped
from smallpond_mpi.execution.context import RuntimeContext
from smallpond_mpi.execution.executor.loop import ExecutorLoop
from smallpond_mpi.execution.failures import exception_of, failure_of
from smallpond_mpi.execution.interrupts import Interrupts
from smallpond_mpi.execution.model import (
    SCHEDULER_RANK,
    Capacity,
    Failure,
    FailureKind,
    Rank,
    TaskId,
    TaskRuntimeId,
    WorkStatus,
)
from smallpond_mpi.execution.payload import Packer, raised_by
from smallpond_mpi.execution.protocol import (
    Alive,
    Blob,
    Broken,
    Checkpoint,
    Ended,
    Forget,
    Heard,
    Joined,
    Message,
    Reset,
    RunTask,
    Shutdown,
    StopTask,
    Welcome,
    decode,
    encode,
)
from smallpond_mpi.execution.scheduler import events
from smallpond_mpi.execution.scheduler.commands import (
    AcceptAttempt,
    Command,
    DiscardAttempt,
    FinishJob,
    RunHere,
    StartAttempt,
    StopAttempt,
    StopRank,
)
from smallpond_mpi.execution.scheduler.core import SchedulerCore
from smallpond_mpi.execution.scheduler.ledger import Ledger
from smallpond_mpi.execution.scheduler.observe import Observer
from smallpond_mpi.execution.scheduler.story import error_of
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.transport import PeerGone, Transport, nap_secs
from smallpond_mpi.platform.binding import OWN_BYTES
from smallpond_mpi.platform.process import unreclaimable_bytes

POLLING_GAP_SECS = 2.0
"""After so long without a poll, or half the time after which a rank is late, the silence of ranks is ours, not theirs."""
RELEASE_SECS = 15.0
"""For ranks to end what runs there when a job is over. (They give up on processes that can't be killed after 10.)"""


LEAST_LEFT = 1 / 8
"""Of rank 0's memory for tasks, whatever its own process holds."""
WORTH_COUNTING = 1 / 64
"""Of the same: the change from which what is there for tasks is counted anew."""


class SchedulerLoop:
    """Runs submissions for a session. `remote` reaches the other ranks, if there are any; `executor` is rank 0's own."""

    def __init__(
        self,
        ctx: RuntimeContext,
        core: SchedulerCore,
        *,
        welcome: Welcome,
        ledger: Ledger,
        local: Transport,
        executor: ExecutorLoop,
        remote: Transport | None,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ctx = ctx
        self._core = core
        self._welcome = welcome
        self._ledger = ledger
        self._local = local
        self._executor = executor
        self._remote = remote
        self._observer = observer
        observer.watch(core)
        self._clock = clock
        self._packer = Packer(ctx)
        self._tasks: dict[int, Task] = {}
        self._inbox: deque[tuple[Rank, Message] | PeerGone] = deque()
        self._events: deque[events.Event] = deque()
        self._commands: deque[Command] = deque()
        self._is_handling = False
        self._is_deciding = False
        self._outbox: dict[Rank, list[Message]] = {}
        self._capacities: dict[Rank, Capacity] = {}
        self._hosts: dict[Rank, str] = {}
        self._lost: set[Rank] = set()
        self._blobs_sent: dict[Rank, set[bytes]] = {}
        self._ended: dict[TaskRuntimeId, Ended] = {}
        self._failures: dict[int, list[Failure]] = {}
        self._finished: FinishJob | None = None
        self._broken_off = ""  # by what error a run was, of which nobody knows any more how far it came
        self._asked_to_stop: str | None = None
        self._is_over = False  # ranks that join now wait for another job
        self._last_poll = clock()
        self._last_news = 0.0

    # what the session calls

    @property
    def capacities(self) -> dict[Rank, Capacity]:
        """What each rank that is here has."""
        return self._capacities

    @property
    def core(self) -> SchedulerCore:
        return self._core

    def call_back(self, ranks: Iterable[Rank]) -> None:
        """Have ranks that served an earlier job of this process kill what runs there and join this one."""
        for rank in ranks:
            self._say(rank, Reset())

    def wait_for_ranks(self, count: int, deadline_secs: float) -> None:
        """Poll until `count` ranks have joined (rank 0's own executor included) or the time is over."""
        deadline = self._clock() + deadline_secs
        while len(self._capacities) < count and self._clock() < deadline:
            self._turn()

    def run(self, targets: Sequence[Task]) -> None:
        """Bring the targets, and what they need, to success.

        Raises:
            BadInput: a task failed for what the user gave. JobFailed: it failed for another reason. JobStopped: as `drain` asked.
        """
        if self._executor.finished or self._broken_off:
            reason = self._broken_off or self._executor.reason or "it was shut down"
            raise JobFailed(f"this session can't run anything any more: {reason}")
        intake = self._ledger.take_in(targets)
        self._observer.submitted(intake.tasks, intake.done, self._clock())
        if not intake.tasks:
            return
        if self._asked_to_stop is not None:
            raise JobStopped(self._asked_to_stop)
        self._ledger.expect(intake.tasks)
        self._tasks.update((task.id, task) for task in intake.tasks)
        self._finished = None
        self._count_what_we_hold()
        self._handle(events.JobSubmitted(intake.specs))
        # What was planned stays: looking through millions of tasks for garbage again and again halves the rate of events.
        gc.freeze()
        try:
            with Interrupts() as interrupts:
                is_draining = False
                while self._finished is None:
                    self._turn()
                    if self._asked_to_stop is not None and not is_draining:
                        is_draining = True
                        self._handle(events.StopRequested(self._asked_to_stop, math.inf))
                    interrupts.raise_if_any()
            self._ledger.flush()
        except (KeyboardInterrupt, SystemExit):
            if self._is_deciding:
                self._broken_off = "it was interrupted within a decision"
            self.stop("interrupted")
            raise
        except BaseException as error:
            self._broken_off = f"{type(error).__name__}: {error}"
            raise
        finally:
            gc.unfreeze()
            finished = self._finished
            self._observer.finished(None if finished is None else finished.reason, self._clock())
            for task in intake.tasks:
                self._tasks.pop(task.id, None)
        self._forget_siblings()
        self._ledger.sweep()
        if finished.failed is not None:
            raise self._story_of(finished.failed, finished.reason, {task.id: task for task in intake.tasks})
        if self._asked_to_stop is not None and not all(task.is_done for task in intake.tasks):
            raise JobStopped(self._asked_to_stop)

    def _forget_siblings(self) -> None:
        """What tasks of a node share may hold much (a function's closure), and a session has no end of runs."""
        self._packer.forget()
        for rank, sent in self._blobs_sent.items():
            if sent:
                sent.clear()
                self._say(rank, Forget())

    def _count_what_we_hold(self) -> None:
        """Grant nothing that this process holds itself: tables of the script, a large plan. Only while no task runs here."""
        rank, was = SCHEDULER_RANK, self._capacities.get(SCHEDULER_RANK)
        if was is None:
            return  # it has not joined yet; before the next run, then
        held = max(0, unreclaimable_bytes(os.getpid()) - OWN_BYTES)
        whole = self._executor.capacity.memory_bytes
        left = max(whole - held, int(whole * LEAST_LEFT))
        if abs(left - was.memory_bytes) > whole * WORTH_COUNTING and self._core.is_idle(rank):
            self._capacities[rank] = replace(was, memory_bytes=left)
            self._handle(events.RankJoined(rank, self._hosts[rank], self._capacities[rank]))

    def drain(self, reason: str) -> None:
        """From now on start nothing new; a run ends when what runs has ended. For signal handlers: it is only noted here."""
        self._asked_to_stop = reason

    def stop(self, reason: str) -> None:
        """End everything that runs, and come back when it has ended."""
        if self._broken_off:
            self._events.clear()
            self._commands.clear()
        self._handle(events.StopRequested(reason))
        deadline = self._clock() + 5.0
        while self._finished is None and self._core.n_unfinished and self._clock() < deadline:
            self._turn()

    def release(self, deadline_secs: float = RELEASE_SECS) -> set[Rank]:
        """Nothing of this job shall run any more; returns the ranks that wait for another one."""
        self._is_over = True
        # One that was given up may hang: it is called too, but not waited for. Should it wake up, it joins the next job by itself.
        waited_for = set(self._capacities)
        self._capacities.clear()
        self.call_back(self._reachable())
        deadline = self._clock() + deadline_secs
        while waited_for - self._capacities.keys() - self._lost and self._clock() < deadline:
            self._turn()
        return set(self._capacities)

    def shut_down(self, deadline_secs: float = 5.0) -> None:
        """Tell all ranks that the session is over."""
        for rank in self._reachable():
            self._say(rank, Shutdown())
        self._send()
        self._executor.close()
        if self._remote is not None:
            self._remote.close(deadline_secs)

    def _reachable(self) -> set[Rank]:
        """Ranks that have joined and are not known to be dead, those that were given up among them: they are there, or may wake up."""
        return self._hosts.keys() - self._lost

    # a turn

    def _turn(self) -> None:
        """Poll, handle, send, write; then wait as long as nothing can have happened."""
        self._catch_up()
        came = self._receive()
        deadline = self._core.next_deadline()
        if deadline is not None and deadline <= self._clock():
            self._catch_up()  # what came may have taken long: a sync of the journal that stalls, a large directory to remove
            self._handle(events.TimePassed())
        # Written before anything is built on it: what a rank is told to compute now has inputs that a restart knows of.
        self._ledger.flush()
        sent = self._send()
        stepped = self._executor.step(0.0)
        now = self._clock()
        if self._finished is None:  # else it is told of the end next, once
            self._observer.tick(now)
        if came or sent or stepped:
            self._last_news = now
            return
        nap = nap_secs(now - self._last_news)
        if deadline is not None:
            nap = min(nap, max(0.0, deadline - now))
        self._executor.nap(nap)

    def _catch_up(self) -> None:
        """If nobody has listened for a while: take everything that came, before any silence is judged."""
        if self._clock() - self._last_poll > min(POLLING_GAP_SECS, self._core.policy.late_secs / 2):
            while self._receive():
                self._executor.step(0.0)
            self._handle(events.PollingResumed())

    def _receive(self) -> bool:
        self._last_poll = self._clock()
        for arrival in [*self._local.poll(), *(self._remote.poll() if self._remote is not None else ())]:
            if isinstance(arrival, PeerGone):
                self._inbox.append(arrival)
            else:
                self._inbox.extend((arrival.source, message) for message in decode(arrival.frame))
        came = bool(self._inbox)
        while self._inbox:  # what an error leaves here is taken in next time
            match self._inbox.popleft():
                case PeerGone(peer, reason, has_left):
                    self._capacities.pop(peer, None)
                    self._lost.add(peer)
                    self._observer.rank_lost(peer, reason)
                    self._handle(events.RankLost(peer, reason, has_left))
                case (source, message):
                    self._on_message(source, message)
        return came

    def _on_message(self, rank: Rank, message: Message) -> None:
        if rank not in self._hosts and not isinstance(message, (Joined, Broken)):
            return  # what it says to an earlier job of this process: it has been called back, and will join
        match message:
            case Ended():
                self._on_ended(rank, message)
            case Alive():
                self._say(rank, Heard())
                self._handle(events.RankReported(rank))
            case Checkpoint(attempt, state):
                self._on_checkpoint(attempt, state)
            case Joined():
                self._on_joined(rank, message)
            case Broken(host, traceback):
                raise JobFailed(f"rank {rank} on {host} met an error of its own and can't go on:\n{traceback}")
            case _:
                raise JobFailed(f"rank {rank} sent a {type(message).__name__}, which is not for the scheduler")

    def _on_joined(self, rank: Rank, joined: Joined) -> None:
        ours = f"{sys.version_info.major}.{sys.version_info.minor}."
        if not joined.python.startswith(ours):
            raise JobFailed(
                f"rank {rank} on {joined.host} runs Python {joined.python}, rank 0 runs {ours}x: pickled functions can't travel "
                "between them; start all ranks from one environment"
            )
        self._capacities[rank] = joined.capacity
        self._hosts[rank] = joined.host
        if self._is_over:
            return
        self._blobs_sent[rank] = set()
        self._say(rank, replace(self._welcome, log_path=self._ctx.paths.rank_log(rank)))
        self._handle(events.RankJoined(rank, joined.host, joined.capacity))
        self._observer.rank_joined(rank, joined.host, joined.capacity)

    def _on_checkpoint(self, attempt: TaskRuntimeId, state: bytes) -> None:
        task = self._tasks.get(attempt.id)
        if task is None or attempt.epoch != self._ctx.sched_epoch:
            return
        self._ledger.checkpoint(task, state)
        self._handle(events.Checkpointed(attempt))

    def _on_ended(self, rank: Rank, ended: Ended) -> None:
        attempt, failure = ended.attempt, ended.failure
        self._ended[attempt] = ended
        if failure is not None and attempt.id in self._tasks:
            task = self._tasks[attempt.id]
            task.retry_count, task.sched_epoch = attempt.retry, attempt.epoch
            self._remember_failure(attempt.id, failure)
            self._observer.attempt_failed(task, attempt, failure, ended.elapsed_secs)
        self._handle(
            events.AttemptEnded(
                rank,
                attempt,
                failure.kind if failure else None,
                ended.elapsed_secs,
                ended.peak_memory_bytes,
                f"{failure.type_name}: {failure.message}" if failure else "",
            )
        )
        self._ended.pop(attempt, None)

    def _remember_failure(self, task_id: int, failure: Failure) -> None:
        if failure.kind not in (FailureKind.STOPPED, FailureKind.LOST):
            self._failures.setdefault(task_id, []).append(failure)

    # events and commands

    def _handle(self, event: events.Event) -> None:
        """Give an event to the core and carry out what it says; what follows from that (RunHere) is handled in turn.

        A command that was broken off (by a second Ctrl-C, say) is carried out anew, before all else: each can be, and the core counts on it.
        """
        self._events.append(event)
        if self._is_handling:
            return  # a command is being carried out: its caller goes on with this event
        self._is_handling = True
        try:
            while self._commands or self._events:
                while self._commands:
                    self._carry_out(self._commands[0])
                    self._commands.popleft()
                if self._events:
                    self._is_deciding = True
                    self._commands.extend(self._core.handle(self._events.popleft(), self._clock()))
                    self._is_deciding = False
        finally:
            self._is_handling = False

    def _carry_out(self, command: Command) -> None:
        match command:
            case StartAttempt():
                self._start(command)
            case AcceptAttempt(attempt):
                self._accept(attempt)
            case RunHere(task_id):
                self._run_here(self._tasks[task_id])
            case StopAttempt(rank, attempt, _):
                self._say(rank, StopTask(attempt))
            case DiscardAttempt(attempt):
                self._discard(attempt)
            case StopRank(rank, reason):
                self._capacities.pop(rank, None)
                self._observer.rank_lost(rank, reason)
                self._say(rank, Reset())
            case FinishJob():
                self._finished = command
            case _:
                assert_never(command)

    def _start(self, start: StartAttempt) -> None:
        rank, attempt = start.rank, start.attempt
        task = self._tasks[attempt.id]
        if getattr(task, "publishes", False):
            # What users will see follows from what is recorded, and nobody else runs this job.
            self._ledger.sync()
        try:
            packed = self._packer.pack(
                task,
                attempt,
                self._fail_count(attempt.id),
                self._capacities[rank],
                task._deps.outputs,
                self._ledger.checkpoint_of(attempt.id),
            )
        except CannotPickle as error:
            failure = Failure(FailureKind.BAD_INPUT, "CannotPickle", str(error))
            self._remember_failure(attempt.id, failure)
            self._observer.attempt_failed(task, attempt, failure)
            self._events.append(events.AttemptEnded(rank, attempt, failure.kind, 0.0, 0, failure.message))
            return
        sent = self._blobs_sent[rank]
        for digest, content in packed.blobs:
            if digest not in sent:
                sent.add(digest)
                self._say(rank, Blob(digest, content))
        self._say(
            rank,
            RunTask(
                attempt,
                start.grant,
                packed.header,
                packed.payload,
                tuple(digest for digest, _ in packed.blobs),
                task.isolated or self._ctx.enforce_memory_limit,
                task.timeout_secs,
            ),
        )

    def _fail_count(self, task_id: int) -> int:
        return len(self._failures.get(task_id, ()))

    def _accept(self, attempt: TaskRuntimeId) -> None:
        task = self._tasks[attempt.id]
        ended = self._ended[attempt]
        assert ended.state is not None
        self._ledger.accept(task, attempt, ended.state)
        task.fail_count = self._fail_count(attempt.id)
        self._observer.accepted(task, ended)

    def _discard(self, attempt: TaskRuntimeId) -> None:
        ended = self._ended.get(attempt)
        if ended is not None and ended.state:
            self._ledger.discard(attempt, ended.state)

    def _run_here(self, task: Task) -> None:
        """Rank 0 runs a task of ours that touches no file, on the planned object."""
        started = self._clock()
        task.sched_epoch = self._ctx.sched_epoch
        task.fail_count = self._fail_count(task.id)
        task.status = WorkStatus.INCOMPLETE
        task.exception = None
        task.input_datasets = task._deps.outputs
        task.exec()
        task.__dict__.pop("_metrics", None)
        task.__dict__.pop("input_datasets", None)
        self._ctx.set_current_task(None)
        if task.status is WorkStatus.SUCCEED:
            self._ledger.ran_here(task)
            self._observer.ran_here(task, self._clock() - started)
            self._events.append(events.LocalRunEnded(task.id, None))
            return
        failure = failure_of(task, self._hosts.get(SCHEDULER_RANK, ""), SCHEDULER_RANK)
        self._remember_failure(task.id, failure)
        self._observer.attempt_failed(task, task.runtime_id, failure, self._clock() - started)
        task.retry_count += 1
        self._events.append(events.LocalRunEnded(task.id, failure.kind, f"{failure.type_name}: {failure.message}"))

    # messages out

    def _say(self, rank: Rank, message: Message) -> None:
        self._outbox.setdefault(rank, []).append(message)

    def _send(self) -> bool:
        """One frame to each rank that there is something to tell; whether there was any."""
        if not self._outbox:
            return False
        for rank, messages in self._outbox.items():
            frame = encode(messages)
            if rank == SCHEDULER_RANK:
                self._local.send(rank, frame)
            elif self._remote is not None:
                self._remote.send(rank, frame)
        self._outbox.clear()
        return True

    # the end

    def _story_of(self, task_id: TaskId, reason: str, tasks: dict[TaskId, Task]) -> Exception:
        """The error that the user sees; the planned task is told what became of it."""
        task = tasks.get(task_id)
        failures = self._failures.pop(task_id, [])
        if task is None:
            return JobFailed(reason)
        task.fail_count = len(failures)
        if not failures:
            return error_of(task, (), reason)
        last = failures[-1]
        raised = self._core.raised_limit(task_id)
        if raised is not None:
            if task.memory_limit:
                task._memory_boost = raised_by(task.memory_limit, raised)
            task.memory_limit = raised
        task.exception = exception_of(last)
        task.status = WorkStatus.FAILED if last.type_name == "Failed" else WorkStatus.CRASHED
        return error_of(task, failures, reason, self._ctx.paths.rank_log(last.rank))
