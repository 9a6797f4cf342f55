"""The executor of a simulated rank: obeys grants, in virtual time, and refuses any that its capacity doesn't have.

Attempts whose grant is taken wait in the order in which they came, as in the real one. Two different grants may not overlap: the
scheduler promised that, and this is where it is held to it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from smallpond_mpi.execution.model import Capacity, Failure, FailureKind, Grant, Rank, TaskRuntimeId
from smallpond_mpi.execution.protocol import (
    Alive,
    Ended,
    Heard,
    Joined,
    Message,
    Reset,
    RunTask,
    Shutdown,
    StopTask,
    Welcome,
)
from smallpond_mpi.testing.faults import Faults
from smallpond_mpi.testing.network import Clock

KILL_SECS = 0.02


class GrantRefused(AssertionError):
    """A grant exceeds what the rank has, or overlaps another."""


@dataclass(slots=True)
class _Work:
    run: RunTask
    arrived_at: float
    began_at: float | None = None
    is_over: bool = False
    is_killed: bool = False


class SimExecutor:
    """One rank's executor."""

    def __init__(
        self,
        rank: Rank,
        capacity: Capacity,
        *,
        clock: Clock,
        rng: Random,
        faults: Faults,
        duration: Callable[[TaskRuntimeId, Random], float],
        need_bytes: Callable[[TaskRuntimeId], int],
        send: Callable[[list[Message]], None],
    ) -> None:
        self.rank = rank
        self.capacity = capacity
        self.is_dead = False
        self.frozen_until = 0.0
        self.succeeded: dict[TaskRuntimeId, None] = {}
        self._clock = clock
        self._rng = rng
        self._faults = faults
        self._duration = duration
        self._need_bytes = need_bytes
        self._send = send
        self._works: dict[TaskRuntimeId, _Work] = {}  # in order of arrival
        self._heartbeat_secs = 0.0
        self._is_heard = True

    def join(self) -> None:
        """Say that this rank is ready."""
        self._send([Joined(f"node{self.rank}", 1000 + self.rank, self.capacity)])

    def receive(self, messages: list[Message]) -> None:
        """A frame of rank 0 has come."""
        if self.is_dead:
            return
        if self._clock.now < self.frozen_until:
            self._clock.at(self.frozen_until, lambda: self.receive(messages))
            return
        for message in messages:
            match message:
                case Welcome():
                    if not self._heartbeat_secs:
                        self._heartbeat_secs = message.heartbeat_secs
                        self._clock.after(self._heartbeat_secs * (0.5 + self._rng.random() / 2), self._beat)
                    self._is_heard = True
                case Heard():
                    self._is_heard = True
                case RunTask():
                    self._take(message)
                case StopTask(attempt):
                    self._stop(attempt)
                case Reset():
                    self._works_are_over()
                    self.join()
                case Shutdown():
                    self._works_are_over()
                    self.is_dead = True
                case _:
                    raise AssertionError(f"an executor was sent {message}")
        self._advance()

    def die(self) -> None:
        """The process is gone, and its children with it."""
        self.is_dead = True
        self._works_are_over()

    def _works_are_over(self) -> None:
        for work in self._works.values():
            work.is_over = True
        self._works.clear()

    def _beat(self) -> None:
        if self.is_dead:
            return
        if self._is_heard and self._clock.now >= self.frozen_until:
            self._is_heard = False
            self._send([Alive()])
        self._clock.after(self._heartbeat_secs, self._beat)

    def _take(self, run: RunTask) -> None:
        if run.attempt in self._works:
            raise GrantRefused(f"rank {self.rank} was told to start {run.attempt} twice")
        self._refuse_if_wrong(run.grant)
        self._works[run.attempt] = _Work(run, self._clock.now)

    def _refuse_if_wrong(self, grant: Grant) -> None:
        capacity = self.capacity
        if len(set(grant.cpus)) < len(grant.cpus) or not set(grant.cpus) <= set(capacity.cpus):
            raise GrantRefused(f"rank {self.rank} has no CPUs {grant.cpus}, only {capacity.cpus}")
        here = list(dict.fromkeys(work.run.grant for work in self._works.values() if not work.is_over))
        if grant not in here:
            here.append(grant)
        cpus = [cpu for other in here for cpu in other.cpus]
        if len(set(cpus)) < len(cpus):
            raise GrantRefused(f"rank {self.rank}: grants {here} share CPUs")
        if sum(other.memory_bytes for other in here) > capacity.memory_bytes:
            raise GrantRefused(f"rank {self.rank}: grants {here} exceed {capacity.memory_bytes:,} bytes of memory")
        for index in {index for other in here for index, _ in other.gpus}:
            quota = sum(quota for other in here for number, quota in other.gpus if number == index)
            if not 0 <= index < len(capacity.gpus) or quota > 1.0 + 1e-9:
                raise GrantRefused(f"rank {self.rank}: GPU {index} is granted {quota} times")

    def _advance(self) -> None:
        """Begin what has its grant free; nobody overtakes one that waits for the same."""
        if self.is_dead:
            return
        taken: set[Grant] = set()
        for work in list(self._works.values()):
            grant = work.run.grant
            if work.began_at is None and grant not in taken:
                self._begin(work)
            taken.add(grant)

    def _begin(self, work: _Work) -> None:
        attempt = work.run.attempt
        work.began_at = self._clock.now
        secs = self._duration(attempt, self._rng)
        fate = self._faults.fate(self._rng.random())
        if fate == "slow":
            secs *= self._faults.slow_factor
            fate = None
        if fate is None and work.run.grant.memory_bytes < self._need_bytes(attempt):
            fate = FailureKind.OUT_OF_MEMORY
        if fate is not None:
            secs *= self._rng.random()
        kind = fate if isinstance(fate, FailureKind) else None
        self._clock.after(0.0 if kind is FailureKind.NOT_STARTED else secs, lambda: self._end(work, kind))

    def _end(self, work: _Work, kind: FailureKind | None) -> None:
        if work.is_over or (work.is_killed and kind is not FailureKind.STOPPED):
            return
        if self._clock.now < self.frozen_until:
            self._clock.after(self.frozen_until - self._clock.now, lambda: self._end(work, kind))
            return
        attempt = work.run.attempt
        work.is_over = True
        del self._works[attempt]
        if kind is None:
            self.succeeded[attempt] = None
        began_at = self._clock.now if work.began_at is None else work.began_at
        failure = None if kind is None else Failure(kind, kind.name, f"simulated {kind.value}", rank=self.rank)
        elapsed_secs = self._clock.now - began_at
        waited_secs = began_at - work.arrived_at
        peak_bytes = self._need_bytes(attempt) if kind is None else 0
        state = b"" if kind is None else None
        self._send([Ended(attempt, state, failure, waited_secs, 0.0, elapsed_secs, peak_bytes)])
        self._advance()

    def _stop(self, attempt: TaskRuntimeId) -> None:
        work = self._works.get(attempt)
        if work is None or work.is_killed:
            return
        if work.began_at is None:
            self._end(work, FailureKind.STOPPED)
            return
        work.is_killed = True
        self._clock.after(KILL_SECS * self._rng.random(), lambda: self._end(work, FailureKind.STOPPED))
