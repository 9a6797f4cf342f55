"""How a process finds its place: rank, transport, capacity, fork server; and what it does with it if it isn't rank 0.

A worker's own process imports neither DuckDB nor Arrow nor the user's modules: only its children run tasks.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, NoReturn

from smallpond_mpi.common import SmallpondError
from smallpond_mpi.execution import vigil
from smallpond_mpi.execution.executor.loop import ExecutorLoop
from smallpond_mpi.execution.executor.sandbox import ForkServer
from smallpond_mpi.execution.model import SCHEDULER_RANK, Capacity, Rank
from smallpond_mpi.execution.protocol import Shutdown, encode
from smallpond_mpi.execution.transport import Transport, nap_secs
from smallpond_mpi.execution.transport.local import local_pair
from smallpond_mpi.forgotten import arrived
from smallpond_mpi.platform import discover
from smallpond_mpi.platform.binding import SRUN, launched_by_mpi, launcher_of, refused
from smallpond_mpi.platform.process import sleep_precisely

FINALIZE_SECS = 10.0
TERMINATE_SECS = 20
"""How long a rank outlives srun's SIGTERM. Slurm's SIGKILL comes after KillWait, 30 seconds by default."""


@dataclass
class Place:
    """Where this process stands in the job. `transport` is None without MPI."""

    rank: Rank
    size: int
    host: str
    capacity: Capacity
    server: ForkServer
    transport: Any
    has_served: bool = False  # an earlier job of this process: its ranks are called back for the next
    is_dismissed: bool = False  # the other ranks have been told to leave
    has_left: bool = False
    by_srun: bool = False

    def __post_init__(self) -> None:
        self.ranks = set(map(Rank, range(self.size)))
        """Those that are there for a job, rank 0 among them."""
        self._own: tuple[Transport, ExecutorLoop] | None = None

    def leave_computing_to_others(self) -> None:
        """Executors that join by files may be on this host: what rank 0 runs is only what must run here. Before the first job."""
        self.capacity = replace(self.capacity, cpus=(), gpus=(), numa_nodes=())

    def own_executor(self) -> tuple[Transport, ExecutorLoop]:
        """The executor that rank 0 always has, and the scheduler's way to it. It serves one job after the other."""
        if self._own is None:
            scheduler_end, executor_end = local_pair()
            executor = ExecutorLoop(
                executor_end,
                rank=SCHEDULER_RANK,
                peer=SCHEDULER_RANK,
                capacity=self.capacity,
                host=self.host,
                server=self.server,
            )
            self._own = scheduler_end, executor
        return self._own

    def serve(self) -> NoReturn:
        """Run tasks for rank 0 until it says that the session is over, then leave the process."""
        # Ctrl-C and Slurm's warning reach every rank: rank 0 answers for all. A SIGTERM ends this rank alone; its fork server sees that and kills the
        # children. But srun's goes to all ranks, and rank 0 is to end the job in order with those it has.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _end_soon if self.by_srun else signal.SIG_DFL)
        executor = ExecutorLoop(
            self.transport,
            rank=self.rank,
            peer=SCHEDULER_RANK,
            capacity=self.capacity,
            host=self.host,
            server=self.server,
            watched_parent=os.getppid(),
        )
        try:
            work(executor)
        except Exception:  # noqa: BLE001 rank 0 has been told and ends the job, with the traceback
            if not executor.reason:  # no, it could not be
                self._abort(f"met an error of its own:\n{traceback.format_exc()}")
        else:
            if executor.reason:
                self._abort(f"leaves: {executor.reason}\n")
        _flush()
        self.transport.finalize(FINALIZE_SECS)
        self.transport.leave(0)
        os._exit(0)

    def _abort(self, reason: str) -> None:
        """End the whole job: there is no rank 0 that would."""
        sys.stderr.write(f"smallpond_mpi: rank {self.rank} on {self.host} {reason}")
        _flush()
        self.transport.abort(1)

    def dismiss(self) -> None:
        """Tell the other ranks, unless a job did so at its end, that there will be no (other) job: they are serving already."""
        if not self.is_dismissed:
            self.is_dismissed = True
            for number in range(self.size):  # those that a job had given up too: they are there, or may wake up
                if number != SCHEDULER_RANK:
                    self.transport.send(Rank(number), encode([Shutdown()]))

    def leave(self, exit_code_if_stuck: int = 0) -> None:
        """Rank 0's way out: its children go, MPI is finalized."""
        self.has_left = True
        if self._own is not None:
            self._own[1].close()
        self.server.close(1.0)
        if self.transport is None:
            return
        _flush()
        self.transport.finalize(FINALIZE_SECS, exit_code_if_stuck)


def _end_soon(signum: int, frame: FrameType | None) -> None:
    """Leave it to rank 0 to end the job. Should it not, the kernel ends this rank."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(TERMINATE_SECS)


def work(executor: ExecutorLoop, wants_out: Callable[[], bool] = lambda: False) -> None:
    """Run what rank 0 sends until the executor has finished, or somebody wants it to."""
    try:
        last_news = time.monotonic()
        while not executor.finished and not wants_out():
            if executor.step(0.0):
                last_news = time.monotonic()
                continue
            executor.nap(nap_secs(time.monotonic() - last_news))
    finally:
        executor.close()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def arrive(env: Mapping[str, str]) -> Place:
    """Start what this process needs, in the order that MPI dictates, and find out where it stands.

    Without any launcher's variable MPI is never touched: a machine that has no MPI library runs the script all the same.

    Raises:
        SmallpondError: the launcher started several processes, but they don't see each other; or it can't start those that the job is meant to have.
    """
    arrived()
    if refused(env):
        raise SmallpondError(refused(env))
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # of a rank that has no script: it must not die of a warning
    server = ForkServer(env)
    sleep_precisely()
    try:
        if launched_by_mpi(env):
            from smallpond_mpi.execution.transport.mpi import start  # a machine without MPI must get by without it

            with vigil.over_start(env):
                transport, world = start(env)
            by_srun = launcher_of(env) == SRUN
            return Place(world.rank, world.size, world.host, world.capacity, server, transport, by_srun=by_srun)
        me = discover.local_rank(SCHEDULER_RANK, env)
        capacity = discover.capacity(SCHEDULER_RANK, (me,), env, world_size=1)
        return Place(SCHEDULER_RANK, 1, socket.gethostname(), capacity, server, None)
    except BaseException:
        server.close(1.0)
        raise
