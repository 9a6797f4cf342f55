"""An executor that no MPI launcher started: it finds the scheduler of a job below the data root, and works for it until it is sent home.

scheduler: lease ──▶ {job}/owner (renewed), {job}/queue/{nonce}/000000
executor:  waits for a lease that is alive ──▶ joins {job}/queue/{nonce} ──▶ works ──▶ leaves, for one of
           Shutdown (0), SIGTERM or SIGINT (128 + signal), the scheduler is dead (1)
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import FrameType

from smallpond_mpi.common import SmallpondError
from smallpond_mpi.execution.executor.loop import ExecutorLoop
from smallpond_mpi.execution.executor.sandbox import ForkServer
from smallpond_mpi.execution.lease import PERIOD_SECS, read_owner
from smallpond_mpi.execution.model import SCHEDULER_RANK, Capacity
from smallpond_mpi.execution.paths import JobPaths
from smallpond_mpi.execution.transport.files import FileTransport, inbox_of, read_mark
from smallpond_mpi.execution.worker import work
from smallpond_mpi.forgotten import arrived
from smallpond_mpi.platform import discover
from smallpond_mpi.platform.process import is_dead, sleep_precisely

WAIT_SECS = 3600.0
"""How long an executor waits for a scheduler to begin."""
ENDED_WAIT_SECS = 30.0
"""How long an executor waits for a job that has ended: it may be about to be started again."""
LOOK_SECS = 0.25
CLOSE_SECS = 5.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """The most that an executor may use of what it finds; None: all. For several on one host that nobody has bound to a part of it."""

    cpus: int | None = None
    gpus: int | None = None
    memory_bytes: int | None = None

    def of(self, found: Capacity) -> Capacity:
        """What of this capacity may be used."""
        memory = found.memory_bytes if self.memory_bytes is None else min(found.memory_bytes, self.memory_bytes)
        return replace(
            found,
            cpus=found.cpus[: self.cpus],
            numa_nodes=found.numa_nodes[: self.cpus],
            gpus=found.gpus[: self.gpus],
            memory_bytes=memory,
        )


def serve_job(paths: JobPaths, env: Mapping[str, str], allowance: Allowance, wait_secs: float = WAIT_SECS) -> int:
    """Work for a job, once it is run by a scheduler that executors join by files; the exit code for this process.

    Raises:
        SmallpondError: no scheduler has begun within `wait_secs`.
    """
    arrived()
    asked_to_leave: list[int] = []

    def leave(signum: int, frame: FrameType | None) -> None:
        asked_to_leave.append(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, leave)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Slurm's warning: the scheduler's to answer
    server = ForkServer(env)  # starts while this process waits
    sleep_precisely()
    try:
        transport = _join(paths, wait_secs, lambda: bool(asked_to_leave))
        if transport is None:
            return 128 + asked_to_leave[0]
        me = discover.local_rank(transport.rank, env)
        share = 1.0 if allowance.memory_bytes is not None else discover.memory_share(me.cpus, env)
        found = discover.capacity(transport.rank, (me,), env, world_size=1, memory_share=share)
        executor = ExecutorLoop(
            transport,
            rank=transport.rank,
            peer=SCHEDULER_RANK,
            capacity=allowance.of(found),
            host=socket.gethostname(),
            server=server,
        )
        work(executor, lambda: bool(asked_to_leave))
        transport.close(CLOSE_SECS)
    finally:
        server.close(1.0)
    if asked_to_leave:
        return 128 + asked_to_leave[0]
    if executor.reason:
        sys.stderr.write(
            f"smallpond_mpi: executor {transport.rank} on {socket.gethostname()} leaves: {executor.reason}\n"
        )
        sys.stderr.flush()
        return 1
    return 0


def _join(paths: JobPaths, wait_secs: float, wants_out: Callable[[], bool]) -> FileTransport | None:
    """Take a number in the run of a live scheduler; None if this process is to leave first."""
    while (root := wait_for_run(paths, wait_secs, wants_out)) is not None:
        with contextlib.suppress(FileNotFoundError):  # it ended just now
            return FileTransport.join(root, beat_path=paths.owner)
    return None


def wait_for_run(paths: JobPaths, wait_secs: float, wants_out: Callable[[], bool] = lambda: False) -> str | None:
    """The directory of a live scheduler's run, as soon as there is one; None if this process is to leave first.

    Raises:
        SmallpondError: nobody has begun the job within `wait_secs`; or it has ended, and nobody begins it again.
    """
    began = time.monotonic()
    has_told = False
    while not wants_out():
        root = find_run(paths, wants_out)
        if root is not None:
            return root
        waited = time.monotonic() - began
        if waited > ENDED_WAIT_SECS and os.path.exists(paths.status):
            raise SmallpondError(f"job {paths.job} below {paths.data_root} has ended, {_how_it_ended(paths)}")
        if waited > wait_secs:
            raise SmallpondError(
                f"no scheduler has begun job {paths.job} below {paths.data_root} within {wait_secs:g} seconds: start the script in mode scheduler "
                "with the same --job_id and --data_root"
            )
        if not has_told:
            has_told = True
            sys.stderr.write(f"smallpond_mpi: waiting for the scheduler of job {paths.job} below {paths.data_root}\n")
            sys.stderr.flush()
        time.sleep(LOOK_SECS)
    return None


def _how_it_ended(paths: JobPaths) -> str:
    with open(paths.status) as file:
        status = file.read().strip()
    return "with success" if status == "success" else f"with {status}"


def find_run(paths: JobPaths, wants_out: Callable[[], bool] = lambda: False) -> str | None:
    """The directory of the run that a live scheduler has open; None if there is none now.

    What a dead scheduler left is told from a live one's by its process on this host, by the renewals of its lease on another.
    """
    owner, seen = read_owner(paths.owner)
    if owner is None:
        return None
    root = paths.queue_of(owner.nonce)
    mark = read_mark(inbox_of(root, SCHEDULER_RANK))
    if mark is None:
        return None
    dead = is_dead(mark)
    if dead is not None:
        return None if dead else root
    deadline = time.monotonic() + 2.5 * PERIOD_SECS
    while time.monotonic() < deadline and not wants_out():
        time.sleep(LOOK_SECS)
        if read_owner(paths.owner)[1] != seen:
            return root if os.path.isdir(root) else None
    return None
