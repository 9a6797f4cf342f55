"""Decides what runs where, when again, and which attempt counts. Events in, commands out; no clock, no IO, no randomness.

It only wires what its helpers own: `graph` (what is ready), `queues` (who is next), `fleet` (what fits where), `retry` (what a failure
means), `speculation` (what siblings teach). Deadlines are looked at in TimePassed alone, so that a loop which had not polled for a while
can hand in what had come in the meantime, then PollingResumed, before any silence is judged.
"""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from smallpond_mpi.execution.model import SCHEDULER_RANK, FailureKind, Rank, SpecKind, TaskId, TaskRuntimeId
from smallpond_mpi.execution.scheduler import events as ev
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
from smallpond_mpi.execution.scheduler.explain import explain
from smallpond_mpi.execution.scheduler.fleet import GONE, JOINED, LATE, Attempt, Fleet, Lane, RankState
from smallpond_mpi.execution.scheduler.graph import DONE, DROPPED, GIVEN_UP, READY, RUNNING, Graph, InvariantBroken
from smallpond_mpi.execution.scheduler.policy import Policy
from smallpond_mpi.execution.scheduler.queues import Queues, ReadyQueue
from smallpond_mpi.execution.scheduler.retry import SUSPICIOUS, Trouble, judge
from smallpond_mpi.execution.scheduler.speculation import Stage

__all__ = ["InvariantBroken", "Policy", "SchedulerCore"]

CHILD_KINDS = (SpecKind.CHILD, SpecKind.SCHEDULER_CHILD)


class SchedulerCore:
    """The scheduler of one epoch."""

    def __init__(self, *, epoch: int, policy: Policy = Policy()) -> None:
        self.epoch = epoch
        self.policy = policy
        self.graph = Graph()
        self.fleet = Fleet()
        self.queues = Queues(policy.passed_over_limit)
        self.stages: dict[int, Stage] = {}  # by the id that specs give
        self.live: dict[int, Attempt] = {}  # by task: its newest attempt that is not over
        self.troubles: dict[int, Trouble] = {}
        self.n_unfinished = 0
        self.n_retries = 0  # attempts started beyond the first of their task, twins aside
        self.n_twins = 0
        self.n_done = 0
        self.failed: TaskId | None = None  # of the last submission that failed
        self.failed_reason = ""
        self.stop_reason: str | None = None  # start nothing new
        self.now = 0.0
        self._out: list[Command] = []
        self._queue_of: list[ReadyQueue | None] = []
        self._no_twin = bytearray()
        self._next_retry: dict[int, int] = {}  # of tasks with more than one attempt
        self._stage_list: list[Stage] = []
        self._is_open = False  # a submission has not been finished
        self._offers: list[RankState] = []  # ranks on which something became free
        self._fenced: dict[Rank, float] = {}  # gone or unknown ranks: when they were last told to stop
        self._resumed_at = float("-inf")
        self._timers: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._n_timers = 0
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
        self.now = now
        out = self._out = []
        self._handlers[type(event)](event)
        self._fill()
        if self._is_open and (self.n_unfinished == 0 or (self.stop_reason is not None and not self._is_running())):
            self._end_job(None, self.stop_reason or "")
        return out

    def next_deadline(self) -> float | None:
        """When TimePassed is wanted at the latest (it may turn out that there was nothing to do)."""
        return self._timers[0][0] if self._timers else None

    # submissions

    def _job_submitted(self, event: ev.JobSubmitted) -> None:
        specs = event.specs
        last = max((int(spec.id) for spec in specs), default=0)
        last = max(last, max(event.done, default=0))
        self._grow(last)
        done = set(event.done)
        for spec in specs:
            self._add(spec)
        orphan: TaskId | None = None
        self._is_open = True
        self.failed = None
        graph = self.graph
        for task in event.done:
            if graph.state[task] != DONE:
                if graph.state[task] == 0:
                    graph.add(task, self._stage(0).number, ())
                else:
                    self.n_unfinished -= 1
                graph.move(task, DONE)
        free = []
        for spec in specs:
            if spec.id in done or graph.state[spec.id] == DONE:
                continue
            if graph.connect(spec.id) == 0:
                free.append(int(spec.id))
            elif orphan is None and any(graph.state[dep] in (0, GIVEN_UP, DROPPED) for dep in spec.deps):
                orphan = spec.id
        if orphan is not None:
            missing = next(dep for dep in graph.deps(orphan) if graph.state[dep] in (0, GIVEN_UP, DROPPED))
            self._give_up(orphan, f"its input {missing:06d} was not made")
            return
        self._make_ready(free)

    def _grow(self, last: int) -> None:
        more = last + 1 - len(self._no_twin)
        if more > 0:
            self.graph.grow(last)
            self._no_twin.extend(bytes(more))
            self._queue_of.extend([None] * more)

    def _add(self, spec: Any) -> None:
        if self.graph.state[spec.id] == DONE:
            return
        wanted = spec.resources
        shape = self.fleet.shape(wanted.cpus, wanted.gpus, wanted.memory_bytes, spec.kind is SpecKind.SCHEDULER_CHILD)
        self._queue_of[spec.id] = self.queues.queue(shape, spec.kind, spec.priority)
        self._no_twin[spec.id] = not spec.speculate or spec.kind is not SpecKind.CHILD
        self.graph.add(spec.id, self._stage(spec.stage).number, spec.deps)
        self.n_unfinished += 1

    def _stage(self, stage_id: int) -> Stage:
        stage = self.stages.get(stage_id)
        if stage is None:
            stage = self.stages[stage_id] = Stage(stage_id, self.graph.add_stage())
            self._stage_list.append(stage)
        return stage

    def _make_ready(self, tasks: list[int]) -> None:
        """Queue tasks whose inputs are all done; barriers among them are done at once and free more (a list, not recursion)."""
        graph, queue_of, push = self.graph, self._queue_of, self.queues.push
        for task in tasks:  # grows while it is read
            queue = queue_of[task]
            assert queue is not None
            if queue.kind is SpecKind.BARRIER:
                graph.move(task, DONE)
                self.n_unfinished -= 1
                tasks.extend(graph.release_dependants(task))
                continue
            graph.move(task, READY)
            if queue.kind is SpecKind.HERE:
                self._run_here(task)
            else:
                push(queue, task)

    def _run_here(self, task: int) -> None:
        if self.stop_reason is None:
            self.graph.move(task, RUNNING)
            self._out.append(RunHere(TaskId(task)))

    def _local_run_ended(self, event: ev.LocalRunEnded) -> None:
        task = event.id
        if self.graph.state[task] != RUNNING or task in self.live:
            return  # the submission had failed before
        if event.failure is None:
            self._is_done(task)
            return
        self._judge(task, event.failure, event.reason, SCHEDULER_RANK, 0)

    # attempts

    def _attempt_ended(self, event: ev.AttemptEnded) -> None:
        rank = self._hear(event.rank)
        attempt = self._find(event.attempt, event.rank) if rank is not None else None
        if rank is None or attempt is None:
            if event.failure is None:
                self._out.append(DiscardAttempt(event.attempt))
            return
        lane = attempt.lane
        self._detach(attempt)
        if event.failure is None:
            if attempt.is_stopping:
                self._out.append(DiscardAttempt(event.attempt))
            else:
                self._accept(attempt, event)
            if rank.suspects or rank.is_failing:
                self._is_healthy(rank)
        elif not attempt.is_stopping:
            if event.failure in SUSPICIOUS:
                self._suspect(rank, attempt.task)
            self._judge(attempt.task, event.failure, event.reason, event.rank, lane.grant.memory_bytes)
        self._go_on(lane)

    def _accept(self, attempt: Attempt, event: ev.AttemptEnded) -> None:
        task = attempt.task
        self._stage_list[self.graph.stage[task]].learn(event.elapsed_secs, self.policy)
        self._out.append(AcceptAttempt(event.attempt))
        other = self.live.get(task)
        while other is not None:
            if not other.is_stopping:
                self._stop(other, "another attempt was first")
            other = other.older
        self._is_done(task)

    def _is_done(self, task: int) -> None:
        self.graph.move(task, DONE)
        self.n_unfinished -= 1
        self.n_done += 1
        freed = self.graph.release_dependants(task)
        if freed:
            self._make_ready(freed)

    def _find(self, id: TaskRuntimeId, rank: Rank) -> Attempt | None:
        """The attempt, if it is one that this rank was told to start and that is not over."""
        if id.epoch != self.epoch:
            return None
        attempt = self.live.get(id.id)
        while attempt is not None and (attempt.id.retry != id.retry or attempt.lane.rank.number != rank):
            attempt = attempt.older
        return attempt

    def _detach(self, attempt: Attempt) -> None:
        """The attempt is over: take it from its task and its lane."""
        attempt.is_over = True
        newest = self.live[attempt.task]
        if newest is attempt:
            if attempt.older is None:
                del self.live[attempt.task]
            else:
                self.live[attempt.task] = attempt.older
        else:
            while newest.older is not attempt:
                assert newest.older is not None
                newest = newest.older
            newest.older = attempt.older
        attempts = attempt.lane.attempts
        if attempts[0] is attempt:
            del attempts[0]
        else:
            attempts.remove(attempt)

    def _stop(self, attempt: Attempt, reason: str) -> None:
        """Tell the rank to end it; its place stays taken until the rank says that it is over."""
        attempt.is_stopping = True
        self._out.append(StopAttempt(attempt.lane.rank.number, attempt.id, reason))
        self._set_timer(self.now + self.policy.stop_secs, self._check_stopped, attempt)

    def _has_current(self, task: int) -> bool:
        attempt = self.live.get(task)
        while attempt is not None and attempt.is_stopping:
            attempt = attempt.older
        return attempt is not None

    def _judge(self, task: int, kind: FailureKind, reason: str, rank: Rank, granted_bytes: int) -> None:
        """An attempt of a running task ended without success."""
        trouble = self._trouble(task)
        queue = self._queue_of[task]
        assert queue is not None
        largest = self.fleet.largest_bytes(queue.shape) if kind in (FailureKind.OUT_OF_MEMORY, FailureKind.EXIT_CODE) else 0
        verdict = judge(trouble, kind, rank, granted_bytes, largest, self.policy)
        trouble.tell(f"an attempt on rank {rank} ended with {kind.value}" + (f" ({reason})" if reason else ""))
        if self._has_current(task) and kind is not FailureKind.BAD_INPUT:
            return  # its twin may still succeed
        if verdict is not None or trouble.charged >= self.policy.max_fail_count:
            self._give_up(task, verdict or f"{trouble.charged} attempts failed")
            return
        self._again(task)

    def _trouble(self, task: int) -> Trouble:
        trouble = self.troubles.get(task)
        if trouble is None:
            trouble = self.troubles[task] = Trouble()
        return trouble

    def _again(self, task: int) -> None:
        """Back into a queue: of another class, if it is to get more memory."""
        self.graph.move(task, READY)
        queue = self._queue_of[task]
        assert queue is not None
        if queue.kind is SpecKind.HERE:
            self._run_here(task)
            return
        trouble = self.troubles.get(task)
        memory_bytes = trouble.memory_bytes if trouble is not None else None
        if memory_bytes is not None and memory_bytes != queue.shape.memory_bytes:
            old = queue.shape
            shape = self.fleet.shape(old.cpus, old.gpus, memory_bytes, old.on_scheduler)
            queue = self._queue_of[task] = self.queues.queue(shape, queue.kind, queue.priority)
        self.queues.push(queue, task, self.policy.prioritize_retry)

    def _give_up(self, task: int, why: str) -> None:
        self._trouble(task).tell(f"given up: {why}")
        self.graph.move(task, GIVEN_UP)
        self.n_unfinished -= 1
        self._end_job(TaskId(task), why)

    def _end_job(self, failed: TaskId | None, reason: str) -> None:
        """Everything submitted comes to its end: what still runs is stopped, what was not begun is dropped."""
        if not self._is_open:
            return
        for newest in list(self.live.values()):
            attempt: Attempt | None = newest
            while attempt is not None:
                if not attempt.is_stopping:
                    self._stop(attempt, f"the job ends: {reason}")
                attempt = attempt.older
        if self.n_unfinished:
            for task in self.graph.unfinished():
                self.graph.move(task, DROPPED)
                self.graph.forget_dependants(task)
        for queue in self.queues.all:
            self._release(queue)
        self.queues.clear()
        self.n_unfinished = 0
        self._is_open = False
        self.failed, self.failed_reason, self.stop_reason = failed, reason, None
        self._out.append(FinishJob(failed, reason))

    # starting

    def _fill(self) -> None:
        """Start what fits: first on ranks where something became free, then wherever there is room for what became ready."""
        while self._offers:
            self._fill_rank(self._offers.pop())
        queues = self.queues
        if queues.active and self.stop_reason is None:
            self._place()
        queues.settle()

    def _place(self) -> None:
        """Give ready tasks to idle ranks, one lane each while there are idle ones; then let short ones wait behind each other."""
        opened: list[Lane] = []
        active = self.queues.active
        position = 0
        while position < len(active):
            queue = active[position]
            rank = self.fleet.find(queue.shape, self._avoided(queue.tasks[0]))
            if rank is None:
                position += 1
                continue
            opened.append(self._open(rank, queue))
            position = 0
        for lane in opened:
            self._top_up(lane)
            self.fleet.offer(lane.rank)

    def _avoided(self, task: int) -> Rank | None:
        trouble = self.troubles.get(task) if self.troubles else None
        return trouble.avoid if trouble is not None else None

    def _fill_rank(self, rank: RankState) -> None:
        """Something became free on this rank."""
        if not rank.is_open:
            return
        queues = self.queues
        if queues.starving and rank.reserved_for is None:
            self._reserve(rank)
        if rank.reserved_for is not None:
            queue = rank.reserved_for
            assert isinstance(queue, ReadyQueue)
            if not self.fleet.fits(rank, queue.shape):
                return
            self._release(queue)
        if self.stop_reason is None:
            opened: list[Lane] = []
            while (queue := self._next_for(rank)) is not None:
                opened.append(self._open(rank, queue))
            for lane in opened:
                self._top_up(lane)
        self.fleet.offer(rank)

    def _next_for(self, rank: RankState) -> ReadyQueue | None:
        for queue in self.queues.active:
            if self.fleet.fits(rank, queue.shape):
                return queue
        return None

    def _open(self, rank: RankState, queue: ReadyQueue) -> Lane:
        lane = self.fleet.open_lane(rank, queue.shape)
        self._start(lane, queue)
        return lane

    def _start(self, lane: Lane, queue: ReadyQueue) -> None:
        """Start the queue's next task in the lane (behind what runs there)."""
        task = self._take(queue, lane.rank)
        self.graph.move(task, RUNNING)
        self._attempt(lane, task, False)
        self.queues.took(queue)
        if queue.reserved is not None or queue.is_starving:
            self._release(queue)

    def _take(self, queue: ReadyQueue, rank: RankState) -> int:
        """The next task; one that had better run elsewhere lets the one behind it go first."""
        tasks = queue.tasks
        task = tasks.popleft()
        if self.troubles and tasks and self._avoided(task) == rank.number:
            tasks[0], task = task, tasks[0]
        return task

    def _attempt(self, lane: Lane, task: int, is_twin: bool) -> None:
        older = self.live.get(task)
        retry = self._next_retry.get(task, 0) if self._next_retry or older is not None else 0
        id = TaskRuntimeId(TaskId(task), self.epoch, retry)
        attempt = Attempt(id, task, lane, older, is_twin)
        self.live[task] = attempt
        lane.attempts.append(attempt)
        if len(lane.attempts) == 1:
            self._begin(attempt)
        self._out.append(StartAttempt(lane.rank.number, id, lane.grant))

    def _begin(self, attempt: Attempt) -> None:
        """It is the head of its lane now: it runs."""
        attempt.since = self.now

    def _top_up(self, lane: Lane) -> None:
        """Let short tasks wait behind the head of the lane, a fair share of what is ready."""
        return

    def _go_on(self, lane: Lane) -> None:
        """An attempt of this lane is over: the next one runs, or its place is free."""
        if lane.attempts:
            head = lane.attempts[0]
            self._begin(head)
            return
        if lane.rank.lanes.get(lane, self) is None:
            self.fleet.close_lane(lane)
            self._offers.append(lane.rank)

    # reservations

    def _reserve(self, rank: RankState) -> None:
        """Keep the rank free for a queue that was passed over for too long."""
        for queue in self.queues.starving:
            if self.fleet.suits(rank, queue.shape):
                self.queues.stop_starving(queue)
                queue.reserved, rank.reserved_for = rank, queue
                return

    def _release(self, queue: ReadyQueue) -> None:
        """The queue needs no rank of its own (any more)."""
        self.queues.stop_starving(queue)
        queue.n_passed = 0
        if queue.reserved is not None:
            rank, queue.reserved = queue.reserved, None
            rank.reserved_for = None
            self._offers.append(rank)

    # ranks

    def _hear(self, number: Rank) -> RankState | None:
        """A sign of life; None of a rank that does not count."""
        rank = self.fleet.ranks.get(number)
        if rank is not None:
            if rank.status is JOINED:
                rank.heard_at = self.now
                return rank
            if rank.status is LATE:
                rank.heard_at = self.now
                self.fleet.set_status(rank, JOINED)
                self._offers.append(rank)
                return rank
        told_at = self._fenced.get(number)
        if told_at is None or self.now - told_at >= self.policy.late_secs:
            self._fenced[number] = self.now
            self._out.append(StopRank(number, "it was given up" if rank is not None else "it has not joined"))
        return None

    def _rank_reported(self, event: ev.RankReported) -> None:
        self._hear(event.rank)

    def _rank_joined(self, event: ev.RankJoined) -> None:
        known = self.fleet.ranks.get(event.rank)
        if known is not None and known.status is not GONE:
            self._lose(known, "joined anew")
        self._fenced.pop(event.rank, None)
        rank = self.fleet.join(event.rank, event.host, event.capacity, self.now)
        self._offers.append(rank)

    def _rank_lost(self, event: ev.RankLost) -> None:
        rank = self.fleet.ranks.get(event.rank)
        if rank is not None and rank.status is not GONE:
            self._lose(rank, event.reason)

    def _lose(self, rank: RankState, reason: str) -> None:
        """Its attempts are over: those that ran are lost, those that waited are as if never sent."""
        if rank.reserved_for is not None:
            queue = rank.reserved_for
            assert isinstance(queue, ReadyQueue)
            self._release(queue)
        over: list[tuple[Attempt, bool]] = []
        for lane in self.fleet.leave(rank):
            over.extend((attempt, position == 0) for position, attempt in enumerate(lane.attempts))
        for attempt, _ in over:
            self._detach(attempt)
        for attempt, was_running in over:
            if attempt.is_stopping or self.graph.state[attempt.task] != RUNNING:
                continue
            if was_running:
                self._judge(attempt.task, FailureKind.LOST, reason, rank.number, 0)
            elif not self._has_current(attempt.task):
                self._again(attempt.task)

    def _suspect(self, rank: RankState, task: int) -> None:
        return

    def _is_healthy(self, rank: RankState) -> None:
        return

    def _polling_resumed(self, event: ev.PollingResumed) -> None:
        self._resumed_at = self.now

    # time

    def _set_timer(self, when: float, call: Callable[[Any], None], subject: object) -> None:
        self._n_timers += 1
        heappush(self._timers, (when, self._n_timers, call, subject))

    def _time_passed(self, event: ev.TimePassed) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            _, _, call, subject = heappop(self._timers)
            call(subject)

    def _check_stopped(self, attempt: Attempt) -> None:
        return

    def _checkpointed(self, event: ev.Checkpointed) -> None:
        return

    def _stop_requested(self, event: ev.StopRequested) -> None:
        return

    def _is_running(self) -> bool:
        return any(True for _ in self.live)

    # looking in

    def explain(self, task: TaskId) -> str:
        """Why it is not running, or what it did."""
        return explain(self, task)

    def check(self) -> None:
        """Raise InvariantBroken if the state contradicts itself."""
        self.graph.check()
        self.fleet.check()
        self.queues.check()
