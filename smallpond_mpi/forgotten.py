"""A script that imports this package, is started as several ranks and never calls init(): each rank has done all of it alone, and nobody would notice."""

import atexit
import os
import sys
from collections.abc import Mapping

from smallpond_mpi.platform.binding import launched_rank, launched_size, launcher_of

RANK_PID = "SMALLPOND_MPI_RANK_PID"
"""Environment variable: which process is the rank. Programs that a script starts inherit the launcher's variables and are none."""

_has_arrived = False


def arrived() -> None:
    """This process has taken its place among the ranks."""
    global _has_arrived
    _has_arrived = True


def has_arrived() -> bool:
    """Whether this process ever took its place among the ranks."""
    return _has_arrived


def watch_for_init(env: Mapping[str, str]) -> None:
    """Have the process end with an error if a launcher started it with others and it never takes its place among them."""
    pid = str(os.getpid())
    if launched_size(env) > 1 and env.get(RANK_PID, pid) == pid:
        os.environ[RANK_PID] = pid
        atexit.register(_complain, launched_size(env), launcher_of(env), launched_rank(env) or 0)


def unwatch() -> None:
    """`smallpond-mpi` knows better when the script that it runs has ended."""
    atexit.unregister(_complain)


def _complain(size: int, launcher: str, rank: int) -> None:
    failed = getattr(sys, "last_value", None) is not None
    is_rank = os.environ.get(RANK_PID) == str(os.getpid())  # and not forked from it
    if (
        _has_arrived or failed or not is_rank or "mpi4py.MPI" in sys.modules
    ):  # a program that speaks MPI itself knows its ranks
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if rank != 0:
        # Said once, and only rank 0 fails: the launcher ends the others when one does, maybe before it has spoken.
        os._exit(0)
    sys.stderr.write(
        f"{sys.argv[0]}: smallpond_mpi: the script never called smallpond_mpi.init(): {launcher} started {size} processes, and each of them ran all of it by "
        "itself. Call init() near the top (rank 0 goes on from there, the others work for it), or start one process.\n"
    )
    sys.stderr.flush()
    os._exit(1)
