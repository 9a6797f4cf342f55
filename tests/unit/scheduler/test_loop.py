"""Rank 0's loop on a virtual clock: the real core, ledger and journal; the ranks are played, and a file system that takes its time."""

import datetime
import heapq
import itertools
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from smallpond_mpi.common import GB
from smallpond_mpi.execution.context import JobId, RuntimeContext
from smallpond_mpi.execution.journal import Journal, Restored
from smallpond_mpi.execution.model import Rank, TaskRuntimeId, WorkStatus
from smallpond_mpi.execution.protocol import (
    Alive,
    Ended,
    Joined,
    Message,
    Reset,
    RunTask,
    Shutdown,
    Welcome,
    decode,
    encode,
)
from smallpond_mpi.execution.scheduler.core import SchedulerCore
from smallpond_mpi.execution.scheduler.ledger import Ledger
from smallpond_mpi.execution.scheduler.loop import SchedulerLoop
from smallpond_mpi.execution.scheduler.observe import Observer
from smallpond_mpi.execution.scheduler.policy import Policy
from smallpond_mpi.execution.task.base import Task
from smallpond_mpi.execution.task.partition_info import PartitionInfo
from smallpond_mpi.execution.transport import Received
from smallpond_mpi.testing import rank

POLICY = Policy(late_secs=15.0, gone_secs=60.0)
BEAT_SECS = 5.0
WORK_SECS = 1.0
LONG_SECS = 3 * POLICY.gone_secs


class Work(Task):
    """A child's task."""

    def __init__(self, ctx: RuntimeContext, number: int) -> None:
        super().__init__(ctx, [], [PartitionInfo(number, 1000)])
        self._cpu_limit = 1
        self._memory_limit = GB


class Ranks:
    """The ranks, rank 0's executor among them, as both ends of rank 0's transports. They live on while rank 0 does something else."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.now = 0.0
        self.told: dict[Rank, list[Message]] = {Rank(number): [] for number in numbers}
        self.silent: set[int] = set()  # from now on
        self._numbers = itertools.count()
        self._coming: list[tuple[float, int, Rank, Message]] = []
        for number in self.told:
            self._say(0.0, number, self._joined(number))
            for beat in range(1, 200):
                self._say(beat * BEAT_SECS, number, Alive())

    def _joined(self, number: Rank) -> Joined:
        version = f"{sys.version_info.major}.{sys.version_info.minor}.0"
        return Joined("host", 1, rank(cpus=int(number != 0), memory_bytes=4 * GB), version)

    def _say(self, when: float, number: Rank, message: Message) -> None:
        heapq.heappush(self._coming, (when, next(self._numbers), number, message))

    def clock(self) -> float:
        return self.now

    # as a transport

    def poll(self) -> list[Received]:
        came = []
        while self._coming and self._coming[0][0] <= self.now:
            _, _, number, message = heapq.heappop(self._coming)
            if number not in self.silent:
                came.append(Received(number, encode([message])))
        return came

    def send(self, dest: Rank, frame: bytes) -> None:
        for message in decode(frame):
            self.told[dest].append(message)
            if isinstance(message, RunTask):
                state = pickle.dumps({"status": WorkStatus.SUCCEED, "_output_files": []})
                ended = Ended(message.attempt, state, None, 0.0, 0.0, WORK_SECS, 0)
                self._say(self.now + WORK_SECS * dest, dest, ended)
            if isinstance(message, Reset):
                self._say(self.now + 0.001, dest, self._joined(dest))

    def close(self, deadline_secs: float) -> None:
        pass


class Remote:
    """The way to the other ranks. What any of them says comes over the other transport, in the order of time."""

    def __init__(self, ranks: Ranks) -> None:
        self.send, self.close = ranks.send, ranks.close

    def poll(self) -> list[Received]:
        return []


class Executor:
    """Rank 0's, which has no CPUs; its sleep is what makes time pass."""

    finished, reason, capacity = False, "", rank(cpus=1, memory_bytes=4 * GB)

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def step(self, timeout_secs: float) -> bool:
        return False

    def nap(self, secs: float) -> None:
        self._ranks.now += max(secs, 0.01)

    def close(self) -> None:
        pass


class SlowLedger(Ledger):
    """To accept an output takes as long as the file system does: `takes` seconds each, in order."""

    takes: list[float] = []
    ranks: Ranks

    def accept(self, task: Task, attempt: TaskRuntimeId, state: bytes) -> None:
        super().accept(task, attempt, state)
        self.ranks.now += self.takes.pop(0) if self.takes else 0.0


class Desk:
    """A loop with rank 0 and two others, which have a CPU each."""

    def __init__(self, place: Path) -> None:
        self.ctx = RuntimeContext(JobId.new(), datetime.datetime(2026, 1, 1), str(place), random_seed=1)
        self.ctx.initialize("test")
        self.ranks = Ranks([0, 1, 2])
        self.ledger = SlowLedger(self.ctx, Journal(self.ctx.paths, 0), Restored(), self.ranks.clock)
        self.ledger.ranks = self.ranks
        self.core = SchedulerCore(epoch=0, policy=POLICY)
        self.loop = SchedulerLoop(
            self.ctx,
            self.core,
            welcome=Welcome(0, b"", "", BEAT_SECS),
            ledger=self.ledger,
            local=self.ranks,
            executor=Executor(self.ranks),  # type: ignore[arg-type] # all that the loop calls of one
            remote=Remote(self.ranks),
            observer=Observer(),
            clock=self.ranks.clock,
        )
        self.loop.wait_for_ranks(3, 10.0)

    def run(self, count: int) -> list[Task]:
        tasks: list[Task] = [Work(self.ctx, number) for number in range(count)]
        self.loop.run(tasks)
        return tasks

    def pass_time(self, secs: float) -> None:
        """Rank 0 listens."""
        self.loop.wait_for_ranks(99, secs)

    def told(self, kind: type[Message]) -> list[int]:
        """Which ranks were told so, each as often as it was."""
        return [number for number, messages in self.ranks.told.items() for said in messages if isinstance(said, kind)]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_step_of_rank_0_that_takes_long_makes_no_rank_silent(desk: Desk) -> None:
    """The output of rank 1 takes minutes to be accepted, while rank 2 is at work and says so."""
    desk.ledger.takes = [LONG_SECS]
    tasks = desk.run(2)
    assert all(task.is_done for task in tasks)
    assert desk.told(Reset) == []
    assert len(desk.told(RunTask)) == 2, "an attempt was started anew"
    assert desk.core.n_retries == 0
    assert {desk.core.rank_status(Rank(number)) for number in range(3)} == {"joined"}


def test_a_last_step_that_takes_long_leaves_no_rank_untold(desk: Desk) -> None:
    desk.ledger.takes = [0.0, LONG_SECS]
    desk.run(2)
    assert desk.told(Reset) == []
    desk.loop.shut_down()
    assert desk.told(Shutdown) == [0, 1, 2]


def test_a_rank_is_silent_while_rank_0_listens(desk: Desk) -> None:
    desk.ranks.silent.add(2)
    desk.pass_time(POLICY.gone_secs / 2)
    assert desk.core.rank_status(Rank(2)) == "late"
    desk.pass_time(POLICY.gone_secs)
    assert desk.core.rank_status(Rank(2)) == "gone"
    assert desk.told(Reset) == [2]


def test_a_rank_that_was_given_up_is_told_of_the_end(desk: Desk) -> None:
    """It may have woken up since, or be about to; who leaves waits for it."""
    desk.ranks.silent.add(2)
    desk.pass_time(2 * POLICY.gone_secs)
    desk.loop.shut_down()
    assert desk.told(Shutdown) == [0, 1, 2]


def test_a_rank_that_was_given_up_is_called_back_and_not_waited_for(desk: Desk) -> None:
    desk.ranks.silent.add(2)
    desk.pass_time(2 * POLICY.gone_secs)
    began = desk.ranks.now
    assert desk.loop.release() == {0, 1}
    assert desk.ranks.now - began < 1.0
    assert desk.told(Reset) == [0, 1, 2, 2]


def test_a_rank_that_was_given_up_and_is_awake_again_waits_for_another_job(desk: Desk) -> None:
    desk.ranks.silent.add(2)
    desk.pass_time(2 * POLICY.gone_secs)
    desk.ranks.silent.clear()
    desk.pass_time(1.0)
    assert desk.loop.release() == {0, 1, 2}
