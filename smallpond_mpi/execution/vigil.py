"""A rank that dies before MPI has started would leave the others waiting in MPI_Init: under `mpirun --with-ft ulfm` the launcher goes on without it.

While MPI_Init waits it holds the interpreter, so the watch is a process of its own. It sees the ranks of its own node, which is where it can end the launch.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from typing import NoReturn

from smallpond_mpi.platform.binding import launched_rank
from smallpond_mpi.platform.process import children_of, parent_of

OPEN_MPI_RANK = b"OMPI_COMM_WORLD_RANK="
POLL_SECS = 0.5
GRACE_SECS = 5.0
"""The launcher may not have started all yet; or all have met, one was quick, and the watch over this rank ends in a moment."""


def ranks_here(env: Mapping[str, str]) -> int:
    """How many ranks the launcher put on this node, if it lets the others live when one dies (Open MPI's `--with-ft ulfm`); else 0."""
    count = env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    return int(count) if count.isdigit() and env.get("OMPI_MCA_mpi_ft_enable") == "1" else 0


@contextlib.contextmanager
def over_start(env: Mapping[str, str]) -> Iterator[None]:
    """Within this, the death of a rank of this node ends the launch with a sentence instead of leaving this one to wait."""
    if ranks_here(env) < 2:
        yield
        return
    rank_pid = os.getpid()
    watch = os.fork()
    if watch == 0:
        _watch(rank_pid, ranks_here(env), launched_rank(env))
    try:
        yield
    finally:
        os.kill(watch, signal.SIGKILL)
        os.waitpid(watch, 0)


def _watch(rank_pid: int, n_ranks: int, rank: int | None) -> NoReturn:
    """In the forked process: neither the script's handlers nor its exit functions are to run here."""
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        launcher = _launcher_above(rank_pid)
        last_complete = time.monotonic()
        while os.getppid() == rank_pid:
            if sum(map(_is_rank, children_of(launcher))) >= n_ranks:
                last_complete = time.monotonic()
            elif time.monotonic() - last_complete > GRACE_SECS:
                os.write(2, _sentence(rank).encode())
                os.kill(launcher, signal.SIGTERM)
                break
            time.sleep(POLL_SECS)
    finally:
        os._exit(0)


def _launcher_above(pid: int) -> int:
    """The nearest ancestor that is no rank: there may be shells and wrappers between it and the script."""
    while _is_rank(pid):
        pid = parent_of(pid)
    return pid


def _is_rank(pid: int) -> bool:
    """A zombie, whose environment is gone, is none any more; nor are a launcher's helpers."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(entry.startswith(OPEN_MPI_RANK) for entry in file.read().split(b"\0"))
    except OSError:
        return False


def _sentence(rank: int | None) -> str:
    return (
        f"smallpond_mpi: a rank on {os.uname().nodename} died before MPI had started, and rank {rank} waits for it in MPI_Init in vain: "
        "ending the launch. What it died of stands above.\n"
    )
