"""All that the scheduler knows, and the few moves that every part of it makes: start, stop, detach, again.

`core` turns events into these moves, `placing` decides what starts where, `patience` looks at what should have happened by now.
Nothing here decides; each move leaves the board consistent, which `check` verifies.
"""

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any

from smallpond_mpi.execution.model import Rank, SpecKind, TaskId, TaskRuntimeId, TaskSpec
from smallpond_mpi.execution.scheduler.commands import Command, RunHere, StartAttempt, StopAttempt
from smallpond_mpi.execution.scheduler.fleet import GONE, Attempt, Fleet, Lane, RankState, Shape
from smallpond_mpi.execution.scheduler.graph import ABSENT, DONE, READY, RUNNING, Graph, InvariantBroken
from smallpond_mpi.execution.scheduler.policy import Policy
from smallpond_mpi.execution.scheduler.queues import Queues, ReadyQueue
from smallpond_mpi.execution.scheduler.retry import Trouble
from smallpond_mpi.execution.scheduler.speculation import Stage

Alarm = Callable[["Board", Any], None]


class Board:
    """The state of one epoch's scheduler."""

    def __init__(self, epoch: int, policy: Policy) -> None:
        self.epoch = epoch
        self.policy = policy
        self.graph = Graph()
        self.fleet = Fleet()
        self.queues = Queues(policy.passed_over_limit)
        self.stages: list[Stage] = []  # by number
        self.live: list[Attempt | None] = []  # by task: its newest attempt that is not over
        self.troubles: dict[int, Trouble] = {}  # only of tasks that had any
        self.n_unfinished = 0
        self.n_done = 0
        self.n_retries = 0  # times that a task went back into a queue
        self.n_twins = 0
        self.is_open = False  # a submission has not come to its end
        self.stop_reason: str | None = None  # start nothing new ...
        self.stop_at = float("inf")  # ... and end what runs then
        self.fenced: dict[Rank, None] = {}  # ranks that don't count and have been told so
        self.now = 0.0
        self.resumed_at = float("-inf")  # silence before this does not count
        self.out: list[Command] = []
        self.offers: list[RankState] = []  # ranks on which something became free
        self.watched_lanes: dict[int, list[Lane]] = {}  # by the time at which to look at them
        self.unmet: list[ReadyQueue] = []  # queues that no rank is large enough for
        self.touched: list[Lane] = []  # lanes behind whose head short tasks may be queued
        self._stage_of_id: dict[int, Stage] = {}
        self._queue_of: list[ReadyQueue | None] = []
        self._no_twin = bytearray()
        self._retries: dict[int, int] = {}  # number of the next attempt, where it is not 0
        self._alarms: list[tuple[float, int, Alarm, Any]] = []
        self._n_alarms = 0
        self._has_learned_memory = False  # some stage's grants are raised
        self._watches_heads = policy.speculative_exec != "disable"

    # tasks

    def grow(self, last: int) -> None:
        """Make room for ids up to `last`."""
        more = last + 1 - len(self._no_twin)
        if more > 0:
            self.graph.grow(last)
            self._no_twin.extend(bytes(more))
            self._queue_of.extend([None] * more)
            self.live.extend([None] * more)

    def add(self, spec: TaskSpec) -> None:
        """Bring in a task; one that came to its end without output before starts anew, one that is done stays done."""
        task = int(spec.id)
        state = self.graph.state[task]
        if state == DONE:
            return
        if state != ABSENT:
            self._retries[task] = self._retries.get(task, 0) + 1
            self.troubles.pop(task, None)
            self.stage_of(task).short.pop(task, None)
        wanted = spec.resources
        shape = self.fleet.shape(wanted.cpus, wanted.gpus, wanted.memory_bytes, spec.kind is SpecKind.SCHEDULER_CHILD)
        self._queue_of[task] = self.queues.queue(shape, spec.kind, spec.priority)
        self._no_twin[task] = not spec.speculate or spec.kind is not SpecKind.CHILD
        self.graph.add(task, self.stage(spec.stage).number, spec.deps)
        self.n_unfinished += 1

    def stage(self, stage_id: int) -> Stage:
        """The stage of this id."""
        stage = self._stage_of_id.get(stage_id)
        if stage is None:
            stage = self._stage_of_id[stage_id] = Stage(stage_id, self.graph.add_stage())
            self.stages.append(stage)
        return stage

    def stage_of(self, task: int) -> Stage:
        """The stage of a task."""
        return self.stages[self.graph.stage[task]]

    def queue_of(self, task: int) -> ReadyQueue:
        """The queue that a task waits in whenever it is ready."""
        queue = self._queue_of[task]
        assert queue is not None
        return queue

    def make_ready(self, tasks: list[int]) -> None:
        """Queue tasks whose inputs are all done. Barriers are done at once and free more: a list that grows, not recursion."""
        graph, queue_of = self.graph, self._queue_of
        for task in tasks:
            queue = queue_of[task]
            assert queue is not None
            if queue.kind is SpecKind.BARRIER:
                graph.move(task, DONE)
                self.n_unfinished -= 1
                tasks.extend(graph.release_dependants(task))
            else:
                if self._has_learned_memory:
                    queue = self._after_siblings(task)
                graph.move(task, READY)
                self._enqueue(task, queue, False)

    def _enqueue(self, task: int, queue: ReadyQueue, in_front: bool) -> None:
        if queue.kind is not SpecKind.HERE:
            self.queues.push(queue, task, in_front)
            if not queue.shape.n_suitable and not queue.is_grace_timed:
                self.unmet.append(queue)
        elif self.stop_reason is None:
            self.graph.move(task, RUNNING)
            self.out.append(RunHere(TaskId(task)))

    def done(self, task: int) -> None:
        """The task has its output."""
        self.graph.move(task, DONE)
        self.n_unfinished -= 1
        self.n_done += 1
        freed = self.graph.release_dependants(task)
        if freed:
            self.make_ready(freed)

    def again(self, task: int) -> None:
        """A running task goes back: into a queue of another class, if it is to get more memory."""
        self.graph.move(task, READY)
        self._count_retry(task)
        self.n_retries += 1
        queue = self.queue_of(task)
        trouble = self.troubles.get(task)
        if trouble is not None:
            queue = self._queue_of[task] = self._queue_after(trouble, queue)
        if self._has_learned_memory:
            queue = self._after_siblings(task)
        self._enqueue(task, queue, self.policy.prioritize_retry)

    def _queue_after(self, trouble: Trouble, queue: ReadyQueue) -> ReadyQueue:
        """Where a task waits after what happened to it: for more memory, for another rank."""
        shape = queue.shape
        if trouble.memory_bytes is not None and trouble.memory_bytes != shape.memory_bytes:
            shape = self.fleet.shape(shape.cpus, shape.gpus, trouble.memory_bytes, shape.on_scheduler)
        if shape is not queue.shape or trouble.avoid != queue.avoid:
            queue = self.queues.queue(shape, queue.kind, queue.priority, trouble.avoid)
        if trouble.avoid is not None:
            patience = self.policy.avoid_secs if trouble.n_there == 1 else self.policy.avoid_longer_secs
            queue.avoid_until = max(queue.avoid_until, self.now + patience)
        return queue

    # memory

    def learn(self, stage: Stage, attempt: Attempt, elapsed_secs: float, peak_bytes: int) -> None:
        """An attempt succeeded: what it took is what its siblings may take. (Tasks of no node, stage 0, ask for what they like and are no siblings.)"""
        if not stage.id:
            stage.learn(elapsed_secs, peak_bytes, self.policy)
            return
        lane = attempt.lane
        granted = lane.grant.memory_bytes
        trouble = self.troubles.get(attempt.task) if self.troubles else None
        was_raised = lane.shape.at_least > 0 or (trouble is not None and trouble.memory_bytes is not None)
        if was_raised:  # what fills whatever it is given must not raise the grants of its siblings again and again
            peak_bytes = min(peak_bytes, granted)
        stage.learn(elapsed_secs, peak_bytes, self.policy)
        had_run_out = bool(stage.short) and stage.short.pop(attempt.task, None) is not None
        is_over = not was_raised and peak_bytes > granted
        if is_over:
            stage.was_asked(granted)
        if had_run_out or stage.is_review_due() or (is_over and peak_bytes > stage.at_least):
            self._decide_grants(stage, lane.shape)

    def ran_out(self, task: int, granted_bytes: int, limit: int, was_raised: bool) -> None:
        """An attempt took more than it was granted; the next one gets `limit`. Its siblings may fare alike."""
        stage, shape = self.stage_of(task), self.queue_of(task).shape
        if not stage.id:
            return
        if not was_raised and not shape.at_least:
            stage.was_asked(granted_bytes)
        stage.short[task] = limit
        self._decide_grants(stage, shape)

    def _decide_grants(self, stage: Stage, shape: Shape) -> None:
        before = stage.at_least
        stage.decide_first_grant(self.fleet.free_bytes(shape))
        if stage.at_least == before:
            return
        self._has_learned_memory = True
        for queue in list(self.queues.active):
            moving = [
                task
                for task in queue.tasks
                if self.graph.stage[task] == stage.number and self._after_siblings(task) is not queue
            ]
            if moving:
                self.queues.withdraw(queue, set(moving))
                if queue.reserved is not None and not queue.tasks:
                    self.release(queue)
                for task in moving:
                    self._enqueue(task, self.queue_of(task), False)

    def _after_siblings(self, task: int) -> ReadyQueue:
        """The queue of a task by what its siblings taught so far. What it learned itself counts more: then it is left where it is."""
        queue = self.queue_of(task)
        shape, stage = queue.shape, self.stage_of(task)
        trouble = self.troubles.get(task)
        own = trouble is not None and trouble.memory_bytes is not None
        at_least = 0 if own or queue.kind is SpecKind.HERE else stage.at_least
        if at_least != shape.at_least:
            shape = self.fleet.shape(shape.cpus, shape.gpus, shape.memory_bytes, shape.on_scheduler, at_least)
            changed = self.queues.queue(shape, queue.kind, queue.priority, queue.avoid)
            changed.avoid_until = max(changed.avoid_until, queue.avoid_until)
            queue = self._queue_of[task] = changed
        return queue

    def _count_retry(self, task: int) -> None:
        self._retries[task] = self._retries.get(task, 0) + 1

    def next_retry(self, task: int) -> int:
        """The number that the task's next attempt will have, if it is the first or `again` was called."""
        return self._retries.get(task, 0)

    def trouble(self, task: int) -> Trouble:
        """The record of what went wrong with a task."""
        trouble = self.troubles.get(task)
        if trouble is None:
            trouble = self.troubles[task] = Trouble()
        return trouble

    def must_avoid(self, queue: ReadyQueue, rank: RankState) -> bool:
        """Whether the queue's tasks crashed on this rank, and may still hope for another one."""
        return queue.avoid == rank.number and self.now < queue.avoid_until and queue.shape.n_suitable > 1

    # attempts

    def start(self, lane: Lane, queue: ReadyQueue) -> None:
        """Start the queue's next task in the lane, behind what runs there."""
        task = queue.tasks.popleft()
        self.graph.move(task, RUNNING)
        lane.queue = queue
        self._attempt(lane, task, None, False)
        self.queues.took(queue)
        if queue.reserved is not None or queue.is_starving:
            self.release(queue)

    def start_twin(self, lane: Lane, task: int) -> None:
        """Start a second attempt of a running task."""
        self._count_retry(task)
        self.n_twins += 1
        self._attempt(lane, task, self.live[task], True)

    def _attempt(self, lane: Lane, task: int, older: Attempt | None, is_twin: bool) -> None:
        retry = 0
        if self._retries:
            retry = self._retries.get(task, 0)
            older = self.live[task]
        attempt = self.live[task] = Attempt(task, retry, lane, older, is_twin)
        lane.add(attempt)
        if lane.head is attempt:
            self.begin(attempt)
        self.out.append(StartAttempt(lane.rank.number, TaskRuntimeId(TaskId(task), self.epoch, retry), lane.grant))

    def id_of(self, attempt: Attempt) -> TaskRuntimeId:
        """Its name outside."""
        return TaskRuntimeId(TaskId(attempt.task), self.epoch, attempt.retry)

    def begin(self, attempt: Attempt) -> None:
        """It is the head of its lane now: it runs."""
        attempt.since = self.now
        if self._watches_heads and not self._no_twin[attempt.task]:
            self.stages[self.graph.stage[attempt.task]].began(attempt)

    def stop(self, attempt: Attempt, reason: str) -> None:
        """Tell the rank to end it. It is no longer its task's; its place stays taken until the rank says that it is over."""
        attempt.is_stopping = True
        self.out.append(StopAttempt(attempt.lane.rank.number, self.id_of(attempt), reason))

    def find(self, id: TaskRuntimeId, rank: RankState) -> Attempt | None:
        """The attempt of this id, if it is on this rank and not over."""
        if id.epoch != self.epoch:
            return None
        if not 0 < id.id < len(self.live):
            return None
        attempt = self.live[id.id]
        retry = id.retry
        while attempt is not None and attempt.retry != retry:
            attempt = attempt.older
        return attempt if attempt is not None and attempt.lane.rank is rank else None

    def attempts(self, task: int) -> Iterator[Attempt]:
        """Its attempts that are not over, newest first."""
        attempt = self.live[task] if 0 < task < len(self.live) else None
        while attempt is not None:
            yield attempt
            attempt = attempt.older

    def all_attempts(self) -> list[Attempt]:
        """Every attempt that is not over."""
        return [attempt for rank in self.fleet.ranks.values() for lane in rank.lanes for attempt in lane.attempts]

    def has_current(self, task: int) -> bool:
        """Whether an attempt may still bring the task's output."""
        return any(not attempt.is_stopping for attempt in self.attempts(task))

    def detach(self, attempt: Attempt) -> None:
        """The attempt is over: take it from its task and its lane."""
        attempt.is_over = True
        newest = self.live[attempt.task]
        if newest is attempt:
            self.live[attempt.task] = attempt.older
        else:
            while newest is not None and newest.older is not attempt:
                newest = newest.older
            assert newest is not None
            newest.older = attempt.older
        attempt.lane.remove(attempt)

    # reservations

    def reserve(self, rank: RankState) -> None:
        """Keep the rank free for a queue that was passed over for too long."""
        for queue in self.queues.starving:
            if self.fleet.suits(rank, queue.shape) and not self.must_avoid(queue, rank):
                self.queues.stop_starving(queue)
                queue.reserved, rank.reserved_for = rank, queue
                return

    def release(self, queue: ReadyQueue) -> None:
        """The queue needs no rank of its own (any more)."""
        self.queues.stop_starving(queue)
        queue.n_passed = 0
        if queue.reserved is not None:
            rank, queue.reserved = queue.reserved, None
            rank.reserved_for = None
            self.offers.append(rank)

    # time

    def set_alarm(self, when: float, alarm: Alarm, subject: object) -> None:
        """Have `alarm(board, subject)` called by the TimePassed at or after `when`."""
        self._n_alarms += 1
        heappush(self._alarms, (when, self._n_alarms, alarm, subject))

    def next_alarm(self) -> float | None:
        """When TimePassed is wanted at the latest."""
        return self._alarms[0][0] if self._alarms else None

    def ring(self) -> None:
        """Call every alarm whose time has come."""
        while self._alarms and self._alarms[0][0] <= self.now:
            _, _, alarm, subject = heappop(self._alarms)
            alarm(self, subject)

    # invariants

    def check(self) -> None:
        """Raise InvariantBroken if anything contradicts itself; linear in everything, for tests."""
        self.graph.check()
        self.fleet.check()
        self.queues.check()
        self._check_attempts()
        self._check_ready()
        if self.n_unfinished != len(self.graph.unfinished()):
            raise InvariantBroken(f"{self.n_unfinished} tasks are counted as unfinished")
        if self.is_open != bool(self.n_unfinished):
            raise InvariantBroken(
                f"{self.n_unfinished} tasks are unfinished, the job is {'open' if self.is_open else 'closed'}"
            )

    def _check_attempts(self) -> None:
        in_lanes = 0
        for rank in self.fleet.ranks.values():
            for lane in rank.lanes:
                in_lanes += len(lane)
                for attempt in lane.attempts:
                    if attempt.lane is not lane or attempt not in tuple(self.attempts(attempt.task)):
                        raise InvariantBroken(
                            f"attempt {self.id_of(attempt)} is in a lane of rank {rank.number} and not its task's"
                        )
        n_live = 0
        for task in range(len(self.live)):
            for attempt in self.attempts(task):
                n_live += 1
                if attempt.task != task or attempt.is_over or attempt.lane.rank.status is GONE:
                    raise InvariantBroken(f"attempt {self.id_of(attempt)} is over or its rank is gone")
        if n_live != in_lanes:
            raise InvariantBroken(f"{n_live} attempts are live, {in_lanes} are in lanes")
        for task in self.graph.tasks():
            is_running = self.graph.state[task] == RUNNING
            queue = self._queue_of[task]
            if queue is not None and queue.kind is SpecKind.HERE:
                continue
            if is_running != self.has_current(task):
                raise InvariantBroken(f"task {task:06d} and its attempts differ on whether it runs")

    def _check_ready(self) -> None:
        queued = [task for queue in self.queues.all for task in queue.tasks]
        ready = [
            task
            for task in self.graph.tasks()
            if self.graph.state[task] == READY and self.queue_of(task).kind is not SpecKind.HERE
        ]
        if sorted(queued) != ready:
            raise InvariantBroken(f"tasks {ready} are ready, {sorted(queued)} are queued")
        for task in ready:
            queue = self.queue_of(task)
            if self._after_siblings(task) is not queue:
                raise InvariantBroken(f"task {task:06d} is queued for another grant than its siblings taught")
        if self.offers or self.touched:
            raise InvariantBroken("something became free and was not offered")
        if self.stop_reason is not None:
            return
        for queue in self.queues.active:
            for rank in self.fleet.ranks.values():
                if rank.reserved_for is not None or self.must_avoid(queue, rank):
                    continue
                if self.fleet.fits(rank, queue.shape):
                    raise InvariantBroken(
                        f"task {queue.tasks[0]:06d} is ready and fits on rank {rank.number}, which idles"
                    )
