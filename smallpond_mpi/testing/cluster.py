"""A whole cluster in one process, on a virtual clock: the real scheduler core, a loop like the real one, simulated executors and network.

    SimCluster ── events ──▶ SchedulerCore ── commands ──▶ SimCluster ── frames ──▶ Network ──▶ SimExecutor (one a rank)
        ▲                                                                                            │
        └──────────────────────── frames (Joined, Alive, Ended), as bytes, delayed ──────────────────┘

Everything random comes from one seed. The cluster holds the core to its promises as it goes (`check` after each event, one accepted
attempt a task, inputs before dependants) and records the events, which `replay` gives to a fresh core.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random

from smallpond_mpi.execution.model import (
    SCHEDULER_RANK,
    Capacity,
    FailureKind,
    Rank,
    SpecKind,
    TaskId,
    TaskRuntimeId,
    TaskSpec,
)
from smallpond_mpi.execution.protocol import Alive, Ended, Heard, Joined, Message, Reset, RunTask, StopTask, Welcome
from smallpond_mpi.execution.scheduler import commands as cmd
from smallpond_mpi.execution.scheduler import events as ev
from smallpond_mpi.execution.scheduler import trace
from smallpond_mpi.execution.scheduler.core import Policy, SchedulerCore
from smallpond_mpi.testing.executor import SimExecutor
from smallpond_mpi.testing.faults import Faults, Pause, RankFault, RankFaultKind
from smallpond_mpi.testing.network import Clock, Network

NO_FAULTS = Faults()
DEFAULT_POLICY = Policy()


class SimulationStuck(AssertionError):
    """The simulated job did not come to an end, or the core broke a promise."""


def replay(
    events: Iterable[tuple[ev.Event, float]], *, epoch: int = 0, policy: Policy = DEFAULT_POLICY, check: bool = False
) -> list[cmd.Command]:
    """What a fresh core commands when it goes through these events (`trace.read` reads them from a file)."""
    core = SchedulerCore(epoch=epoch, policy=policy)
    out: list[cmd.Command] = []
    for event, now in events:
        out += core.handle(event, now)
        if check:
            core.check()
    return out


def _one_second(attempt: TaskRuntimeId, rng: Random) -> float:
    return 1.0


def _little(attempt: TaskRuntimeId) -> int:
    return 0


class SimCluster:
    """Ranks of these capacities, number 0 being the scheduler's own executor.

    `duration` says how many seconds an attempt takes, `need_bytes` with how much memory it gets by (less, and it ends as out of memory).
    `joins_at` gives the time at which a rank joins, for those that don't at once. With `check_every` of n the core checks itself after
    every n-th event (0: never).
    """

    def __init__(
        self,
        capacities: Sequence[Capacity],
        *,
        seed: int,
        policy: Policy = DEFAULT_POLICY,
        epoch: int = 0,
        faults: Faults = NO_FAULTS,
        rank_faults: Sequence[RankFault] = (),
        pauses: Sequence[Pause] = (),
        joins_at: dict[Rank, float] | None = None,
        duration: Callable[[TaskRuntimeId, Random], float] = _one_second,
        need_bytes: Callable[[TaskRuntimeId], int] = _little,
        local_failure: Callable[[TaskId, int], FailureKind | None] = lambda task, run: None,
        max_delay_secs: float = 0.005,
        heartbeat_secs: float = 5.0,
        check_every: int = 1,
    ) -> None:
        self.seed = seed
        self.policy = policy
        self.clock = Clock()
        self.core = SchedulerCore(epoch=epoch, policy=policy)
        self.trace: list[tuple[ev.Event, float]] = []
        self.commands: list[cmd.Command] = []
        self.accepted: dict[TaskId, TaskRuntimeId] = {}
        self.done: dict[TaskId, None] = {}
        self.started: dict[TaskRuntimeId, cmd.StartAttempt] = {}
        self.n_started: dict[TaskId, int] = {}
        self.finished: cmd.FinishJob | None = None
        self._epoch = epoch
        self._specs: dict[TaskId, TaskSpec] = {}
        self._local_failure = local_failure
        self._local_runs: dict[TaskId, int] = {}
        self._heartbeat_secs = heartbeat_secs
        self._check_every = check_every
        self._paused_until = 0.0
        self._inbox: list[tuple[Rank, list[Message]]] = []
        self._wakes_at = float("inf")
        rng = Random(seed)
        self.network = Network(self.clock, Random(rng.random()), max_delay_secs)
        self.executors = {
            Rank(number): self._executor(Rank(number), capacity, Random(rng.random()), faults, duration, need_bytes)
            for number, capacity in enumerate(capacities)
        }
        for number, executor in self.executors.items():
            self.clock.at((joins_at or {}).get(number, 0.0), executor.join)
        for fault in rank_faults:
            self._plan(fault)
        for pause in pauses:
            self.clock.at(pause.at, lambda pause=pause: self._pause(pause.secs))  # type: ignore[misc]

    def _executor(
        self,
        rank: Rank,
        capacity: Capacity,
        rng: Random,
        faults: Faults,
        duration: Callable[[TaskRuntimeId, Random], float],
        need_bytes: Callable[[TaskRuntimeId], int],
    ) -> SimExecutor:
        return SimExecutor(
            rank,
            capacity,
            clock=self.clock,
            rng=rng,
            faults=faults,
            duration=duration,
            need_bytes=need_bytes,
            send=lambda messages: self.network.send(
                rank, SCHEDULER_RANK, messages, lambda came: self._receive(rank, came)
            ),
        )

    # what a test calls

    def submit(self, specs: Sequence[TaskSpec], done: Sequence[TaskId] = ()) -> None:
        """Give the core more tasks."""
        self.finished = None
        self._specs.update((spec.id, spec) for spec in specs)
        self.done.update((task, None) for task in done)
        self._handle(ev.JobSubmitted(tuple(specs), tuple(done)))

    def handle(self, event: ev.Event) -> None:
        """Give the core an event of the test's own making."""
        self._handle(event)

    def run(self, *, until: float = 1e5, max_steps: int = 10_000_000) -> cmd.FinishJob:
        """Let time pass until the job comes to its end; raises SimulationStuck, with what the core says of it, if it never does."""
        for _ in range(max_steps):
            if self.finished is not None:
                return self.finished
            if self.clock.now > until or not self.clock.step():
                break
        raise self._stuck("the job did not end")

    def run_for(self, secs: float) -> None:
        """Let so much time pass."""
        end = self.clock.now + secs
        is_over: list[bool] = []
        self.clock.at(end, lambda: is_over.append(True))
        while not is_over:
            self.clock.step()

    def run_job(self, specs: Sequence[TaskSpec], done: Sequence[TaskId] = ()) -> cmd.FinishJob:
        """Submit and run."""
        self.submit(specs, done)
        return self.run()

    def save_trace(self, path: Path) -> None:
        """Write the events so far, one JSON line each."""
        path.write_text("".join(trace.to_line(event, now) + "\n" for event, now in self.trace))

    # the loop

    def _receive(self, source: Rank, messages: list[Message]) -> None:
        if self.clock.now < self._paused_until:
            self._inbox.append((source, messages))
            return
        outbox: dict[Rank, list[Message]] = {}
        for message in messages:
            match message:
                case Joined(_, _, capacity):
                    welcome = Welcome(self._epoch, b"", "", self._heartbeat_secs)
                    outbox.setdefault(source, []).append(welcome)
                    self._take(ev.RankJoined(source, message.host, capacity), outbox)
                case Alive():
                    outbox.setdefault(source, []).append(Heard())
                    self._take(ev.RankReported(source), outbox)
                case Ended():
                    kind = message.failure.kind if message.failure is not None else None
                    reason = message.failure.message if message.failure is not None else ""
                    ended = ev.AttemptEnded(
                        source, message.attempt, kind, message.elapsed_secs, message.peak_memory_bytes, reason
                    )
                    self._take(ended, outbox)
                case _:
                    raise AssertionError(f"rank {source} sent {message}")
        self._send(outbox)

    def _handle(self, event: ev.Event) -> None:
        outbox: dict[Rank, list[Message]] = {}
        self._take(event, outbox)
        self._send(outbox)

    def _take(self, event: ev.Event, outbox: dict[Rank, list[Message]]) -> None:
        """Give the core an event and carry out what it says; RunHere leads to more events, one after the other."""
        todo: list[ev.Event] = [event]
        for event in todo:  # grows while it is read
            self.trace.append((event, self.clock.now))
            out = self.core.handle(event, self.clock.now)
            self.commands += out
            if self._check_every and len(self.trace) % self._check_every == 0:
                self._check(event)
            for command in out:
                self._carry_out(command, event, outbox, todo)
        self._set_wake()

    def _check(self, event: ev.Event) -> None:
        try:
            self.core.check()
        except AssertionError as error:
            raise SimulationStuck(f"seed {self.seed}, event {len(self.trace)}, {event}: {error}") from error

    def _carry_out(
        self, command: cmd.Command, event: ev.Event, outbox: dict[Rank, list[Message]], todo: list[ev.Event]
    ) -> None:
        match command:
            case cmd.StartAttempt(rank, attempt, grant):
                self._promise_kept_by_start(command)
                outbox.setdefault(rank, []).append(RunTask(attempt, grant, b"", b""))
            case cmd.StopAttempt(rank, attempt, _):
                outbox.setdefault(rank, []).append(StopTask(attempt))
            case cmd.RunHere(task):
                runs = self._local_runs[task] = self._local_runs.get(task, 0) + 1
                failure = self._local_failure(task, runs)
                if failure is None and self.finished is None:
                    self._is_done(task)
                todo.append(ev.LocalRunEnded(task, failure))
            case cmd.AcceptAttempt(attempt):
                self._promise_kept_by_accept(attempt, event)
            case cmd.DiscardAttempt(attempt):
                if self.accepted.get(attempt.id) == attempt:
                    raise self._stuck(f"{attempt} was discarded after it was accepted")
            case cmd.StopRank(rank, _):
                outbox.setdefault(rank, []).append(Reset())
            case cmd.FinishJob():
                if self.finished is not None:
                    raise self._stuck("the job was finished twice")
                self.finished = command

    def _send(self, outbox: dict[Rank, list[Message]]) -> None:
        for rank, messages in outbox.items():
            self.network.send(SCHEDULER_RANK, rank, messages, self.executors[rank].receive)

    def _set_wake(self) -> None:
        deadline = self.core.next_deadline()
        if deadline is not None and deadline < self._wakes_at:
            self._wakes_at = deadline
            self.clock.at(deadline, self._wake)

    def _wake(self) -> None:
        if self.clock.now < self._paused_until:
            return  # the end of the pause looks at the deadline
        self._wakes_at = float("inf")
        deadline = self.core.next_deadline()
        if deadline is not None and deadline <= self.clock.now:
            self._handle(ev.TimePassed())
        self._set_wake()

    # the world

    def _plan(self, fault: RankFault) -> None:
        if fault.rank == SCHEDULER_RANK:
            raise ValueError(f"rank 0 is the scheduler: it can't suffer {fault}")
        executor = self.executors[fault.rank]

        def strike() -> None:
            match fault.kind:
                case RankFaultKind.DIES:
                    executor.die()
                    self.clock.after(fault.secs, lambda: self._peer_gone(fault.rank))
                case RankFaultKind.VANISHES:
                    executor.die()
                case RankFaultKind.CUT_OFF:
                    self.network.cut_off(fault.rank, self.clock.now + fault.secs)
                case RankFaultKind.FREEZES:
                    executor.frozen_until = max(executor.frozen_until, self.clock.now + fault.secs)

        self.clock.at(fault.at, strike)

    def _peer_gone(self, rank: Rank) -> None:
        if self.clock.now < self._paused_until:
            self.clock.at(self._paused_until, lambda: self._peer_gone(rank))
        else:
            self._handle(ev.RankLost(rank, "simulated death"))

    def _pause(self, secs: float) -> None:
        self._paused_until = max(self._paused_until, self.clock.now + secs)
        self.clock.at(self._paused_until, self._resume)

    def _resume(self) -> None:
        if self.clock.now < self._paused_until:
            return
        inbox, self._inbox = self._inbox, []
        for source, messages in inbox:
            self._receive(source, messages)
        self._handle(ev.PollingResumed())
        self._wakes_at = float("inf")
        self._set_wake()

    # promises

    def _promise_kept_by_start(self, start: cmd.StartAttempt) -> None:
        task = start.attempt.id
        if start.attempt in self.started:
            raise self._stuck(f"{start.attempt} was started twice")
        self.started[start.attempt] = start
        self.n_started[task] = self.n_started.get(task, 0) + 1
        if task in self.done:
            raise self._stuck(f"{start.attempt} was started although its task is done")
        missing = [dep for dep in self._specs[task].deps if not self._is_made(dep)]
        if missing:
            raise self._stuck(f"{start.attempt} was started before its inputs {missing}")
        if self._specs[task].kind is SpecKind.SCHEDULER_CHILD and start.rank != SCHEDULER_RANK:
            raise self._stuck(f"{start.attempt} was started on rank {start.rank}")

    def _promise_kept_by_accept(self, attempt: TaskRuntimeId, event: ev.Event) -> None:
        if not isinstance(event, ev.AttemptEnded) or event.attempt != attempt or event.failure is not None:
            raise self._stuck(f"{attempt} was accepted by {event}")
        if attempt not in self.executors[event.rank].succeeded:
            raise self._stuck(f"{attempt} was accepted and has not succeeded on rank {event.rank}")
        if attempt.id in self.accepted:
            raise self._stuck(f"{attempt} was accepted after {self.accepted[attempt.id]}")
        self.accepted[attempt.id] = attempt
        self._is_done(attempt.id)

    def _is_done(self, task: TaskId) -> None:
        if task in self.done:
            raise self._stuck(f"task {task} was done twice")
        self.done[task] = None

    def _is_made(self, task: TaskId) -> bool:
        """Done, or a barrier of which everything behind it is."""
        todo, seen = [task], {task}
        while todo:
            behind = todo.pop()
            if behind in self.done:
                continue
            spec = self._specs.get(behind)
            if spec is None or spec.kind is not SpecKind.BARRIER:
                return False
            new = [dep for dep in spec.deps if dep not in seen]
            seen.update(new)
            todo += new
        self.done[task] = None
        return True

    def _stuck(self, what: str) -> SimulationStuck:
        unfinished = [task for task in self._specs if task not in self.done][:5]
        stories = "\n".join(self.core.explain(task) for task in unfinished)
        return SimulationStuck(
            f"seed {self.seed}, at {self.clock.now:.3f} s, after {len(self.trace)} events: {what}\n{stories}"
        )
